"""Evaluates a run: its parts, and the images that it makes."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, files, inference
from dermvq_jax.evaluation import (
  feature_spaces,
  generation_metrics,
  image_split,
  measures,
  memorisation,
  nearest_images,
  results,
  tables,
)
from dermvq_jax.models.priors import sampler
from dermvq_jax.runs import run as run_lib

_CHANNELS = 3
# The classifier's recall of a class is measured on at least this many samples.
_MIN_CLASS_SAMPLES = 25
_MIN_SAMPLES = 10
_NUM_CLOSEST = 24
# Samples are compared with the real images of a split. The real images of
# another split show how close samples can come: the floor.
_FLOOR_SPLIT = {'train': 'val', 'val': 'test', 'test': 'val'}
_HELD_OUT = ('val', 'test')


@dataclasses.dataclass(frozen=True)
class _Subject:
  """What is evaluated, and how its images are compared.

  Attributes:
    model: the run's model.
    splits: the images of the run, by the name of their split.
    split: the name of the split that is evaluated.
    classifier: the run's classifier, if it was trained.
    space: the space of features in which sets of images are compared, if any.
  """

  model: inference.Model
  splits: dict[str, image_split.ImageSplit]
  split: str
  classifier: feature_spaces.Classifier | None
  space: feature_spaces.Features | None

  @property
  def real(self) -> image_split.ImageSplit:
    """The images of the split that is evaluated."""
    return self.splits[self.split]

  @property
  def floor(self) -> image_split.ImageSplit:
    """The other real images."""
    return self.splits[_FLOOR_SPLIT[self.split]]

  @property
  def held_out(self) -> list[image_split.ImageSplit]:
    """All images that no training saw."""
    return [self.splits[name] for name in _HELD_OUT]


@dataclasses.dataclass(frozen=True)
class _Samples:
  """New images, and the real images that they are like.

  Attributes:
    floor_indices: positions in the floor's split, int `[N]`.
    images: a sample for each of these, of its class, uint8 `[N, H, W, 3]`.
    labels: the classes, int32 `[N]`.
    more_images: `images`, followed by more of the classes that have few.
    more_labels: the classes of `more_images`.
  """

  floor_indices: np.ndarray
  images: np.ndarray
  labels: np.ndarray
  more_images: np.ndarray
  more_labels: np.ndarray


def _sample(
  subject: _Subject,
  floor_indices: np.ndarray,
  seed: int,
  controls: sampler.Controls,
) -> _Samples:
  labels = subject.floor.labels[floor_indices]
  counts = np.bincount(labels, minlength=len(subject.model.class_names))
  missing = np.maximum(_MIN_CLASS_SAMPLES - counts, 0)
  more_labels = np.concatenate(
    [labels, np.repeat(np.arange(len(counts)), missing)]
  )
  more_images = subject.model.sample(
    more_labels, seed=seed, show_progress=True, **dataclasses.asdict(controls)
  )
  return _Samples(
    floor_indices=floor_indices,
    images=more_images[: len(labels)],
    labels=labels,
    more_images=more_images,
    more_labels=more_labels,
  )


def _measure_labels(
  subject: _Subject, samples: _Samples
) -> results.LabelsResult:
  real = subject.real
  return measures.measure_labels(
    subject.classifier,
    real=(real.images, real.labels),
    reconstructions=(real.reconstructions, real.labels),
    samples=(samples.more_images, samples.more_labels),
  )


def _measure_generation(
  subject: _Subject, samples: _Samples, independent_codes: np.ndarray
) -> results.GenerationResult:
  """Compares the sets of images that `results` describes with real ones.

  Args:
    subject: what is evaluated; it has a space of features.
    samples: the samples.
    independent_codes: int `[N, h, w]`, from `measures.independent_codes`.
  """
  real, floor, space = subject.real, subject.floor, subject.space
  chosen = samples.floor_indices

  def extract(images: np.ndarray, name: str) -> np.ndarray:
    return feature_spaces.extract(space, images, f'{name}: features')

  # With the classes of the images, where they have any.
  sets = {
    'real': (floor.features(space)[chosen], samples.labels),
    'reconstructions': (
      extract(real.reconstructions, 'reconstructions'),
      real.labels,
    ),
    'real_codes': (
      extract(floor.reconstructions[chosen], 'real_codes'),
      samples.labels,
    ),
    'samples': (extract(samples.images, 'samples'), samples.labels),
    'independent_codes': (
      extract(subject.model.decode(independent_codes), 'independent_codes'),
      None,
    ),
  }
  of_real = real.features(space)
  compared = {
    name: generation_metrics.compare(of_real, features)
    for name, (features, _) in sets.items()
  }
  return results.GenerationResult(
    num_features=of_real.shape[1],
    num_real=len(real),
    floor_split=floor.name,
    sets=compared,
    classes=generation_metrics.compare_classes(
      of_real,
      real.labels,
      {name: pair for name, pair in sets.items() if pair[1] is not None},
      subject.model.class_names,
    ),
    kid_over_independent=measures.ratio(
      compared['samples'].kid, compared['independent_codes'].kid
    ),
  )


def _measure_memorisation(
  subject: _Subject, samples: _Samples
) -> tuple[results.MemorisationResult, dict[str, np.ndarray]]:
  """Returns the result, and the arrays of `nearest_<split>.npz`."""
  # All symmetries of all images are compared, which may take hours in another
  # space than the classifier's.
  space = subject.space if subject.classifier is None else subject.classifier
  held_out = subject.held_out
  banks = {
    'train': subject.splits['train'].bank(space),
    'held_out': nearest_images.join([s.bank(space) for s in held_out]),
  }
  result, arrays = memorisation.measure(
    samples.images,
    np.concatenate([split.reconstructions for split in held_out]),
    banks,
    space,
  )
  return result, {
    **arrays,
    'label': samples.labels,
    'sample_id': sampler.count_within_labels(samples.labels),
    **_closest(subject, samples.images, arrays),
  }


def _closest(
  subject: _Subject, samples: np.ndarray, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The samples closest to training images, as pictures, by each space."""
  banks = {'train': [subject.splits['train']], 'held_out': subject.held_out}
  pictures = {}
  for space in ('pixels', 'features'):
    if f'{space}_ratio' not in arrays:
      continue
    order = np.argsort(arrays[f'{space}_ratio'])[:_NUM_CLOSEST]
    pictures[f'{space}_closest'] = order
    pictures[f'{space}_closest_samples'] = samples[order]
    for bank, splits in banks.items():
      indices = arrays[f'{space}_{bank}_index'][order]
      pictures[f'{space}_closest_{bank}'] = np.stack(
        [_image(splits, int(index)) for index in indices]
      )
  return pictures


def _image(splits: Sequence[image_split.ImageSplit], index: int) -> np.ndarray:
  """The image with this index in the joined splits."""
  for split in splits:
    if index < len(split):
      return split.image(index)
    index -= len(split)
  raise IndexError


def _measure_prior(run: run_lib.Run, subject: _Subject) -> results.PriorResult:
  model, records = subject.model, list(run.codes.split(subject.split))
  codes = np.stack([record['codes'] for record in records])
  return measures.measure_prior(
    model.class_log_likelihoods(codes, show_progress=True),
    np.array([record['label'] for record in records]),
    model.class_names,
    dataset=run.codes.name,
    num_codes=codes[0].size,
    num_values=model.image_size**2 * _CHANNELS,
  )


def _measure_samples(
  run: run_lib.Run,
  subject: _Subject,
  num_samples: int,
  seed: int,
  controls: sampler.Controls,
) -> tuple[results.Evaluation, dict[str, np.ndarray]]:
  """Measures all that needs samples.

  Returns:
    `generation`, `labels` and `memorisation` by name, and the arrays of
    `nearest_<split>.npz`.
  """
  rng = np.random.default_rng(seed)
  chosen = rng.permutation(len(subject.floor))[:num_samples]
  samples = _sample(subject, chosen, seed, controls)
  found = {}
  if subject.classifier is not None:
    found['labels'] = _measure_labels(subject, samples)
  if subject.space is not None:
    train_codes = np.stack(
      [record['codes'] for record in run.codes.split('train')]
    )
    found['generation'] = _measure_generation(
      subject,
      samples,
      measures.independent_codes(train_codes, num_samples, rng),
    )
  found['memorisation'], arrays = _measure_memorisation(subject, samples)
  return found, arrays


def _check_num_samples(subject: _Subject, num_samples: int | None) -> int:
  """Returns the number of samples, which by default is that of the floor.

  Raises:
    UserError: there are too few images to compare with, or the number is out
      of its range.
  """
  real, floor = subject.real, subject.floor
  fewest, most = min(len(real), len(floor)), len(floor)
  if num_samples != 0 and fewest < _MIN_SAMPLES:
    raise errors.UserError(
      f'samples are compared with at least {_MIN_SAMPLES} real images, but '
      f'{real.name} or {floor.name} has {fewest}; give --num_samples=0 to '
      'measure everything else'
    )
  num_samples = most if num_samples is None else num_samples
  if num_samples and not _MIN_SAMPLES <= num_samples <= most:
    raise errors.UserError(
      f'--num_samples is {num_samples}; give a number from {_MIN_SAMPLES} to '
      f'{most}, the number of images in {floor.name}, or 0 for none'
    )
  return num_samples


def result_path(run: run_lib.Run, split: str) -> epath.Path:
  """The file that `evaluate` writes."""
  return run.report_dir / f'evaluate_{split}.json'


def nearest_path(run: run_lib.Run, split: str) -> epath.Path:
  """The file of arrays that `evaluate` writes if there are samples."""
  return run.report_dir / f'nearest_{split}.npz'


def _weights(run: run_lib.Run) -> dict[str, str]:
  return {phase.name: phase.weights_id for phase in run.phases}


def current_result(
  run: run_lib.Run, split: str = 'val'
) -> results.Evaluation | None:
  """Reads what `evaluate` wrote.

  Returns:
    None if there is no result, or if a phase that it evaluated has other
    weights now.

  Raises:
    UserError: the file is damaged.
  """
  path = result_path(run, split)
  if not path.exists():
    return None
  evaluation, weights = results.read(path), _weights(run)
  is_current = all(
    weights.get(phase) == name for phase, name in evaluation.weights.items()
  )
  return evaluation if is_current else None


def evaluate(
  run: run_lib.Run,
  split: str = 'val',
  *,
  space: feature_spaces.Features | None = None,
  num_samples: int | None = None,
  seed: int = 0,
  **controls,
) -> results.Evaluation:
  """Evaluates a run, prints tables, and writes the result to `report/`.

  `evaluate_<split>.json` holds the returned value. With samples,
  `nearest_<split>.npz` has for every sample its `label` and `sample_id` (its
  number in its class), the arrays of `memorisation.measure`, and about the 24
  samples with the lowest ratio in each space `<space>_closest` (their
  positions), `<space>_closest_samples`, `<space>_closest_train` and
  `<space>_closest_held_out` (pictures, uint8 `[24, H, W, 3]`).

  Args:
    run: a run with trained VQ-VAE and prior.
    split: 'train', 'val' or 'test'.
    space: the space of features in which sets of images are compared, such as
      `feature_spaces.Inception(file)`. By default it is the run's classifier,
      if there is one.
    num_samples: how many samples to make; by default as many as there are
      other real images. 0: none.
    seed: the seed of the samples.
    **controls: how to sample; see `sampler.Controls`.

  Raises:
    UserError: the run is not trained, its data are not prepared, a control or
      the number of samples is out of its range, or `space` returns something
      else than features.
  """
  chosen = sampler.Controls(**controls)
  model = inference.Model(run)
  model.check_prior()
  run.codes.check()
  classifier = None
  if run.classifier.has_weights:
    classifier = feature_spaces.Classifier(run)
  subject = _Subject(
    model=model,
    splits={
      name: image_split.ImageSplit(
        name,
        run.images.split(name),
        model,
        # The training images may be too many.
        in_memory=name == split or name in _HELD_OUT,
      )
      for name in ('train', *_HELD_OUT)
    },
    split=split,
    classifier=classifier,
    space=classifier if space is None else space,
  )
  num_samples = _check_num_samples(subject, num_samples)
  evaluation = results.Evaluation(
    split=split,
    dataset=run.images.name,
    seed=seed,
    controls=dataclasses.asdict(chosen),
    space=_name(subject.space),
    weights=_weights(run),
    made_by=results.MadeBy(**run_lib.made_by()),
    prior=_measure_prior(run, subject),
    reconstruction=measures.measure_reconstruction(
      subject.real.images,
      subject.real.reconstructions,
      run.vqvae.facts['train_variance'],
    ),
  )
  run.report_dir.mkdir(parents=True, exist_ok=True)
  nearest = nearest_path(run, split)
  nearest.unlink(missing_ok=True)  # It belongs to an earlier evaluation.
  if num_samples:
    found, arrays = _measure_samples(run, subject, num_samples, seed, chosen)
    evaluation = dataclasses.replace(evaluation, **found)
    with files.replacing(nearest) as file:
      np.savez_compressed(file, **arrays)
    logging.info('Wrote %s', nearest)
  for table in tables.of_evaluation(evaluation):
    logging.info('\n%s', table.as_text())
  if num_samples and subject.space is None:
    logging.info(
      '\nSamples were not compared with real images, because the run has no '
      'classifier. Train one with dermvq train --config=classifier '
      '--workdir=%s, or give --inception.',
      run.workdir,
    )
  path = result_path(run, split)
  results.write(path, evaluation)
  logging.info('Wrote %s', path)
  return evaluation


def _name(space: feature_spaces.Features | None) -> str | None:
  if space is None:
    return None
  return getattr(space, '__name__', type(space).__name__)
