"""How far the statistics of an image are from those of training images."""

import dataclasses

import numpy as np

# Added to the diagonal of the correlations: statistics that are nearly
# functions of others count little more than others do.
_RIDGE = 0.01
_MIN_DEVIATION = 1e-6


@dataclasses.dataclass(frozen=True)
class Typical:
  """What is typical: a mean and a covariance, as arrays.

  Of many combinations of the statistics, the Mahalanobis distance found the
  most made outliers: `python -m experiments.outliers`.

  Attributes:
    mean: float64 `[S]`.
    deviation: float64 `[S]`.
    precision: the inverse of the correlations, float64 `[S, S]`.
  """

  mean: np.ndarray
  deviation: np.ndarray
  precision: np.ndarray

  def standardised(self, values: np.ndarray) -> np.ndarray:
    """Differences from the mean in standard deviations, `[B, S]`."""
    return (values - self.mean) / self.deviation

  def distances(self, values: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distances of values `[B, S]`, float64 `[B]`."""
    z = self.standardised(values)
    return np.einsum('bs,st,bt->b', z, self.precision, z)


def fit(values: np.ndarray) -> Typical:
  """Learns what is typical from the statistics of images, `[N, S]`."""
  mean = values.mean(0)
  # A statistic that is the same in all images says nothing of their scale.
  deviation = np.maximum(values.std(0), _MIN_DEVIATION)
  z = (values - mean) / deviation
  correlations = z.T @ z / len(z)
  ridge = _RIDGE * np.eye(len(mean))
  return Typical(mean, deviation, np.linalg.inv(correlations + ridge))
