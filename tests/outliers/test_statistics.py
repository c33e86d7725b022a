"""Statistics of images: values of plain images, and what changes them."""

import io

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from dermvq_jax.outliers import statistics


@pytest.fixture(scope='module')
def images():
  """Three smooth pictures with a little noise."""
  rng = np.random.default_rng(0)
  smooth = rng.uniform(60, 200, (3, 8, 8, 3))
  large = scipy.ndimage.zoom(smooth, (1, 4, 4, 1), order=1)
  return np.uint8(large + rng.normal(0, 3, large.shape))


def test_a_plain_image():
  image = np.zeros((1, 16, 16, 3), np.uint8) + np.uint8([200, 100, 50])
  found = statistics.of_images(image)
  assert all(v.shape == (1,) and np.isfinite(v).all() for v in found.values())
  luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
  for name in ('brightness', 'brightest'):
    assert found[name] == pytest.approx(luma / 255)
  for name in ('redness', 'reddest'):
    assert found[name] == pytest.approx(100 / 255)
  for name in ('yellowness', 'bluest'):
    assert found[name] == pytest.approx(100 / 255)
  for name in ('contrast', 'colour_variety', 'noise', 'asymmetry'):
    assert found[name] == pytest.approx(np.log(1e-3))
  for name in ('darkest_edge', 'brightest_edge', 'blockiness'):
    assert found[name] == pytest.approx(0, abs=1e-9)


def _jpeg(image):
  out = io.BytesIO()
  Image.fromarray(image).save(out, 'JPEG', quality=5)
  return np.asarray(Image.open(out))


def _border(image):
  image = image.copy()
  image[:, :3] = 0
  return image


def _mirror(image):
  return np.concatenate([image[:, :16], image[:, :16][:, ::-1]], axis=1)


CHANGES = {
  'sharpness': (lambda x: scipy.ndimage.gaussian_filter(x, (1, 1, 0)), -1),
  'noise': (lambda x: scipy.ndimage.gaussian_filter(x, (1, 1, 0)), -1),
  'complexity': (lambda x: x // 16 * 16, -1),
  'brightness': (lambda x: x // 2, -1),
  'brightest': (lambda x: np.maximum(x, np.eye(32)[..., None] * 255), 1),
  'contrast': (lambda x: x // 4 + 96, -1),
  'redness': (lambda x: np.uint8(x * [1, 0.5, 1]), 1),
  'yellowness': (lambda x: np.uint8(x * [1, 1, 0.5]), 1),
  'bluest': (lambda x: np.where(np.eye(32)[..., None] > 0, [0, 0, 255], x), -1),
  'blockiness': (_jpeg, 1),
  'darkest_edge': (_border, -1),
  'sharpest_edge': (_border, 1),
  'asymmetry': (_mirror, -1),
}


@pytest.mark.parametrize('name', CHANGES)
def test_what_changes_a_statistic(images, name):
  change, sign = CHANGES[name]
  changed = np.stack([np.uint8(change(image)) for image in images])
  before = statistics.of_images(images)[name]
  after = statistics.of_images(changed)[name]
  assert (sign * (after - before) > 0).all()


def test_images_do_not_depend_on_each_other(images):
  together = statistics.of_images(images)
  alone = statistics.of_images(images[1:2])
  for name, values in together.items():
    np.testing.assert_allclose(values[1:2], alone[name], rtol=1e-5)
