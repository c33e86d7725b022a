"""How close a set of images comes to real ones, in a space of features.

`real` are the features of the real images, float `[N, F]`; `made` are the
features of the set, float `[M, F]`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.spatial

from dermvq_jax.evaluation import results

_CHUNK = 1024  # rows at a time, to bound memory

# The values of the papers.
PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5

# Classes with fewer images are not compared alone.
MIN_CLASS_IMAGES = 100


def frechet_distance(real: np.ndarray, made: np.ndarray) -> float:
  """Squared Wasserstein distance between Gaussians with the sets' moments.

  Heusel et al. 2017, section 3; with Inception's features it is the FID. Its
  bias grows as the sets shrink: compare only sets of the same size.
  """
  real, made = np.float64(real), np.float64(made)
  covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (real, made)]
  # The trace of the product's square root, computed from a symmetric matrix:
  # exact, and real even if there are fewer images than features.
  values, vectors = np.linalg.eigh(covariances[0])
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  values = np.linalg.eigvalsh(root @ covariances[1] @ root)
  trace = np.trace(covariances[0] + covariances[1])
  trace -= 2 * np.sqrt(np.maximum(values, 0)).sum()
  difference = real.mean(0) - made.mean(0)
  return float(difference @ difference + max(trace, 0))


def _kernel_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """For each row of `a`, the sum over rows of `b` of (a.b / F + 1)^3, `[N]`."""
  return np.concatenate(
    [
      ((a[i : i + _CHUNK] @ b.T / a.shape[1] + 1) ** 3).sum(1)
      for i in range(0, len(a), _CHUNK)
    ]
  )


def kid(real: np.ndarray, made: np.ndarray) -> tuple[float, float]:
  """Kernel inception distance (Binkowski et al. 2018, section 4).

  The unbiased estimate of the squared maximum mean discrepancy with the paper's
  kernel. It is taken over all pairs instead of random subsets: the expectation
  is the same and the noise lower, for any number of images.

  Args:
    real: `[N, F]`, N at least 3.
    made: `[M, F]`, M at least 3.

  Returns:
    The estimate, which may be below 0, and its standard error by the two-sample
    jackknife (Efron and Stein 1981).
  """
  real, made = np.float64(real), np.float64(made)
  n, m = len(real), len(made)
  # For each image: the sum of its kernels with the other images of its set, and
  # with the images of the other set.
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
  """Yields the distances of some rows of `a` at a time to all rows of `b`."""
  for i in range(0, len(a), _CHUNK):
    yield scipy.spatial.distance.cdist(a[i : i + _CHUNK], b)


def _radii(x: np.ndarray, k: int) -> np.ndarray:
  """Distance of each row to the k-th nearest other row, `[N]`, N > k."""
  # The nearest row is the row itself.
  return np.concatenate(
    [np.partition(d, k, axis=1)[:, k] for d in _distances(x, x)]
  )


def _share_covered(
  points: np.ndarray, centres: np.ndarray, radii: np.ndarray
) -> float:
  """Share of the points that lie in at least one of the balls."""
  inside = [(d <= radii).any(1) for d in _distances(points, centres)]
  return float(np.concatenate(inside).mean())


def precision_recall(
  real: np.ndarray, made: np.ndarray, k: int = PRECISION_NEIGHBOURS
) -> tuple[float, float]:
  """Improved precision and recall (Kynkaanniemi et al. 2019, section 3).

  Args:
    real: `[N, F]`.
    made: `[M, F]`.
    k: a ball reaches to the k-th nearest neighbour within its own set.

  Returns:
    The share of `made` in the balls around `real`, and the share of `real` in
    the balls around `made`.
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
    The mean number of balls around `real` that a row of `made` lies in, divided
    by k (may be above 1), and the share of these balls that contain a row of
    `made`.
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

  The error assumes independent images. It adds one right and one wrong image
  to each class (Agresti and Coull 1998), because a recall of 0 or 1 on a few
  images is not certain.

  Args:
    predicted: the predicted labels, int `[N]`.
    labels: the true labels, int `[N]`.
    num_classes: the number of classes.
  """
  counts = np.bincount(labels, minlength=num_classes)
  right = np.bincount(labels[predicted == labels], minlength=num_classes)
  seen = counts > 0
  recalls = right[seen] / counts[seen]
  smoothed = (right[seen] + 1) / (counts[seen] + 2)
  variances = smoothed * (1 - smoothed) / counts[seen]
  return float(recalls.mean()), float(np.sqrt(variances.sum()) / seen.sum())


def compare(real: np.ndarray, made: np.ndarray) -> results.SetComparison:
  """Compares a set of images with real ones by all metrics.

  Args:
    real: features of the real images, `[N, F]`.
    made: features of the others, `[M, F]`.
  """
  kid_value, kid_error = kid(real, made)
  precision, recall = precision_recall(real, made)
  density, coverage = density_coverage(real, made)
  return results.SetComparison(
    num_images=len(made),
    frechet_distance=frechet_distance(real, made),
    kid=kid_value,
    kid_standard_error=kid_error,
    precision=precision,
    recall=recall,
    density=density,
    coverage=coverage,
  )


def compare_classes(
  real: np.ndarray,
  labels: np.ndarray,
  sets: dict[str, tuple[np.ndarray, np.ndarray]],
  class_names: Sequence[str],
) -> dict[str, dict[str, results.SetComparison]]:
  """Compares the images of each large class with its real ones.

  Args:
    real: features of the real images, `[N, F]`.
    labels: their classes, `[N]`.
    sets: name of a set to its features `[M, F]` and classes `[M]`.
    class_names: the names of the classes.

  Returns:
    The comparisons by class name and by name of the set, for classes that have
    at least 100 images in every set.
  """
  classes = {}
  for label, name in enumerate(class_names):
    counts = [np.sum(labels == label)]
    counts += [np.sum(made_labels == label) for _, made_labels in sets.values()]
    if min(counts) >= MIN_CLASS_IMAGES:
      classes[name] = {
        key: compare(real[labels == label], made[made_labels == label])
        for key, (made, made_labels) in sets.items()
      }
  return classes
