"""Tests of image files: PNG, sheets, as viewers show them, masks, folders."""

import io
import os
import re
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

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


# Pixels are those that viewers show.


@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_and_masks_are_turned_as_exif_says(tmp_path, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = gradient(60, 40)
  stored.save(tmp_path / 'a.jpg', quality=95, exif=exif)
  stored.save(tmp_path / 'a.png', exif=exif)
  with Image.open(tmp_path / 'a.png') as image:
    shown = ImageOps.exif_transpose(image)
  expected = images.crop_and_resize(shown, 40)
  np.testing.assert_array_equal(
    images.read_square(tmp_path / 'a.png', 40), expected
  )
  difference = images.read_square(tmp_path / 'a.jpg', 40) - expected.astype(int)
  assert np.abs(difference).max() <= 6
  stored = Image.new('L', (60, 40))
  stored.paste(255, (50, 0, 60, 40))
  stored.save(tmp_path / 'mask.png', exif=exif)
  with Image.open(tmp_path / 'mask.png') as image:
    ImageOps.exif_transpose(image).save(tmp_path / 'turned.png')
  np.testing.assert_array_equal(
    images.read_mask(tmp_path / 'mask.png', 40),
    images.read_mask(tmp_path / 'turned.png', 40),
  )


def test_a_large_photo_is_turned_and_decoded_at_a_fraction(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # A telephone writes this for a portrait.
  stored = gradient(800, 600)
  stored.save(tmp_path / 'a.jpg', quality=95, exif=exif)
  expected = images.crop_and_resize(
    stored.transpose(Image.Transpose.ROTATE_270), 64
  )
  result = images.read_square(tmp_path / 'a.jpg', 64)
  assert np.abs(result - expected.astype(int)).max() <= 6


@pytest.mark.parametrize('exif', [b'Exif\0\0II*\0', b'Exif\0\0' + b'?' * 40])
def test_damaged_exif_is_ignored(tmp_path, exif):
  gradient(40, 40).save(tmp_path / 'a.jpg', quality=95, exif=exif)
  assert images.read_square(tmp_path / 'a.jpg', 40).std() > 50


@pytest.mark.parametrize(
  ('suffix', 'options'),
  [
    ('.png', {}),
    ('.bmp', {}),
    ('.webp', {'lossless': True}),
    ('.tif', {}),
    ('.tif', {'compression': 'tiff_lzw'}),
    ('.jpg', {'quality': 100, 'subsampling': 0}),
    ('.tif', {'compression': 'jpeg'}),
  ],
)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'CMYK'])
def test_kinds_of_files(tmp_path, suffix, options, mode):
  image = gradient(32, 32).convert(mode)
  if mode == 'CMYK' and suffix not in ('.jpg', '.tif'):
    image = image.convert('RGB')
  if mode == 'P' and (suffix == '.jpg' or 'compression' in options):
    image = gradient(32, 32)
  image.save(tmp_path / f'a{suffix}', **options)
  assert f'a{suffix}'.endswith(images.SUFFIXES)
  result = images.read_square(tmp_path / f'a{suffix}', 32).astype(int)
  expected = np.asarray(image.convert('RGB')).astype(int)
  assert np.abs(result - expected).max() <= (8 if 'jp' in f'{options}' else 3)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif', '.webp'])
def test_exif_and_profiles_of_each_kind_of_file(tmp_path, suffix):
  image, exif = gradient(32, 20), Image.Exif()
  exif[0x0112] = 6  # Turn it to the right.
  options = {'lossless': True} if suffix == '.webp' else {'quality': 100}
  path = tmp_path / f'a{suffix}'
  image.save(path, exif=exif, icc_profile=swapped_profile(), **options)
  result = images.read_square(path, 20).astype(int)
  expected = np.asarray(image)[:, 6:26][..., [1, 0, 2]]
  assert np.abs(result - np.rot90(expected, -1)).max() <= 9


@pytest.mark.parametrize('suffix', ['.tif', '.webp'])
def test_transparent_pixels_of_each_kind_of_file(tmp_path, suffix):
  image = Image.new('RGBA', (8, 8), (100, 100, 100, 255))
  image.paste((9, 9, 9, 0), (0, 0, 8, 4))
  options = {'lossless': True, 'exact': True} if suffix == '.webp' else {}
  image.save(tmp_path / f'a{suffix}', **options)
  result = images.read_square(tmp_path / f'a{suffix}', 8)
  assert (result[:4] == 255).all() and (result[4:] == 100).all()


def tiff(values, white=1):
  """A TIFF file of grey values of 8 or 16 bits, without Pillow.

  With white=0 the lowest value is white.
  """
  data, bits = values.tobytes(), 8 * values.itemsize
  height, width = values.shape
  tags = [(256, width), (257, height), (258, bits), (259, 1), (262, white)]
  start = 8 + 2 + 12 * 9 + 4
  tags += [(273, start), (277, 1), (278, height), (279, len(data))]
  entries = [struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags]
  head = b'II*\0' + struct.pack('<IH', 8, len(tags))
  return head + b''.join(entries) + bytes(4) + data


@pytest.mark.parametrize('white', [0, 1])
@pytest.mark.parametrize('bits', [8, 16])
def test_grey_tiff_files(tmp_path, white, bits):
  grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
  values = grey if bits == 8 else grey.astype('<u2') * 257
  (tmp_path / 'a.tif').write_bytes(tiff(values, white))
  result = images.read_square(tmp_path / 'a.tif', 16)
  expected = grey if white else 255 - grey
  np.testing.assert_array_equal(result, np.stack([expected] * 3, -1))


@pytest.mark.parametrize('dtype', [np.float32, np.int32])
def test_more_than_16_bits_are_refused(tmp_path, dtype):
  values = np.linspace(0, 1e6, 64).reshape(8, 8).astype(dtype)
  Image.fromarray(values).save(tmp_path / 'a.tif')
  with pytest.raises(errors.UserError, match='a.tif is not used: it has more'):
    images.read_square(tmp_path / 'a.tif', 8)


def test_16_bits_are_scaled(tmp_path):
  grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
  Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / 'a.png')
  result = images.read_square(tmp_path / 'a.png', 16)
  np.testing.assert_array_equal(result, np.stack([grey] * 3, -1))
  white = np.uint16(65535) * (grey > 99).astype(np.uint16)
  Image.fromarray(white).save(tmp_path / 'mask.png')
  np.testing.assert_array_equal(
    images.read_mask(tmp_path / 'mask.png', 16), grey > 99
  )


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', 'I;16'])
def test_what_is_transparent_becomes_white(tmp_path, mode):
  colours = _images(1, 8, 8)[0]
  if mode == 'I;16':
    values = np.full((8, 8), 100 * 257, np.uint16)
    values[:4] = 7  # This value is transparent.
    Image.fromarray(values).save(tmp_path / 'a.png', transparency=7)
  elif mode == 'P':
    image = Image.new('P', (8, 8), 1)
    image.putpalette([9, 9, 9, 100, 100, 100])
    image.paste(0, (0, 0, 8, 4))
    image.save(tmp_path / 'a.png', transparency=0)
  else:
    colours[4:] = 100
    image = Image.fromarray(colours).convert(mode)
    alpha = Image.new('L', (8, 8), 255)
    alpha.paste(0, (0, 0, 8, 4))
    image.putalpha(alpha)
    image.save(tmp_path / 'a.png')
  result = images.read_square(tmp_path / 'a.png', 8)
  np.testing.assert_array_equal(result[:4], np.full((4, 8, 3), 255))
  np.testing.assert_array_equal(result[4:], np.full((4, 8, 3), 100))


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
  Image.new('RGBA', (4, 4), (100, 0, 200, 128)).save(tmp_path / 'a.png')
  result = images.read_square(tmp_path / 'a.png', 4)
  expected = 255 - (255 - np.array([100, 0, 200])) * 128 / 255
  assert np.abs(result - expected).max() <= 1


def icc_profile(space):
  return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()


def swapped_profile():
  """An ICC profile like sRGB, but with red and green swapped."""
  data = bytearray(icc_profile('sRGB'))
  count = int.from_bytes(data[128:132], 'big')
  tags = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * count, 12)}
  red, green = tags[b'rXYZ'], tags[b'gXYZ']
  data[red : red + 4], data[green : green + 4] = b'gXYZ', b'rXYZ'
  return bytes(data).replace(
    'sRGB'.encode('utf-16-be'), 'xxxx'.encode('utf-16-be')
  )


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
def test_colours_are_converted_to_srgb(tmp_path, mode):
  image = Image.new('RGB', (4, 4), (200, 50, 90))
  image = image.quantize() if mode == 'P' else image.convert(mode)
  image.save(tmp_path / 'a.png', icc_profile=swapped_profile())
  result = images.read_square(tmp_path / 'a.png', 4)
  assert np.abs(result - np.array([50, 200, 90])).max() <= 2


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK', 'RGBA'])
@pytest.mark.parametrize(
  'profile', [icc_profile('sRGB'), icc_profile('LAB'), b'damaged']
)
def test_profiles_that_change_nothing(tmp_path, mode, profile):
  """sRGB, one of another colour space, and a damaged one."""
  image = gradient(16, 16).convert(mode)
  kind = 'JPEG' if mode == 'CMYK' else 'PNG'
  image.save(tmp_path / 'with.x', kind, icc_profile=profile)
  image.save(tmp_path / 'without.x', kind)
  np.testing.assert_array_equal(
    images.read_square(tmp_path / 'with.x', 16),
    images.read_square(tmp_path / 'without.x', 16),
  )


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


def test_a_mask_painted_white_on_a_transparent_layer(tmp_path):
  layer = np.full((16, 16, 4), 255, np.uint8)
  layer[:10, :, 3] = 0
  Image.fromarray(layer).save(tmp_path / 'mask.png')
  mask = images.read_mask(tmp_path / 'mask.png', 16)
  np.testing.assert_array_equal(mask, layer[..., 3] > 0)


# Folders.


def test_images_of_a_folder(tmp_path):
  for name in ('b.JPG', 'a.png', 'c.jpeg'):
    (tmp_path / name).write_bytes(b'')
  (tmp_path / 'folder.jpg').mkdir()
  for name in ('._a.png', '.DS_Store', 'Thumbs.db', 'x.gif', '__MACOSX.jpg'):
    (tmp_path / name).write_bytes(b'')
  found, others = images.list_images(tmp_path)
  assert [path.name for path in found] == ['a.png', 'b.JPG', 'c.jpeg']
  assert [path.name for path in others] == ['x.gif']


def test_a_folder_without_images(tmp_path):
  (tmp_path / '._a.jpg').write_bytes(b'')
  match = 'there is no JPEG.* image in .*; give a folder with images'
  with pytest.raises(errors.UserError, match=match):
    images.list_images(tmp_path)


def test_a_name_that_is_not_utf8(tmp_path):
  path = os.fsencode(tmp_path) + b'/L\xe4sion.jpg'
  try:
    with open(path, 'wb'):
      pass
  except OSError:
    pytest.skip('this file system has no such names')
  match = re.escape(r'/L\xe4sion.jpg is not UTF-8; rename')
  with pytest.raises(errors.UserError, match=match) as e:
    images.check_names(images.list_images(tmp_path)[0])
  str(e.value).encode()  # It can be printed.


def test_an_image_in_a_zip_whose_data_end_early(tmp_path):
  """A decoder stops at such a mark; the checksum tells the damage."""
  file = io.BytesIO()
  Image.fromarray(_images(1, 300, 300)[0]).save(file, 'JPEG', quality=95)
  data, path = file.getvalue(), tmp_path / 'a.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a.jpg', data)
  source = zipfile.Path(path, 'a.jpg')
  assert images.read_square(source, 16).std() > 1
  damaged = bytearray(path.read_bytes())
  middle = damaged.index(data[:100]) + len(data) // 4
  damaged[middle : middle + 2] = b'\xff\xd9'
  path.write_bytes(damaged)
  with pytest.raises(errors.UserError, match='a.jpg is unreadable .*CRC'):
    images.read_square(zipfile.Path(path, 'a.jpg'), 16)
