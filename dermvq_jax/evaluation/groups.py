"""Whether some groups of images are modelled worse: by condition and value."""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from dermvq_jax.evaluation import results, sample_measures
from dermvq_jax.outliers import reference, scoring
from dermvq_jax.runs import run as run_lib

_CONFIDENCE = 0.95
_CHUNK = 64  # images that are scored together


def estimate(
  values: np.ndarray, lesions: np.ndarray
) -> results.Estimate | None:
  """Returns a mean over lesions with its interval.

  Images of a lesion are alike, so each lesion counts once, with the mean of its
  images. The interval is Student's, which is wide where lesions are few.

  Args:
    values: float `[N]`, one for each image; bool if the mean is a share, whose
      interval ends at 0 and 1.
    lesions: the lesion or patient of each image, `[N]`.

  Returns:
    None for fewer than two lesions: they have no interval.
  """
  _, index = np.unique(lesions, return_inverse=True)
  means = np.bincount(index, np.float64(values)) / np.bincount(index)
  if len(means) < 2:
    return None
  error = scipy.stats.sem(means)
  reach = error * scipy.stats.t.ppf((1 + _CONFIDENCE) / 2, len(means) - 1)
  mean = float(means.mean())
  low, high = float(mean - reach), float(mean + reach)
  if values.dtype == bool:
    low, high = max(low, 0.0), min(high, 1.0)
  return results.Estimate(mean, low, high)


def measure(
  values: Mapping[str, np.ndarray],
  conditions: Mapping[str, Sequence[str]],
  lesions: np.ndarray,
  measured: Mapping[str, np.ndarray | None],
) -> dict[str, dict[str, results.GroupResult]]:
  """Measures the images of each value of each condition.

  Args:
    values: for each condition the number of each image's value, int `[N]`; the
      number of values for images whose value is not known.
    conditions: the names of the values of each condition.
    lesions: the lesion or patient of each image, `[N]`.
    measured: for each field of `GroupResult` float `[N]`, or None if it was not
      measured.

  Returns:
    By condition and value; values that no image has are left out.
  """
  found = {}
  for name, names in conditions.items():
    found[name] = {}
    for number, value in enumerate([*names, results.NOT_KNOWN]):
      chosen = values[name] == number
      if chosen.any():
        found[name][value] = results.GroupResult(
          num_images=int(chosen.sum()),
          **{
            field: None if x is None else estimate(x[chosen], lesions[chosen])
            for field, x in measured.items()
          },
        )
  return found


def of_subject(
  run: run_lib.Run,
  subject: sample_measures.Subject,
  bits: Mapping[str, np.ndarray | None],
) -> dict[str, dict[str, results.GroupResult]]:
  """Measures the groups of a split's images with the same value of a condition.

  Args:
    run: the run.
    subject: what is evaluated. Without a classifier there is no `agreement`.
    bits: the fields of `GroupResult` about bits, float `[N]` each.

  Returns:
    As `measure`; empty if the images have no conditions. Without a stored
    calibration of `dermvq score` there is no `flagged`.
  """
  conditions = dict(run.images.facts['conditions'])
  del conditions['label']
  if not conditions:
    return {}
  real = subject.real
  differences = zip(real.images, real.reconstructions)
  squares = [np.square(a / 255.0 - b / 255.0).mean() for a, b in differences]
  measured = {**bits, 'mse': np.array(squares)}
  if subject.classifier:
    predicted = subject.classifier.predict(real.reconstructions)
    measured['agreement'] = predicted == real.labels
  calibration = reference.stored(run)
  if calibration:
    p_values = [
      scoring.score(
        subject.model, calibration, real.images[i : i + _CHUNK]
      ).p_values
      for i in range(0, len(real.images), _CHUNK)
    ]
    measured['flagged'] = np.concatenate(p_values) <= results.FLAGGED_AT
  return measure(
    {name: real.values(name) for name in conditions},
    conditions,
    real.groups,
    measured,
  )
