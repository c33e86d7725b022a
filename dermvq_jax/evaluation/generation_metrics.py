"""How close a set of made images comes to real ones, in a space of features.

Features are float `[N, F]` of the real and `[M, F]` of the made images.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.spatial

_CHUNK = 1024  # rows at a time, so that memory is bounded

# As in the papers.
PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5

# Classes with fewer images get no metrics of their own.
MIN_CLASS_IMAGES = 100


def frechet_distance(real: np.ndarray, made: np.ndarray) -> float:
  """Squared Wasserstein distance of the Gaussians with their moments.

  Heusel et al. 2017, section 3 (FID, if the features are Inception's). It has
  a bias that grows as the sets shrink: compare sets of one size only.
  """
  real, made = np.float64(real), np.float64(made)
  covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (real, made)]
  # The trace of the root of a product, by way of a symmetric matrix: exact,
  # and real even when there are fewer images than features.
  values, vectors = np.linalg.eigh(covariances[0])
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  values = np.linalg.eigvalsh(root @ covariances[1] @ root)
  trace = np.trace(covariances[0] + covariances[1])
  trace -= 2 * np.sqrt(np.maximum(values, 0)).sum()
  difference = real.mean(0) - made.mean(0)
  return float(difference @ difference + max(trace, 0))


def _kernel_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Sums over `b` of (a.b / F + 1)^3: `[N, F]`, `[M, F]` to `[N]`."""
  return np.concatenate(
    [
      ((a[i : i + _CHUNK] @ b.T / a.shape[1] + 1) ** 3).sum(1)
      for i in range(0, len(a), _CHUNK)
    ]
  )


def kid(real: np.ndarray, made: np.ndarray) -> tuple[float, float]:
  """Kernel inception distance (Binkowski et al. 2018, section 4).

  The unbiased estimate of the squared maximum mean discrepancy with their
  kernel, from all pairs instead of random subsets: the same expectation with
  less noise, whatever the number of images.

  Args:
    real: `[N, F]`, N from 3 up.
    made: `[M, F]`, M from 3 up.

  Returns:
    The estimate, which may be below 0, and its standard error by the two-sample
    jackknife (Efron and Stein 1981).
  """
  real, made = np.float64(real), np.float64(made)
  n, m = len(real), len(made)
  # Of each image, the sum of its kernels with the others of its set and with
  # those of the other set.
  own = [
    _kernel_sums(x, x) - ((x * x).sum(1) / x.shape[1] + 1) ** 3
    for x in (real, made)
  ]
  cross = [_kernel_sums(real, made), _kernel_sums(made, real)]

  def estimate(real_sum, made_sum, cross_sum, n, m):
    between = cross_sum / (n * m)
    return real_sum / (n * (n - 1)) + made_sum / (m * (m - 1)) - 2 * between

  sums = own[0].sum(), own[1].sum(), cross[0].sum()
  without_real = estimate(
    sums[0] - 2 * own[0], sums[1], sums[2] - cross[0], n - 1, m
  )
  without_made = estimate(
    sums[0], sums[1] - 2 * own[1], sums[2] - cross[1], n, m - 1
  )
  variance = (n - 1) * without_real.var() + (m - 1) * without_made.var()
  return float(estimate(*sums, n, m)), float(np.sqrt(variance))


def _distances(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
  """Euclidean distances of rows of `a`, some at a time, to all of `b`."""
  for i in range(0, len(a), _CHUNK):
    yield scipy.spatial.distance.cdist(a[i : i + _CHUNK], b)


def _radii(x: np.ndarray, k: int) -> np.ndarray:
  """Distance of each row to the k-th nearest other one, `[N]`, N above k."""
  # The nearest of all is the row itself.
  return np.concatenate(
    [np.partition(d, k, axis=1)[:, k] for d in _distances(x, x)]
  )


def _share_covered(
  points: np.ndarray, centres: np.ndarray, radii: np.ndarray
) -> float:
  """Share of points in any of the balls."""
  inside = [(d <= radii).any(1) for d in _distances(points, centres)]
  return float(np.concatenate(inside).mean())


def precision_recall(
  real: np.ndarray, made: np.ndarray, k: int = PRECISION_NEIGHBOURS
) -> tuple[float, float]:
  """Improved precision and recall (Kynkaanniemi et al. 2019, section 3).

  Args:
    real: `[N, F]`.
    made: `[M, F]`.
    k: a ball reaches to the k-th nearest neighbour in the own set.

  Returns:
    The share of made images in the balls around real ones, and the share of
    real images in the balls around made ones.
  """
  return (
    _share_covered(made, real, _radii(real, k)),
    _share_covered(real, made, _radii(made, k)),
  )


def density_coverage(
  real: np.ndarray, made: np.ndarray, k: int = DENSITY_NEIGHBOURS
) -> tuple[float, float]:
  """Density and coverage (Naeem et al. 2020, section 3).

  Args:
    real: `[N, F]`.
    made: `[M, F]`.
    k: a ball reaches to the k-th nearest real neighbour.

  Returns:
    The mean number of balls around real images that a made one is in, over k
    (may be above 1), and the share of these balls with a made image in them.
  """
  radii = _radii(real, k)
  inside = np.zeros(len(real))
  for d in _distances(made, real):
    inside += (d <= radii).sum(0)
  return float(inside.sum() / (k * len(made))), float((inside > 0).mean())


def balanced_accuracy(
  predicted: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[float, float]:
  """Mean recall of the classes that occur, and its standard error.

  The error counts images as independent, and one more right and one more wrong
  in each class (Agresti and Coull 1998): a recall of 0 or 1 of a few images is
  not certain.

  Args:
    predicted: int `[N]`.
    labels: int `[N]`.
    num_classes: C.
  """
  counts = np.bincount(labels, minlength=num_classes)
  right = np.bincount(labels[predicted == labels], minlength=num_classes)
  seen = counts > 0
  recalls = right[seen] / counts[seen]
  smoothed = (right[seen] + 1) / (counts[seen] + 2)
  variances = smoothed * (1 - smoothed) / counts[seen]
  return float(recalls.mean()), float(np.sqrt(variances.sum()) / seen.sum())


def compare(real: np.ndarray, made: np.ndarray) -> dict[str, float]:
  """All distances of features, by name."""
  kid_value, kid_error = kid(real, made)
  precision, recall = precision_recall(real, made)
  density, coverage = density_coverage(real, made)
  return {
    'num_images': len(made),
    'frechet_distance': frechet_distance(real, made),
    'kid': kid_value,
    'kid_standard_error': kid_error,
    'precision': precision,
    'recall': recall,
    'density': density,
    'coverage': coverage,
  }


def measure(
  real: np.ndarray, labels: np.ndarray, sets: dict[str, Any], names: Sequence
) -> dict[str, Any]:
  """Compares sets of images with real ones, of all and of large classes.

  Args:
    real: features of the real images `[N, F]`.
    labels: their classes `[N]`.
    sets: name to features `[M, F]` and classes `[M]`, or None if the set has
      no classes.
    names: of the classes.

  Returns:
    `sets`: name to `compare`; `classes`: class name to the
    same of its images, for classes of which every set has 100 or more.
  """
  result = {
    'sets': {name: compare(real, made) for name, (made, _) in sets.items()},
    'classes': {},
  }
  of_class = {k: v for k, v in sets.items() if v[1] is not None}
  for label, name in enumerate(names):
    counts = [np.sum(labels == label)]
    counts += [np.sum(asked == label) for _, asked in of_class.values()]
    if min(counts) >= MIN_CLASS_IMAGES:
      result['classes'][name] = {
        key: compare(real[labels == label], made[asked == label])
        for key, (made, asked) in of_class.items()
      }
  return result
