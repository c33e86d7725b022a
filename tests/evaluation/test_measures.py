"""Tests of the measures of the prior, the reconstructions and the labels."""

import numpy as np
import pytest

from dermvq_jax.evaluation import measures, results


def test_measure_prior_by_hand():
  likelihoods = -np.log(2) * np.asarray(
    [[10, 30, 99], [20, 10, 99], [50, 40, 99], [16, 12, 99]]
  )
  result = measures.measure_prior(
    likelihoods,
    np.asarray([0, 0, 0, 1]),
    ['a', 'b', 'c'],
    dataset='codes/x',
    num_codes=4,
    num_values=48,
  )
  bits = (10 + 20 + 50 + 12) / 4
  assert result.num_images == 4
  assert result.nll_nats == pytest.approx(bits * np.log(2))
  assert result.bits_per_code == pytest.approx(bits / 4)
  assert result.bits_per_dim == pytest.approx(bits / 48)
  assert result.accuracy == 0.5
  assert result.balanced_accuracy == pytest.approx((1 / 3 + 1) / 2)
  assert result.confusion == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]
  a, b, c = result.classes.values()
  assert a.bits_per_code == pytest.approx(80 / 3 / 4)
  assert a.recall == pytest.approx(1 / 3)
  assert (b.num_images, b.recall) == (1, 1)
  assert b.bits_per_dim == pytest.approx(12 / 48)
  assert c == results.ClassLikelihood(0, None, None, None, None)
  assert result.dataset == 'codes/x'


class _Oracle:
  """A classifier that reads the class from the image; no image has class 3."""

  class_names = ('a', 'b', 'c', 'd')

  def predict(self, images):
    return images[:, 0, 0, 0]


def _showing(*seen):
  return np.uint8(seen)[:, None, None, None]


def test_samples_over_real_counts_the_classes_that_both_have():
  real = _showing(0, 3, 1, 3), np.array([0, 0, 1, 1])
  made = _showing(0, 3, 1, 3, 3, 3), np.array([0, 0, 1, 1, 2, 2])
  result = measures.measure_labels(
    _Oracle(), real=real, reconstructions=real, samples=made
  )
  assert result.reconstructions == result.real
  assert result.real.recalls == {
    'a': 0.5,
    'b': 0.5,
    'c': None,
    'd': None,
  }
  assert result.samples.balanced_accuracy == pytest.approx(1 / 3)
  assert result.samples_over_real == 1
  real = _showing(3, 3), np.array([0, 1])
  result = measures.measure_labels(
    _Oracle(), real=real, reconstructions=real, samples=made
  )
  assert result.samples_over_real is None


def test_measure_reconstruction_by_hand():
  originals = np.full((3, 16, 16, 3), 51, np.uint8)  # 0.2
  made = np.full((3, 16, 16, 3), 102, np.uint8)  # 0.4
  result = measures.measure_reconstruction(originals, made, 0.1)
  assert result.num_images == 3
  assert result.mse == pytest.approx(0.04)
  assert result.nmse == pytest.approx(0.4)
  assert result.psnr == pytest.approx(-10 * np.log10(0.04))
  # Flat images differ in luminance only.
  luminance = (2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4)
  assert result.ssim == pytest.approx(luminance, rel=1e-3)
  same = measures.measure_reconstruction(originals, originals, 0.1)
  assert (same.psnr, same.ssim) == (100, pytest.approx(1))


@pytest.mark.parametrize(
  ('part', 'whole', 'expected'), [(1, 4, 0.25), (1, 0, None), (1, -2, None)]
)
def test_ratio(part, whole, expected):
  assert measures.ratio(part, whole) == expected


def test_independent_codes():
  codes = np.arange(3 * 2 * 2).reshape(3, 2, 2)
  sampled = measures.independent_codes(codes, 4000, np.random.default_rng(0))
  assert sampled.shape == (4000, 2, 2)
  for i, j in np.ndindex(2, 2):
    values, counts = np.unique(sampled[:, i, j], return_counts=True)
    np.testing.assert_array_equal(values, codes[:, i, j])
    np.testing.assert_allclose(counts / 4000, 1 / 3, atol=0.04)
  # They are independent: two positions take all pairs of values.
  pairs = np.unique(sampled[:, 0], axis=0)
  assert len(pairs) == 9
