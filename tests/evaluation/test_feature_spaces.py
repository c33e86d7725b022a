"""Tests of spaces of features; `test_inception.py` tests Inception-v3."""

import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.data import images
from dermvq_jax.evaluation import feature_spaces


def brightness(x):
  """The means of a 4x4 grid."""
  n = x.shape[1] // 4
  return x.reshape(len(x), 4, n, 4, n, 3).mean((2, 4)).reshape(len(x), -1)


def some_images(count, size):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def test_extract_symmetries_and_chunks(monkeypatch):
  x = some_images(7, 8)
  expected = np.stack([brightness(form) for form in images.symmetries(x)])
  monkeypatch.setattr(feature_spaces, '_CHUNK', 3)
  found = feature_spaces.extract(brightness, x, symmetries=True)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_allclose(feature_spaces.extract(brightness, x), expected[0])


@pytest.mark.parametrize(
  ('space', 'message'),
  [
    (lambda x: x, r'must be \[7, F\], not \[7, 8, 8, 3\]'),
    (lambda x: np.zeros((1, 2)), r'not \[1, 2\]'),
    (lambda x: np.full((len(x), 2), np.nan), 'finite'),
  ],
)
def test_spaces_that_return_something_else(space, message):
  with pytest.raises(errors.UserError, match=message):
    feature_spaces.extract(space, some_images(7, 8))
