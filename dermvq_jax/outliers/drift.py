"""Tests whether a set of images comes from where the held-out ones come from.

G lesions (or images, if lesions are not known), S statistics.
"""

import dataclasses

import numpy as np

_NUM_PERMUTATIONS = 2000
_MIN_DEVIATION = 1e-9
_CHUNK = 100  # permutations at a time, to bound memory


@dataclasses.dataclass(frozen=True)
class Drift:
  """Whether two sets of lesions differ.

  Attributes:
    p_value: how often sets that were drawn from all lesions at random differ as
      much.
    differences: by how many standard deviations of a lesion the mean of each
      statistic is higher in the new set, `[S]`.
  """

  p_value: float
  differences: np.ndarray


def _means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """The mean of each group: `[N, S]` to `[G, S]`."""
  _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
  sums = np.zeros((len(sizes), values.shape[1]))
  np.add.at(sums, numbers, values)
  return sums / sizes[:, None]


def test(
  held_out: np.ndarray,
  held_out_groups: np.ndarray,
  new: np.ndarray,
  new_groups: np.ndarray,
  *,
  seed: int = 0,
  num_permutations: int = _NUM_PERMUTATIONS,
) -> Drift:
  """Compares the means of all statistics in one test.

  It is a permutation test of lesions. What counts is the largest difference of
  a mean, in standard errors (Westfall and Young 1993, the 'max T'), so no
  correction for the number of statistics is needed. To see a difference of
  spread, give it a statistic that grows with it, such as the squared distance.

  Args:
    held_out: `[N, S]`.
    held_out_groups: the lesion of each held-out image, `[N]`.
    new: `[B, S]`.
    new_groups: the lesion of each new image, `[B]`.
    seed: the seed of the permutations.
    num_permutations: their number; the least p-value is about its inverse.

  Returns:
    The result; the p-value is valid if held-out and new lesions are
    exchangeable.
  """
  sets = (_means(held_out, held_out_groups), _means(new, new_groups))
  values = np.concatenate(sets)
  values = values - values.mean(0)
  values /= np.maximum(values.std(0), _MIN_DEVIATION)
  number, total = len(sets[1]), len(values)
  # The sums of both sets are opposite, and their variance is that of drawing
  # without replacement, so the sum of the new ones decides alone.
  observed = np.abs(values[-number:].sum(0)).max()
  rng = np.random.default_rng(seed)
  as_large = 0
  for start in range(0, num_permutations, _CHUNK):
    rows = min(_CHUNK, num_permutations - start)
    order = rng.permuted(np.tile(np.arange(total), (rows, 1)), axis=1)
    sums = values[order[:, :number]].sum(1)  # [chunk, S]
    as_large += int((np.abs(sums).max(1) >= observed - 1e-9).sum())
  means = [part.mean(0) for part in (values[:-number], values[-number:])]
  return Drift((1 + as_large) / (1 + num_permutations), means[1] - means[0])
