"""Recall and its bootstrap intervals, and what they allow to say."""

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
    """As text, with three digits."""
    return f'{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]'


def estimate(value: float, draws: np.ndarray) -> Estimate:
  """The percentile interval of bootstrap draws `[R]`."""
  tail = (1 - _LEVEL) / 2
  low, high = np.quantile(draws, (tail, 1 - tail))
  return Estimate(float(value), float(low), float(high))


def recalls(
  correct: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
  """Recall of each class, means over the seeds: `[A, C]`; nan if it has none.

  Args:
    correct: bool `[A, S, N]`: by way of training, seed and image.
    labels: int `[N]`.
    num_classes: C.
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


def _draw(rng: np.random.Generator, n: int, num_draws: int) -> np.ndarray:
  """How often each of n is among n - 1 drawn: int `[R, n]`."""
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
  """Recalls of lesions and seeds drawn anew with replacement: `[R, A, C]`.

  Lesions are drawn within their class, all images of one together, and the same
  ones for every way of training, so that differences are paired; seeds in each
  fold, as its trainings are its own. One lesion of a class and one seed fewer
  are drawn than there are, which makes the variance that of the mean (Rao and
  Wu 1988, section 2), of lesions and of seeds; what is of both is counted more
  than once, so that intervals are rather too wide (Owen 2007). One
  seed alone adds none.

  Args:
    correct: bool `[A, S, N]`.
    labels: int `[N]`.
    groups: the lesion of each image, `[N]`; of one fold.
    folds: int `[N]`.
    num_classes: C.
    seed: of the draws.
    num_draws: R.
  """
  rng = np.random.default_rng(seed)
  num_ways, num_seeds, _ = correct.shape
  by_seed = {}
  for fold in np.unique(folds):
    drawn = _draw(rng, num_seeds, num_draws)
    by_seed[fold] = drawn / drawn.sum(1, keepdims=True)
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
    counts = _draw(rng, len(sizes), num_draws)
    drawn = sum(
      np.einsum(
        'rg,asg,rs->ra',
        counts[:, fold_of == fold],
        hits[..., fold_of == fold],
        weights,
        optimize=True,
      )
      for fold, weights in by_seed.items()
    )
    out[:, :, c] = drawn / (counts @ sizes)[:, None]
  return out


def conclude(
  name: str, against: str, difference: Estimate, num_seeds: int
) -> str:
  """What the interval of a difference in balanced accuracy allows to say."""
  told = (
    f'{difference.value:+.3f}, 95% [{difference.low:+.3f}, '
    f'{difference.high:+.3f}]'
  )
  if num_seeds < 2:
    verdict = 'not decided by one seed'
  elif difference.low <= 0 <= difference.high:
    verdict = 'no difference shown'
  else:
    verdict = 'better' if difference.low > 0 else 'worse'
  return f'{name} against {against}: {verdict} ({told}).'
