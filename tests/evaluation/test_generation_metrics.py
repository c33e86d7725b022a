"""Tests of the metrics of samples against closed forms and definitions."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg

from dermvq_jax.evaluation import generation_metrics as metrics


def normal(n, f, seed=0, shift=0.0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, f)) @ rng.normal(size=(f, f)) + shift


# Frechet distance.


def whiten(x):
  """Changes `x` linearly to mean 0 and covariance 1, exactly."""
  x = x - x.mean(0)
  return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)).T)


def test_frechet_distance_of_known_moments():
  """With diagonal covariances it is the sum of (m - m')^2 + (s - s')^2."""
  rng = np.random.default_rng(1)
  a = whiten(rng.normal(size=(50, 4))) * [1, 2, 3, 4] + [0, 1, 0, 0]
  b = whiten(rng.normal(size=(70, 4))) * [2, 2, 1, 8] + [0, 4, 0, 1]
  expected = (1 + 0 + 4 + 16) + (9 + 1)
  assert metrics.frechet_distance(a, b) == pytest.approx(expected)
  assert metrics.frechet_distance(b, a) == pytest.approx(expected)


def test_frechet_distance_of_any_moments():
  a, b = normal(60, 5), normal(40, 5, 1, shift=0.3)
  root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
  expected = np.sum((a.mean(0) - b.mean(0)) ** 2)
  expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real)
  assert metrics.frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_distance_with_fewer_images_than_features():
  a = normal(8, 20)
  assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
  moved = metrics.frechet_distance(a, a + 0.5)
  assert moved == pytest.approx(20 * 0.25, rel=1e-5)
  assert metrics.frechet_distance(a[:, :1], 3 + a[:, :1]) == pytest.approx(9)


# KID.


def slow_kid(x, y):
  def kernel(a, b):
    return (np.dot(a, b) / len(a) + 1) ** 3

  def within(z):
    n = len(z)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    return np.mean([kernel(z[i], z[j]) for i, j in pairs])

  between = np.mean([kernel(a, b) for a in x for b in y])
  return within(x) + within(y) - 2 * between


def test_kid_by_definition():
  x, y = normal(9, 3), normal(7, 3, 1, shift=1.0)
  value, error = metrics.kid(x, y)
  assert value == pytest.approx(slow_kid(x, y))
  # The jackknife by its definition: leave out each image in turn.
  variance = 0
  for first, sets in ((True, (x, y)), (False, (y, x))):
    n = len(sets[0])
    without = [
      slow_kid(*(pair if first else pair[::-1]))
      for pair in ((np.delete(sets[0], i, 0), sets[1]) for i in range(n))
    ]
    variance += (n - 1) * np.var(without)
  assert error == pytest.approx(np.sqrt(variance))


def test_kid_is_unbiased_and_its_error_is_right():
  rng = np.random.default_rng(0)
  for shift in (0, 0.5):
    trials = [
      metrics.kid(rng.normal(size=(60, 4)), rng.normal(size=(50, 4)) + shift)
      for _ in range(300)
    ]
    values, errors = np.transpose(trials)
    exact = _expected_kid(4, shift)
    assert values.mean() == pytest.approx(
      exact, abs=4 * values.std() / 300**0.5
    )
    # Without a difference the estimate is degenerate and the error too large.
    ratio = errors.mean() / values.std()
    assert 0.9 < ratio < (1.15 if shift else 2)


def _expected_kid(f, shift):
  """Squared mean discrepancy of N(0, 1) and N(shift, 1) in `f` dimensions.

  E (x.y/f + 1)^3 = 1 + 3 E x.y/f + 3 E (x.y)^2/f^2 + E (x.y)^3/f^3, with the
  moments E x_i, E x_i x_j, E x_i x_j x_k as tensors.
  """

  def moments(mean):
    one = np.full(f, mean)
    eye = np.eye(f)
    two = eye + np.multiply.outer(one, one)
    three = np.multiply.outer(np.multiply.outer(one, one), one)
    for axes in ('i,jk->ijk', 'j,ik->ijk', 'k,ij->ijk'):
      three = three + np.einsum(axes, one, eye)
    return one, two, three

  total = 0
  weights = 3 / f, 3 / f**2, 1 / f**3
  for weight, a, b in zip(weights, moments(0.0), moments(shift)):
    total += weight * np.sum((a - b) ** 2)
  return total


def test_kid_in_chunks(monkeypatch):
  x, y = normal(30, 3), normal(20, 3, 1)
  expected = dataclasses.astuple(metrics.compare(x, y))
  monkeypatch.setattr(metrics, '_CHUNK', 7)
  found = dataclasses.astuple(metrics.compare(x, y))
  assert found == pytest.approx(expected)


# Precision, recall, density, coverage.


def slow_manifolds(real, made, k):
  """Precision, recall, density and coverage by definition, with loops."""

  def radius(x, i):
    others = [np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i]
    return sorted(others)[k - 1]

  def in_ball(point, x, i):
    return np.linalg.norm(point - x[i]) <= radius(x, i)

  precision = np.mean(
    [any(in_ball(m, real, i) for i in range(len(real))) for m in made]
  )
  recall = np.mean(
    [any(in_ball(r, made, i) for i in range(len(made))) for r in real]
  )
  inside = [[in_ball(m, real, i) for i in range(len(real))] for m in made]
  return (
    precision,
    recall,
    np.sum(inside) / k / len(made),
    np.any(inside, 0).mean(),
  )


@pytest.mark.parametrize('k', [1, 3, 5])
def test_manifolds_by_definition(k):
  real, made = normal(20, 4), normal(15, 4, 1, shift=0.7)
  found = (
    *metrics.precision_recall(real, made, k),
    *metrics.density_coverage(real, made, k),
  )
  assert found == pytest.approx(slow_manifolds(real, made, k))
  assert 0 < found[0] + found[1] < 2  # not trivial


def test_manifolds_of_extremes():
  real = normal(30, 3)
  assert metrics.precision_recall(real, real) == (1, 1)
  assert metrics.density_coverage(real, real)[1] == 1
  assert metrics.precision_recall(real, real + 1000) == (0, 0)
  assert metrics.density_coverage(real, real + 1000) == (0, 0)
  # All samples are alike: precise, but they cover one spot.
  same = np.repeat(real[:1], 30, axis=0) + 1e-6 * normal(30, 3, 1)
  assert metrics.precision_recall(real, same)[0] == 1
  assert metrics.precision_recall(real, same)[1] < 0.1
  assert metrics.density_coverage(real, same)[1] < 0.5


def test_compare_names_them_right():
  real, made = normal(40, 3), normal(30, 3, 1, shift=0.2)
  found = metrics.compare(real, made)
  assert found.num_images == 30
  assert found.frechet_distance == metrics.frechet_distance(real, made)
  assert (found.kid, found.kid_standard_error) == metrics.kid(real, made)
  assert (found.precision, found.recall) == metrics.precision_recall(real, made)
  assert (found.density, found.coverage) == metrics.density_coverage(real, made)


# Classes.


def test_balanced_accuracy_by_hand():
  labels = np.array([0, 0, 0, 0, 2, 2])
  predicted = np.array([0, 0, 0, 1, 2, 1])
  value, error = metrics.balanced_accuracy(predicted, labels, 4)
  assert value == pytest.approx((3 / 4 + 1 / 2) / 2)
  variance = (4 / 6 * 2 / 6 / 4 + 1 / 2 * 1 / 2 / 2) / 2**2
  assert error == pytest.approx(np.sqrt(variance))


def test_error_of_balanced_accuracy_is_that_of_repeated_samples():
  """Even with classes that have only one or a few images."""
  counts, chance = np.array([1, 3, 8, 40]), np.array([0.5, 0.8, 0.3, 0.6])
  labels = np.repeat(np.arange(4), counts)
  rng = np.random.default_rng(0)
  found = np.array(
    [
      metrics.balanced_accuracy(
        np.where(rng.random(len(labels)) < chance[labels], labels, 4), labels, 5
      )
      for _ in range(2000)
    ]
  )
  assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.1)


def test_only_large_classes_have_metrics_of_their_own():
  labels = np.repeat([0, 1, 2], [100, 99, 120])
  real = normal(len(labels), 3)
  made = normal(len(labels), 3, 1)
  fewer = np.repeat([0, 1, 2], [110, 110, 99])
  names = ['a', 'b', 'c']
  found = metrics.compare_classes(
    real, labels, {'samples': (made, labels)}, names
  )
  assert {k: list(v) for k, v in found.items()} == {
    'a': ['samples'],
    'c': ['samples'],
  }
  assert found['c']['samples'] == metrics.compare(
    real[labels == 2], made[labels == 2]
  )
  sets = {'samples': (made, labels), 'real': (made, fewer)}
  found = metrics.compare_classes(real, labels, sets, names)
  assert list(found) == ['a']
