"""Measures the images that a run makes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dermvq_jax import inference
from dermvq_jax.evaluation import (
  feature_spaces,
  generation_metrics,
  image_split,
  measures,
  memorisation,
  results,
)
from dermvq_jax.inference import classifier as classifier_lib
from dermvq_jax.models.priors import randomness

# The classifier's recall of a class is measured on at least this many samples.
_MIN_CLASS_SAMPLES = 25
_NUM_CLOSEST = 24
# Samples are compared with the real images of a split. The real images of
# another split show how close samples can come: the floor.
_FLOOR_SPLIT = {'train': 'val', 'val': 'test', 'test': 'val'}
HELD_OUT = ('val', 'test')


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is evaluated, and how its images are compared.

  Attributes:
    model: the run's model.
    splits: the images of the run, by the name of their split.
    split: the name of the split that is evaluated.
    classifier: a trained classifier, if there is one; it judges samples.
    space: the space of features in which sets of images are compared, if any.
  """

  model: inference.Model
  splits: dict[str, image_split.ImageSplit]
  split: str
  classifier: classifier_lib.Classifier | None
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
    return [self.splits[name] for name in HELD_OUT]


@dataclasses.dataclass(frozen=True)
class _Samples:
  """New images, and the real images whose classes they have.

  Attributes:
    floor_indices: positions in the floor's split, int `[N]`.
    images: a sample of the class of each of these, uint8 `[N, H, W, 3]`.
    labels: the classes, int32 `[N]`.
    more_images: `images`, followed by more images of the classes that have few.
    more_labels: the classes of `more_images`.
  """

  floor_indices: np.ndarray
  images: np.ndarray
  labels: np.ndarray
  more_images: np.ndarray
  more_labels: np.ndarray


def _sample(
  subject: Subject,
  floor_indices: np.ndarray,
  seed: int,
  sampling: Mapping[str, Any],
) -> _Samples:
  labels = subject.floor.labels[floor_indices]
  counts = np.bincount(labels, minlength=len(subject.model.class_names))
  missing = np.maximum(_MIN_CLASS_SAMPLES - counts, 0)
  more_labels = np.concatenate(
    [labels, np.repeat(np.arange(len(counts)), missing)]
  )
  more_images = subject.model.sample(
    more_labels, seed=seed, show_progress=True, **sampling
  )
  return _Samples(
    floor_indices=floor_indices,
    images=more_images[: len(labels)],
    labels=labels,
    more_images=more_images,
    more_labels=more_labels,
  )


def _measure_labels(
  subject: Subject, samples: _Samples
) -> results.LabelsResult:
  real = subject.real
  return measures.measure_labels(
    subject.classifier,
    real=(real.images, real.labels),
    reconstructions=(real.reconstructions, real.labels),
    samples=(samples.more_images, samples.more_labels),
  )


def _measure_generation(
  subject: Subject, samples: _Samples, independent_codes: np.ndarray
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

  # Features and classes; independent codes have no class.
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
  subject: Subject, samples: _Samples
) -> tuple[results.MemorisationResult, dict[str, np.ndarray]]:
  """Returns the result, and the arrays of `nearest_<split>.npz`."""
  # All symmetries of all images are compared, which may take hours in a space
  # other than the classifier's.
  space = subject.space if subject.classifier is None else subject.classifier
  held_out = subject.held_out
  banks = {
    'train': image_split.make_bank([subject.splits['train']], space),
    'held_out': image_split.make_bank(held_out, space),
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
    'sample_id': randomness.count_within_labels(samples.labels),
    **_closest(subject, samples.images, arrays),
  }


def _closest(
  subject: Subject, samples: np.ndarray, arrays: dict[str, np.ndarray]
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


def measure_samples(
  subject: Subject,
  train_codes: Sequence[dict[str, Any]],
  num_samples: int,
  *,
  seed: int,
  sampling: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Makes samples and measures them.

  Args:
    subject: what is evaluated.
    train_codes: the records of the training split of codes.
    num_samples: how many samples to make.
    seed: the seed of the samples.
    sampling: how to sample: further arguments of `Model.sample`.

  Returns:
    Those of the fields `texture`, `generation`, `labels` and `memorisation` of
    `results.Evaluation` that can be measured, and the arrays of
    `nearest_<split>.npz`.
  """
  rng = np.random.default_rng(seed)
  chosen = rng.permutation(len(subject.floor))[:num_samples]
  samples = _sample(subject, chosen, seed, sampling)
  found = {
    'texture': measures.measure_texture(
      subject.real.images,
      {
        'real': subject.floor.images,
        'reconstructions': subject.real.reconstructions,
        'samples': samples.images,
      },
    )
  }
  if subject.classifier is not None:
    found['labels'] = _measure_labels(subject, samples)
  if subject.space is not None:
    codes = np.stack([record['codes'] for record in train_codes])
    found['generation'] = _measure_generation(
      subject,
      samples,
      measures.independent_codes(codes, num_samples, rng),
    )
  found['memorisation'], arrays = _measure_memorisation(subject, samples)
  return found, arrays
