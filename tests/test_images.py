import numpy as np
import pytest
from PIL import Image

from dermvq_jax import images


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
  assert np.all(left == 255)  # All else is white.


def test_sheet_of_one_image():
  image = _images(1)
  np.testing.assert_array_equal(images.sheet([image]), image[0])


def test_sheet_with_an_empty_row():
  out = images.sheet([_images(0), _images(1)])
  assert out.shape == (2 * 4 + 2, 6, 3)
  assert np.all(out[:6] == 255)
