"""Ways to combine what was measured into one number, higher is stranger.

Each is fitted on training images, or standardised by validation images, and
never sees the images that it is judged on.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from sklearn import ensemble

from dermvq_jax.outliers import conformal, typicality

_SEED = 0
_RIDGE = 0.1  # share of the mean variance that is added to features' variances


@dataclasses.dataclass(frozen=True)
class Table:
  """What was measured of N images.

  Attributes:
    values: float64 `[N, S]`, the statistics of `dermvq score`.
    simple_bits: bits per code if each code has its training frequency, `[N]`.
    features: features of a classifier, `[N, F]`.
  """

  values: np.ndarray
  simple_bits: np.ndarray
  features: np.ndarray


Method = Callable[[Table], np.ndarray]


def _forest(train: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  made = ensemble.IsolationForest(n_estimators=100, random_state=_SEED)
  fitted = made.fit(train)
  return lambda x: -fitted.score_samples(x)


def _gaussian(features: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """Mahalanobis distance of features to the mean of all training images."""
  mean, covariance = features.mean(0), np.cov(features.T)
  ridge = _RIDGE * np.trace(covariance) / len(covariance)
  precision = np.linalg.inv(covariance + ridge * np.eye(len(covariance)))

  def distances(x: np.ndarray) -> np.ndarray:
    return np.einsum('bf,fg,bg->b', x - mean, precision, x - mean)

  return distances


def _nearest(features: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
  """Distance to the fifth nearest training image."""

  def distances(x: np.ndarray) -> np.ndarray:
    squares = (x**2).sum(1)[:, None] + (features**2).sum(1) - 2 * x @ features.T
    return np.sqrt(np.maximum(np.sort(squares, 1)[:, 4], 0))

  return distances


def make(
  names: tuple[str, ...], train: Table, val: Table
) -> tuple[dict[str, Method], dict[str, Method]]:
  """Makes the combinations and the baselines, by name.

  Args:
    names: the names of the S statistics.
    train: training images.
    val: validation images.
  """
  column = {name: i for i, name in enumerate(names)}
  own = {'bits', 'local_bits', 'error', 'worst_error'}
  own |= {'latent_distance', 'local_distance'}
  of_images = [i for name, i in column.items() if name not in own]
  of_model = [i for name, i in column.items() if name in own]
  no_bits = [i for name, i in column.items() if 'bits' not in name]
  mean, deviation = val.values.mean(0), val.values.std(0)
  ones = np.ones(len(val.values))

  def z(t: Table) -> np.ndarray:
    return np.abs(t.values - mean) / deviation

  def log_p(t: Table) -> np.ndarray:
    p = [
      conformal.two_sided_p_values(a, ones, b)[0]
      for a, b in zip(val.values.T, t.values.T)
    ]
    return np.log(p).T

  def mahalanobis(columns: list[int]) -> Method:
    typical = typicality.fit(train.values[:, columns])
    return lambda t: typical.distances(t.values[:, columns])

  def two_sided(one: Callable[[Table], np.ndarray]) -> Method:
    centre = np.median(one(val))
    return lambda t: np.abs(one(t) - centre)

  def bits(t: Table) -> np.ndarray:
    return t.values[:, column['bits']]

  def ratio(t: Table) -> np.ndarray:  # Ren et al. 2019
    return bits(t) - t.simple_bits

  # Serra et al. 2020 subtract the compressed size; codes are not lossless, so
  # the factor is the one that fits the training images best.
  complexity = column['complexity']
  slope, _ = np.polyfit(train.values[:, complexity], bits(train), 1)

  def corrected(t: Table) -> np.ndarray:
    return bits(t) - slope * t.values[:, complexity]

  everything = list(range(len(names)))
  forest_all, forest_images = (
    _forest(train.values[:, columns]) for columns in (everything, of_images)
  )
  gaussian, nearest = _gaussian(train.features), _nearest(train.features)
  combinations = {
    'Mahalanobis': mahalanobis(everything),
    'without bits': mahalanobis(no_bits),
    'of the image': mahalanobis(of_images),
    'of the model': mahalanobis(of_model),
    'largest z': lambda t: z(t).max(1),
    'least p': lambda t: -log_p(t).min(1),
    'Fisher': lambda t: -log_p(t).sum(1),
    'forest of all': lambda t: forest_all(t.values),
  }
  baselines = {
    'error': lambda t: t.values[:, column['error']],
    'bits': bits,
    'bits, two-sided': two_sided(bits),
    'ratio': ratio,
    'ratio, two-sided': two_sided(ratio),
    'bits - complexity': corrected,
    'the same, two-sided': two_sided(corrected),
    'forest of images': lambda t: forest_images(t.values[:, of_images]),
    'features, Gauss': lambda t: gaussian(t.features),
    'features, nearest': lambda t: nearest(t.features),
  }
  return combinations, baselines


def auroc(inliers: np.ndarray, outliers: np.ndarray) -> float:
  """The probability that an outlier is stranger than an inlier; ties: 1/2."""
  ordered = np.sort(inliers)
  below = np.searchsorted(ordered, outliers, 'left')
  not_above = np.searchsorted(ordered, outliers, 'right')
  return float((below + not_above).mean() / 2 / len(inliers))


def detection(
  inliers: np.ndarray, outliers: np.ndarray, rate: float = 0.05
) -> float:
  """The share of outliers that are found if a share `rate` of inliers is."""
  return float((outliers > np.quantile(inliers, 1 - rate)).mean())


def judge(
  methods: Mapping[str, Method], inliers: Table, outliers: Mapping[str, Table]
) -> dict[str, dict[str, tuple[float, float]]]:
  """Kind of outlier to method to AUROC and detection rate."""
  of_inliers = {name: method(inliers) for name, method in methods.items()}
  found = {}
  for kind, table in outliers.items():
    found[kind] = {}
    for name, method in methods.items():
      values = method(table)
      found[kind][name] = (
        auroc(of_inliers[name], values),
        detection(of_inliers[name], values),
      )
  return found
