"""The Mahalanobis distance, against SciPy's."""

import numpy as np
import pytest
import scipy.spatial

from dermvq_jax.outliers import conformal, typicality


def test_distances():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3)) + [1, 2, 3]
  typical = typicality.fit(values)
  new = rng.normal(size=(4, 3))
  deviation = values.std(0)
  inverse = np.linalg.inv(np.corrcoef(values.T) + 0.01 * np.eye(3))
  expected = [
    scipy.spatial.distance.mahalanobis(
      x / deviation, values.mean(0) / deviation, inverse
    )
    ** 2
    for x in new
  ]
  np.testing.assert_allclose(typical.distances(new), expected)
  np.testing.assert_allclose(typical.standardised(values).std(0), 1)


def test_a_statistic_that_never_changes():
  values = np.random.default_rng(0).normal(size=(20, 2))
  values[:, 1] = 7
  typical = typicality.fit(values)
  assert np.isfinite(typical.distances(values)).all()
  far = typical.distances(np.array([[0.0, 7.1]]))
  assert far > 100 * typical.distances(values).max()


@pytest.mark.parametrize('num_fit', [20, 300])
def test_few_images_change_power_and_not_validity(num_fit):
  """With fewer images than statistics the false alarm rate still holds."""
  rng = np.random.default_rng(1)
  rates = []
  for _ in range(30):
    mixing = rng.normal(size=(25, 25))
    fit, held_out, new = (
      rng.standard_t(4, (n, 25)) @ mixing for n in (num_fit, 199, 200)
    )
    distances = typicality.fit(fit).distances
    p = conformal.upper_p_values(
      distances(held_out), np.ones(199), distances(new)
    )
    rates.append(np.mean(p <= 0.05))
  assert np.mean(rates) == pytest.approx(0.05, abs=0.01)
