"""Tests of pictures."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from dermvq_jax.data import images
from dermvq_jax.reporting import pictures


def _pixels(png):
  with Image.open(io.BytesIO(png)) as image:
    return np.asarray(image.convert('RGB'))


def test_labelled_sheet_holds_the_pictures():
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
  sheet = images.sheet(list(rows))
  png = pictures.labelled_sheet(sheet, ['a', 'b'], ['x', 'y', 'z'])
  pixels = _pixels(png)
  height, width = 2 * sheet.shape[0], 2 * sheet.shape[1]
  assert pixels.shape[0] > height and pixels.shape[1] > width
  shown = pixels[-height:, -width:]
  enlarged = sheet.repeat(2, 0).repeat(2, 1)
  assert np.mean(np.abs(shown.astype(int) - enlarged) < 3) > 0.95
  left = pixels[:, : pixels.shape[1] - width]
  assert left.min() < 100  # the names


def test_dollars_in_names_are_dollars():
  names = ['$a^', r'$\frac{1}{$']
  sheet = np.zeros((34, 34, 3), np.uint8)
  assert pictures.labelled_sheet(sheet, names, names).startswith(b'\x89PNG')


_LONG = ['actinic keratosis', 'basal cell carcinoma', 'seborrheic keratosis']


@pytest.mark.parametrize('names', [_LONG, ['mel', 'nv', 'df']])
def test_names_of_columns_do_not_overlap(names):
  sheet = images.sheet([np.zeros((3, 64, 64, 3), np.uint8)])
  pixels = _pixels(pictures.labelled_sheet(sheet, ['row'], names))
  height, width = 2 * sheet.shape[0], 2 * sheet.shape[1]
  above = pixels[:-height, -width:]
  assert above.min() < 100  # the names
  assert len(above) > 100 if names == _LONG else len(above) < 40
  # Each is above its column, and complete.
  for edge in (0, 1 / 3, 2 / 3, 1):
    x = round(edge * width)
    assert above[:, max(0, x - 3) : x + 3].min() > 200
  assert min(above[0].min(), above[-1].min()) > 200


def test_letters_that_the_usual_font_lacks():
  """Another font has the first; no font has the second."""
  sheet = np.zeros((34, 34, 3), np.uint8)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    made = [
      _pixels(pictures.labelled_sheet(sheet, [name]))
      for name in ('\U0001d49c', '\U0010fffd', '\U0010fffc')
    ]
  assert (made[0] != made[1]).any() and (made[1] == made[2]).all()


def test_principal_colours():
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(4, 5, 7)) * np.array([9, 5, 3, 1e-3, 0, 0, 0])
  colours = pictures.principal_colours(vectors)
  assert colours.shape == (4, 5, 3)
  assert colours.min() == 0 and colours.max() == pytest.approx(1)
  for axis in range(3):  # Each colour follows one of the wide directions.
    r = np.corrcoef(colours[..., axis].ravel(), vectors[..., axis].ravel())
    assert abs(r[0, 1]) > 0.8
  # There may be fewer directions than colours, or none.
  assert pictures.principal_colours(vectors[..., :2]).shape == (4, 5, 3)
  np.testing.assert_array_equal(
    pictures.principal_colours(np.ones((2, 2, 3))), np.zeros((2, 2, 3))
  )
