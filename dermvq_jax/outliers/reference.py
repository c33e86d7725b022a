"""What a run's own images look like to it: what new images are ranked among.

It is computed once from the training and validation images, and stored in the
run, so that later calls need no data. No weights learn from validation images;
only the step whose weights are kept was chosen by their mean.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, files, progress
from dermvq_jax.outliers import conformal, drift, measure, typicality
from dermvq_jax.runs import run as run_lib

# Change it whenever statistics or maps change.
_VERSION = 1
_NUM_FIT = 1000  # training images that say what is typical
_SEED = 0
# Whether the images are reconstructed first -> the name of the file.
_FILES = {False: 'outliers.npz', True: 'outliers_reconstructed.npz'}
_MIN_HELD_OUT = 10
_AT_ONCE = 128
_TINY = 1e-12
# In maps: only the error sees single pixels, and so thin lines.
_ERROR_WEIGHT = 2


@dataclasses.dataclass(frozen=True)
class Calibration:
  """The held-out images, as a run sees them.

  S statistics, N held-out images, C classes.

  Attributes:
    names: the names of the statistics.
    typical: what is typical of training images.
    values: the statistics of the held-out images, float64 `[N, S]`.
    groups: their lesions, `[N]`.
    labels: their labels, int `[N]`.
    label_log_probs: log p(their label | their codes), float64 `[N]`.
    class_prior: how frequent the classes are in training, `[C]`.
    parts: name of a part of the map to its mean and standard deviation.
  """

  names: tuple[str, ...]
  typical: typicality.Typical
  values: np.ndarray
  groups: np.ndarray
  labels: np.ndarray
  label_log_probs: np.ndarray
  class_prior: np.ndarray
  parts: dict[str, tuple[float, float]]

  @functools.cached_property
  def weights(self) -> np.ndarray:
    """`conformal.group_weights` of the held-out images, `[N]`."""
    return conformal.group_weights(self.groups)

  def table(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Statistics by name as columns, float64 `[B, S]`."""
    return np.stack([values[name] for name in self.names], axis=1)

  def p_values(self, values: np.ndarray) -> np.ndarray:
    """Combined p-values of statistics `[B, S]`, float64 `[B]`."""
    distances = self.typical.distances
    return conformal.upper_p_values(
      distances(self.values), self.weights, distances(values)
    )

  def drift(
    self, values: np.ndarray, groups: np.ndarray, **kwargs: int
  ) -> drift.Drift:
    """Tests whether images come from where the held-out ones come from.

    Args:
      values: their statistics, `[B, S]`.
      groups: their lesions, `[B]`.
      **kwargs: seed and number of permutations, see `drift.test`.

    Returns:
      The test of the statistics, and of the logarithm of their distance, which
      comes last.
    """

    def extended(part):
      distances = self.typical.distances(part)
      return np.column_stack([part, np.log(distances + _TINY)])

    return drift.test(
      extended(self.values), self.groups, extended(values), groups, **kwargs
    )

  def map(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """How strange each pixel is: the mean of the standardised parts.

    Args:
      parts: `Measured.parts`, `[B, H, W]` each.

    Returns:
      float32 `[B, H, W]`, in standard deviations of pixels of held-out images.
    """
    names = list(self.parts)
    standard = [(parts[n] - self.parts[n][0]) / self.parts[n][1] for n in names]
    weights = [_ERROR_WEIGHT if name == 'error' else 1 for name in names]
    return np.average(standard, axis=0, weights=weights).astype(np.float32)


def path(run: run_lib.Run, reconstructed: bool = False) -> epath.Path:
  """The file that holds a run's calibration; see `load`."""
  return run.report_dir / _FILES[reconstructed]


def _identity(run: run_lib.Run) -> str:
  """What a calibration depends on: weights, data, and the statistics."""
  weights = {p.name: p.weights_id for p in (run.vqvae, run.prior)}
  data = run.vqvae.facts.get('fingerprint', {})
  return json.dumps(
    {'version': _VERSION, 'weights': weights, 'data': data}, sort_keys=True
  )


def stored(run: run_lib.Run, reconstructed: bool = False) -> Calibration | None:
  """Reads the calibration of a run as `load`; None if it must be computed."""
  return _read(path(run, reconstructed), _identity(run))


def load(
  run: run_lib.Run, model: measure.Model, *, reconstructed: bool = False
) -> Calibration:
  """Reads the calibration of a run; computes and stores it if there is none.

  It is computed again if the weights of the VQ-VAE or of the prior changed, or
  if an earlier version of the package wrote it.

  Args:
    run: a run with trained VQ-VAE and prior.
    model: the run's model.
    reconstructed: whether the images are encoded and decoded before they are
      measured. Samples are like these at best: they lack the same detail.

  Raises:
    UserError: the run is not trained, its images are needed and not found, or
      there are too few of them.
  """
  file, found = path(run, reconstructed), stored(run, reconstructed)
  if found is None:
    logging.info(
      'Measuring up to %d training images and all validation images of the '
      'run, once.',
      _NUM_FIT,
    )
    arrays = _compute(run, model, reconstructed)
    run.report_dir.mkdir(parents=True, exist_ok=True)
    with files.replacing(file) as opened:
      np.savez_compressed(opened, identity=np.array(_identity(run)), **arrays)
    logging.info('Wrote %s', file)
    found = _from_arrays(arrays)
  return found


def copy(run: run_lib.Run, exported: run_lib.Run):
  """Copies what is stored of a run's images to its export.

  Numbers take the place of the names of lesions or patients.
  """
  for reconstructed in _FILES:
    file = path(run, reconstructed)
    if stored(run, reconstructed) is None:
      continue
    arrays = files.read_arrays(file)
    _, numbers = np.unique(arrays['groups'], return_inverse=True)
    # In the same order, so that results stay the same to the last bit.
    arrays['groups'] = np.array([f'{number:08}' for number in numbers])
    with path(exported, reconstructed).open('wb') as opened:
      np.savez_compressed(opened, **arrays)


def _read(file: epath.Path, identity: str) -> Calibration | None:
  """Reads a calibration; None if there is none for this identity."""
  if not file.is_file():  # A link could lead to a device.
    return None
  try:
    arrays = files.read_arrays(file)
    if str(arrays.pop('identity')) != identity:
      return None
    return _from_arrays(arrays)
  except (ValueError, KeyError, TypeError) as e:
    raise errors.UserError(
      f'{file} is damaged ({errors.one_line(e)}); remove it, and the same '
      'command makes it again'
    ) from e


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Calibration:
  names = tuple(arrays['names'].tolist())
  if arrays['values'].shape[1:] != arrays['fit_values'].shape[1:]:
    raise ValueError('its arrays do not fit together')
  return Calibration(
    names=names,
    typical=typicality.fit(arrays['fit_values']),
    values=arrays['values'],
    groups=arrays['groups'],
    labels=arrays['labels'],
    label_log_probs=arrays['label_log_probs'],
    class_prior=arrays['class_prior'],
    parts={
      name: (float(mean), float(deviation))
      for name, (mean, deviation) in zip(
        arrays['part_names'].tolist(), arrays['part_scales']
      )
    },
  )


def _compute(
  run: run_lib.Run, model: measure.Model, reconstructed: bool
) -> dict[str, np.ndarray]:
  """The arrays of a calibration."""
  held_out, training = run.images.split('val'), run.images.split('train')
  if len(held_out) < _MIN_HELD_OUT:
    raise errors.UserError(
      f'the run has {len(held_out)} validation images, and new images are '
      f'ranked among at least {_MIN_HELD_OUT}; prepare more images'
    )
  counts = np.bincount(
    run.images.labels('train'), minlength=len(model.class_names)
  )
  class_prior = counts / counts.sum()
  rng = np.random.default_rng(_SEED)
  chosen = rng.permutation(len(training))[:_NUM_FIT]
  fit = _Gathered(model, class_prior, reconstructed, with_labels=False)
  fit.add(training, chosen, 'training images')
  found = _Gathered(model, class_prior, reconstructed, with_labels=True)
  found.add(held_out, range(len(held_out)), 'validation images')
  names = sorted(found.values)
  return {
    'names': np.array(names),
    'fit_values': np.stack([np.concatenate(fit.values[n]) for n in names], 1),
    'values': np.stack([np.concatenate(found.values[n]) for n in names], 1),
    'groups': np.array(found.groups),
    'labels': np.array(found.labels, np.int32),
    'label_log_probs': np.concatenate(found.label_log_probs),
    'class_prior': class_prior,
    **found.scales(),
  }


class _Gathered:
  """What is kept of many images: few of them are in memory at a time."""

  def __init__(
    self,
    model: measure.Model,
    class_prior: np.ndarray,
    reconstructed: bool,
    *,
    with_labels: bool,
  ):
    self._model, self._class_prior = model, class_prior
    self._reconstructed = reconstructed
    self._with_labels = with_labels
    self.values: dict[str, list[np.ndarray]] = {}
    self.groups: list[str] = []
    self.labels: list[int] = []
    self.label_log_probs: list[np.ndarray] = []
    self._moments: dict[str, np.ndarray] = {}  # count, sum, sum of squares

  def add(
    self,
    source: Sequence[dict[str, Any]],
    indices: Sequence[int],
    description: str,
  ):
    """Measures the records with these indices."""
    with progress.bar(total=len(indices), desc=description, unit='image') as b:
      for start in range(0, len(indices), _AT_ONCE):
        records = [source[int(i)] for i in indices[start : start + _AT_ONCE]]
        self._add(records)
        b.update(len(records))

  def _add(self, records: Sequence[dict[str, Any]]):
    images = np.stack([record['image'] for record in records])
    if self._reconstructed:
      images = self._model.reconstruct(images)
    found = measure.measure(self._model, images, self._class_prior)
    for name, values in found.values.items():
      self.values.setdefault(name, []).append(values)
    for name, part in found.parts.items():
      part = np.float64(part)
      moments = np.array([part.size, part.sum(), np.square(part).sum()])
      self._moments[name] = self._moments.get(name, 0) + moments
    self.groups += [record['group'].decode() for record in records]
    labels = [int(record['label']) for record in records]
    self.labels += labels
    if self._with_labels:
      log_probs = measure.label_log_probs(
        self._model, found.codes, labels, self._class_prior
      )
      self.label_log_probs.append(log_probs)

  def scales(self) -> dict[str, np.ndarray]:
    """The mean and the standard deviation of each part of the map."""
    count, total, squares = np.array(list(self._moments.values())).T
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, _TINY))
    return {
      'part_names': np.array(list(self._moments)),
      'part_scales': np.stack([mean, deviation], 1),
    }
