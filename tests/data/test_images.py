"""Tests of image files: PNG, sheets, crop and resize, masks."""

import numpy as np
import pytest
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.data import images


def _images(n, height=4, width=6, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 255, (n, height, width, 3), np.uint8)


@pytest.mark.parametrize('as_text', [True, False])
def test_png_is_lossless(tmp_path, as_text):
  path, image = tmp_path / 'a.png', _images(1)[0]
  images.save_png(str(path) if as_text else path, image)
  with Image.open(path) as opened:
    assert opened.format == 'PNG'
    np.testing.assert_array_equal(np.asarray(opened), image)


def test_png_with_text(tmp_path):
  image = _images(1)[0]
  text = {'Label': 'N\u00e4vus', 'Software': 'a b'}
  images.save_png(tmp_path / 'a.png', image, text)
  with Image.open(tmp_path / 'a.png') as opened:
    assert opened.text == text
    np.testing.assert_array_equal(np.asarray(opened), image)


def test_sheet_of_uneven_rows():
  rows = [_images(2), _images(3, seed=1), _images(1, seed=2)]
  out = images.sheet(rows)
  assert out.dtype == np.uint8
  assert out.shape == (3 * 4 + 2 * 2, 3 * 6 + 2 * 2, 3)
  left = out.copy()
  for i, row in enumerate(rows):
    for j, image in enumerate(row):
      place = slice(i * 6, i * 6 + 4), slice(j * 8, j * 8 + 6)
      np.testing.assert_array_equal(out[place], image)
      left[place] = 255
  assert np.all(left == 255)  # The rest is white.


def test_sheet_of_one_image():
  image = _images(1)
  np.testing.assert_array_equal(images.sheet([image]), image[0])


def test_sheet_with_an_empty_row():
  out = images.sheet([_images(0), _images(1)])
  assert out.shape == (2 * 4 + 2, 6, 3)
  assert np.all(out[:6] == 255)


# Reading: crop and resize.


def gradient(width, height):
  """A smooth image that differs in both directions."""
  y, x = np.mgrid[0:height, 0:width]
  red, green = 255 * x / width, 255 * y / height
  return Image.fromarray(np.stack([red, green, 255 - red], -1).astype(np.uint8))


@pytest.mark.parametrize('width, height', [(60, 40), (40, 60), (41, 41)])
def test_the_central_square_is_kept(width, height):
  image = gradient(width, height)
  side = min(width, height)
  left, top = (width - side) // 2, (height - side) // 2
  square = np.asarray(image)[top : top + side, left : left + side]
  result = images.crop_and_resize(image, side)
  assert result.dtype == np.uint8
  np.testing.assert_array_equal(result, square)


@pytest.mark.parametrize('size', [16, 64, 128])
def test_a_jpeg_decoded_at_a_fraction_is_like_the_exact_square(size, tmp_path):
  image = gradient(600, 450)
  path = tmp_path / 'x.jpg'
  image.save(path, quality=95)
  expected = image.crop((75, 0, 525, 450)).resize(
    (size, size), Image.Resampling.LANCZOS
  )
  result = images.read_square(path, size)
  assert result.shape == (size, size, 3)
  difference = result.astype(int) - np.asarray(expected, int)
  assert np.abs(difference).max() <= 6
  assert np.abs(difference).mean() < 1.5


@pytest.mark.parametrize('mode', ['L', 'CMYK', 'P', 'RGBA', '1'])
def test_other_colour_modes_become_rgb(mode):
  result = images.crop_and_resize(gradient(20, 20).convert(mode), 8)
  assert result.shape == (8, 8, 3)
  assert result.dtype == np.uint8


def test_small_images_are_enlarged():
  result = images.crop_and_resize(Image.new('RGB', (3, 5), (9, 8, 7)), 16)
  np.testing.assert_array_equal(result, np.full((16, 16, 3), (9, 8, 7)))


# Masks.


@pytest.mark.parametrize('shape', [(90, 70), (16, 16), (31, 200), (8, 8)])
def test_no_pixel_outside_of_a_mask_depends_on_what_is_hidden(tmp_path, shape):
  rng = np.random.default_rng(0)
  hidden = np.zeros(shape, bool)
  top, left = shape[0] // 2, shape[1] // 2
  hidden[top : top + shape[0] // 8 + 1, left : left + shape[1] // 9 + 1] = True
  Image.fromarray(np.uint8(hidden) * 255).save(tmp_path / 'mask.png')
  mask = images.read_mask(tmp_path / 'mask.png', 16)
  assert mask.shape == (16, 16) and mask.dtype == bool
  assert mask.any() and not mask.all()
  image = rng.integers(0, 256, (*shape, 3), np.uint8)
  read = []
  for value in (0, 255):
    image[hidden] = value
    images.save_png(tmp_path / 'a.png', image)
    read.append(images.read_square(tmp_path / 'a.png', 16))
  differs = (read[0] != read[1]).any(-1)
  assert not differs[~mask].any()
  assert differs[mask].mean() > 0.5  # It does not hide much more than needed.


def test_masks_of_any_mode(tmp_path):
  for mode, white in (('1', 1), ('L', 255), ('RGB', (255, 255, 255))):
    mask = Image.new(mode, (16, 16))
    mask.putpixel((5, 3), white)
    mask.save(tmp_path / 'mask.png')
    read = images.read_mask(tmp_path / 'mask.png', 16)
    np.testing.assert_array_equal(np.argwhere(read), [[3, 5]])
  (tmp_path / 'mask.png').write_text('no image')
  with pytest.raises(errors.UserError, match='unreadable'):
    images.read_mask(tmp_path / 'mask.png', 16)
