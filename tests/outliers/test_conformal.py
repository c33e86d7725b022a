"""P-values: against counts, and by simulation."""

import numpy as np
import pytest

from dermvq_jax.outliers import conformal


def test_group_weights():
  weights = conformal.group_weights(np.array(['a', 'b', 'a', 'c', 'a']))
  np.testing.assert_allclose(weights, [1 / 3, 1, 1 / 3, 1, 1 / 3])


def test_p_values_are_counts():
  held_out, weights = np.array([3.0, 1.0, 2.0]), np.ones(3)
  new = np.array([0.5, 2.0, 2.5, 4.0])
  upper = conformal.upper_p_values(held_out, weights, new)
  np.testing.assert_allclose(upper, [1, 3 / 4, 2 / 4, 1 / 4])
  both, high = conformal.two_sided_p_values(held_out, weights, new)
  # 0.5: (1 + 0) / 4 are as low; 4: as many are as high; twice that.
  np.testing.assert_allclose(both, [0.5, 1, 1, 0.5])
  assert high.tolist()[0] is False and high.tolist()[3] is True


def test_images_of_a_lesion_share_its_weight():
  held_out = np.array([1.0, 5.0, 5.0, 2.0])
  weights = conformal.group_weights(np.array(['a', 'a', 'a', 'b']))
  p = conformal.upper_p_values(held_out, weights, np.array([3.0]))
  np.testing.assert_allclose(p, (1 + 2 / 3) / 3)


def _draw_lesions(rng, number):
  """Values of images of lesions that resemble each other, and their groups."""
  sizes = rng.choice([1, 1, 6], number)
  groups = np.repeat(np.arange(number), sizes)
  own = rng.normal(size=number)
  # Lesions with many images are also the stranger ones.
  own += 1.0 * (sizes == 6)
  return own[groups] + 0.1 * rng.normal(size=len(groups)), groups, sizes


@pytest.mark.parametrize('alpha', [0.05, 0.2])
def test_calibration_by_simulation(alpha):
  """A random image of a new lesion is flagged with probability alpha at most.

  With 39 held-out lesions of one image each it would be exactly alpha. Lesions
  with several images make ties impossible, and the rate lower by a little.
  """
  rng = np.random.default_rng(0)
  flagged, unweighted = [], []
  for _ in range(2000):
    values, groups, _ = _draw_lesions(rng, 40)
    is_new = groups == 39
    weights = conformal.group_weights(groups[~is_new])
    new = values[is_new][:1]
    p = conformal.upper_p_values(values[~is_new], weights, new)
    flagged.append(p[0] <= alpha)
    same = conformal.upper_p_values(values[~is_new], np.ones_like(weights), new)
    unweighted.append(same[0] <= alpha)
  error = 3 * np.sqrt(alpha * (1 - alpha) / 2000)
  assert alpha - 0.03 - error < np.mean(flagged) < alpha + error
  # Images that count one by one give another rate: too few are flagged here.
  assert np.mean(unweighted) < np.mean(flagged)
