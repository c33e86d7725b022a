"""Recall, its bootstrap intervals, and the conclusions that they allow."""

import dataclasses
from collections.abc import Sequence

import numpy as np

_LEVEL = 0.95
_DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number with its interval."""

  value: float
  low: float
  high: float

  def __str__(self) -> str:
    """Formats the number and its interval with three digits."""
    return f'{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]'


def estimate(value: float, draws: np.ndarray) -> Estimate:
  """Returns a number with its 95% percentile interval.

  Args:
    value: the number.
    draws: its values in the bootstrap samples, `[R]`.
  """
  tail = (1 - _LEVEL) / 2
  low, high = np.quantile(draws, (tail, 1 - tail))
  return Estimate(float(value), float(low), float(high))


def recalls(
  correct: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
  """Returns the recall of each class, averaged over the seeds, `[A, C]`.

  Args:
    correct: bool `[A, S, N]`: by way of training, seed and image.
    labels: int `[N]`.
    num_classes: C. A class without images has the recall NaN.
  """
  return np.stack(
    [
      correct[..., labels == c].mean((1, 2))
      if np.any(labels == c)
      else np.full(len(correct), np.nan)
      for c in range(num_classes)
    ],
    axis=1,
  )


def _resample(rng: np.random.Generator, n: int, num_draws: int) -> np.ndarray:
  """Samples n - 1 of n things with replacement; returns counts, `[R, n]`."""
  return rng.multinomial(max(n - 1, 1), np.full(n, 1 / n), num_draws)


def bootstrap_recalls(
  correct: np.ndarray,
  labels: np.ndarray,
  groups: Sequence[str],
  folds: np.ndarray,
  num_classes: int,
  seed: int = 0,
  num_draws: int = _DRAWS,
) -> np.ndarray:
  """Returns recalls for bootstrap samples of lesions and seeds, `[R, A, C]`.

  Lesions are sampled within their class, each with all of its images. Every way
  of training gets the same sample, so differences are paired. Seeds are sampled
  in each fold on their own, because each fold has its own trainings.

  From n lesions of a class, and from n seeds, n - 1 are sampled with
  replacement. This gives the variance of the mean over lesions and the variance
  over seeds without bias (Rao and Wu 1988, section 2). Variance that lesions
  and seeds cause together is counted more than once, so intervals are too wide
  rather than too narrow (Owen 2007). A single seed adds no variance.

  Args:
    correct: bool `[A, S, N]`: by way of training, seed and image.
    labels: int `[N]`.
    groups: lesion of each image, `[N]`; each lesion is in one fold.
    folds: fold of each image, int `[N]`.
    num_classes: C.
    seed: seed of the sampling.
    num_draws: R, number of bootstrap samples.
  """
  rng = np.random.default_rng(seed)
  num_ways, num_seeds, _ = correct.shape
  by_seed = {}
  for fold in np.unique(folds):
    counts = _resample(rng, num_seeds, num_draws)
    by_seed[fold] = counts / counts.sum(1, keepdims=True)
  out = np.full((num_draws, num_ways, num_classes), np.nan)
  for c in range(num_classes):
    members = np.flatnonzero(labels == c)
    if not len(members):
      continue
    _, first, lesion = np.unique(
      np.asarray(groups)[members], return_index=True, return_inverse=True
    )
    sizes, fold_of = np.bincount(lesion), folds[members][first]
    hits = np.zeros((num_ways, num_seeds, len(sizes)))
    np.add.at(hits, (..., lesion), correct[..., members])
    counts = _resample(rng, len(sizes), num_draws)
    weighted_hits = sum(
      np.einsum(
        'rg,asg,rs->ra',
        counts[:, fold_of == fold],
        hits[..., fold_of == fold],
        weights,
        optimize=True,
      )
      for fold, weights in by_seed.items()
    )
    out[:, :, c] = weighted_hits / (counts @ sizes)[:, None]
  return out


def conclude(
  name: str, against: str, difference: Estimate, num_seeds: int
) -> str:
  """Returns a line that says what a difference in balanced accuracy shows.

  Args:
    name: a way of training.
    against: another way of training.
    difference: balanced accuracy of the first minus balanced accuracy of the
      second.
    num_seeds: number of seeds of the classifiers.
  """
  interval = (
    f'{difference.value:+.3f}, 95% [{difference.low:+.3f}, '
    f'{difference.high:+.3f}]'
  )
  if num_seeds < 2:
    verdict = 'not decided by one seed'
  elif difference.low <= 0 <= difference.high:
    verdict = 'no difference shown'
  else:
    verdict = 'better' if difference.low > 0 else 'worse'
  return f'{name} against {against}: {verdict} ({interval}).'
