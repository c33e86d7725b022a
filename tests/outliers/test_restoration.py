"""Strange codes are drawn anew."""

import numpy as np
import pytest

import dermvq_jax
from dermvq_jax.data import prepared
from dermvq_jax.outliers import restoration

IMAGES = 'synthetic_dermoscopy/smoke'


def test_strange_codes():
  maps = np.zeros((1, 4, 8))
  maps[0, :2, 4:6] = [[0, 1.9], [1.9, 1.9]]  # The mean is above 1.
  maps[0, 2:, :2] = [[0, 0], [0, 3.9]]  # The mean is below 1.
  found = restoration.strange_codes(maps, (2, 8), 2)
  expected = np.zeros((1, 2, 8), bool)
  expected[0, 0, 4:6] = True
  np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope='module')
def model(calibrated_run):
  return dermvq_jax.load(calibrated_run)


def test_restore(model, smoke_run):
  """Only what the strange codes decode to changes."""
  records = prepared.Dataset(IMAGES, smoke_run / 'data').split('test')
  images = np.stack([records[i]['image'] for i in range(2)])
  maps = np.zeros((2, 16, 16))
  maps[1] = 5
  found = restoration.restore(model, images, maps)
  np.testing.assert_array_equal(
    found.images[0], model.reconstruct(images[:1])[0]
  )
  assert (found.differences[0] == 0).all()
  assert found.differences[1].max() > 0
  again = restoration.restore(model, images, maps)
  np.testing.assert_array_equal(found.images, again.images)
