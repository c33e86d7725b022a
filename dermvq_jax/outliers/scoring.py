"""Scores images: how unlike the others each is, why, and where."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dermvq_jax import errors
from dermvq_jax.outliers import conformal, measure, reference

# Name of a statistic -> what it means if it is too low, and too high.
REASONS = {
  'brightness': ('too dark', 'too bright'),
  'brightest': ('no bright spot', 'a very bright spot'),
  'contrast': ('too little contrast', 'too much contrast'),
  'redness': ('too green', 'too red'),
  'reddest': ('no red spot', 'a very red spot'),
  'yellowness': ('too blue', 'too yellow'),
  'bluest': ('a very blue spot', 'no blue spot'),
  'colour_variety': ('too few colours', 'too many colours'),
  'complexity': ('too plain', 'too complex'),
  'sharpness': ('too blurred', 'too much fine detail or noise'),
  'detail': ('too little detail', 'too much detail'),
  'noise': ('too smooth', 'too noisy'),
  'sharpest_edge': ('no sharp edge', 'a very sharp edge or line'),
  'blockiness': ('steps that avoid 8x8 blocks', 'blocks of 8x8 pixels (JPEG)'),
  'darkest_edge': ('a dark border', 'no dark border'),
  'brightest_edge': ('no bright border', 'a bright border'),
  'asymmetry': ('too symmetric', 'too asymmetric'),
  'bits': ('codes too predictable', 'codes too surprising'),
  'local_bits': ('no surprising part', 'a very surprising part'),
  'error': ('reconstructed too well', 'reconstructed badly'),
  'worst_error': ('no part with an error', 'a part is reconstructed badly'),
  'latent_distance': ('too close to the codebook', 'far from the codebook'),
  'local_distance': (
    'too close to the codebook everywhere',
    'a part is far from the codebook',
  ),
}
# The same for the distance of all statistics, of a set of images.
DISTANCE_REASON = ('too ordinary', 'too unusual')
_UNUSUAL_TOGETHER = 'an unusual combination of ordinary values'
_UNLIKE_LABEL = 'unlike its label'
_MAX_REASONS = 3
# A statistic is a reason if its p-value is at most this, or the least possible.
_RARE = 0.05


@dataclasses.dataclass(frozen=True)
class Scores:
  """How unlike the run's held-out images B images are.

  Attributes:
    p_values: float64 `[B]`. Of images like the held-out ones, at most a share
      alpha has a p-value of at most alpha; see `conformal`. Lower is stranger.
    distances: what the p-values rank, float64 `[B]`: squared Mahalanobis
      distance of the statistics.
    values: name of a statistic to float64 `[B]`; see `measure.Measured`.
    value_p_values: the two-sided p-value of each statistic alone, `[B]`.
    reasons: in words, what is strange about each image; '' if nothing is.
    maps: how strange each pixel is, float32 `[B, H, W]`, in standard
      deviations of pixels of held-out images.
    code_bits: -log2 p(code | codes before it), float32 `[B, h, w]`, the sum of
      the levels.
    reconstructions: uint8 `[B, H, W, 3]`.
    label_bits: bits per code given the label, `[B]`; None without labels.
    label_probs: p(label | codes) by Bayes' rule, `[B]`; None without labels.
    label_p_values: of held-out images of that label, the share whose label fits
      as badly, `[B]`; None without labels. A class with n held-out lesions has
      p-values of at least 1 / (n + 1).
  """

  p_values: np.ndarray
  distances: np.ndarray
  values: dict[str, np.ndarray]
  value_p_values: dict[str, np.ndarray]
  reasons: list[str]
  maps: np.ndarray
  code_bits: np.ndarray
  reconstructions: np.ndarray
  label_bits: np.ndarray | None = None
  label_probs: np.ndarray | None = None
  label_p_values: np.ndarray | None = None


def score(
  model: measure.Model,
  calibration: reference.Calibration,
  images: np.ndarray,
  labels: Sequence[int] | None = None,
) -> Scores:
  """Scores images.

  Args:
    model: the run's model.
    calibration: of the same run.
    images: uint8 `[B, H, W, 3]`.
    labels: the label of each image, `[B]`; None: not known.

  Raises:
    UserError: wrong images.
  """
  found = measure.measure(model, images, calibration.class_prior)
  values = calibration.table(found.values)
  p_of, high_of = {}, {}
  for i, name in enumerate(calibration.names):
    p_of[name], high_of[name] = conformal.two_sided_p_values(
      calibration.values[:, i], calibration.weights, values[:, i]
    )
  p_values = calibration.p_values(values)
  of_labels = {}
  if labels is not None:
    of_labels = _score_labels(model, calibration, found.codes, labels)
  return Scores(
    p_values=p_values,
    distances=calibration.typical.distances(values),
    values=found.values,
    value_p_values=p_of,
    reasons=_reasons(calibration, values, p_of, high_of, p_values, of_labels),
    maps=calibration.map(found.parts),
    code_bits=found.code_bits,
    reconstructions=found.reconstructions,
    **of_labels,
  )


def _score_labels(
  model: measure.Model,
  calibration: reference.Calibration,
  codes: np.ndarray,
  labels: Sequence[int],
) -> dict[str, np.ndarray]:
  """The fields of `Scores` about labels."""
  labels = np.asarray(labels)
  if (labels == len(model.class_names)).any():
    raise errors.UserError(
      f'the label {len(model.class_names)} stands for any class, which every '
      'image fits; give a class, or no label'
    )
  log_probs = measure.label_log_probs(
    model, codes, labels, calibration.class_prior
  )
  p_values = np.ones(len(labels))
  for label in np.unique(labels):
    held_out, new = calibration.labels == label, labels == label
    p_values[new] = conformal.upper_p_values(
      -calibration.label_log_probs[held_out],
      calibration.weights[held_out],
      -log_probs[new],
    )
  nats = model.code_log_probs(codes, labels).mean((1, 2))
  return {
    'label_bits': -np.float64(nats) / np.log(2),
    'label_probs': np.exp(log_probs),
    'label_p_values': p_values,
  }


def _reasons(
  calibration: reference.Calibration,
  values: np.ndarray,
  p_of: dict[str, np.ndarray],
  high_of: dict[str, np.ndarray],
  p_values: np.ndarray,
  of_labels: dict[str, np.ndarray],
) -> list[str]:
  """Says what is strange about each image, the strangest first."""
  # With few held-out images even the least possible p-value is not small.
  least = 1 / (1 + calibration.weights.sum())
  limit, limit_together = max(_RARE, 2 * least), max(_RARE, least)
  strangeness = np.abs(calibration.typical.standardised(values))
  reasons = []
  for i, row in enumerate(strangeness):
    ordered = sorted(zip(calibration.names, row), key=lambda pair: -pair[1])
    rare = [name for name, _ in ordered if p_of[name][i] <= limit]
    words = [REASONS[n][int(high_of[n][i])] for n in rare[:_MAX_REASONS]]
    if not words and p_values[i] <= limit_together:
      words = [_UNUSUAL_TOGETHER]
    if of_labels and of_labels['label_p_values'][i] <= _RARE:
      words.append(_UNLIKE_LABEL)
    reasons.append(', '.join(words))
  return reasons
