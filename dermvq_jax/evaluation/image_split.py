"""The images of one split, and the values that an evaluation derives."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dermvq_jax import inference, progress
from dermvq_jax.evaluation import feature_spaces, nearest_images


class ImageSplit:
  """A split of a run's images; each value is computed once, when needed.

  Attributes:
    name: 'train', 'val' or 'test'.
    records: the records of the split.
    in_memory: whether all images may be kept in memory.
  """

  def __init__(
    self,
    name: str,
    records: Sequence[dict[str, Any]],
    model: inference.Model,
    *,
    in_memory: bool = True,
  ):
    """Reads nothing yet.

    Args:
      name: the name of the split.
      records: its records, from `prepared.Dataset.split`.
      model: the run's model, for reconstructions.
      in_memory: whether all images may be kept in memory. Otherwise use only
        `image` and `make_bank`.
    """
    self.name = name
    self.records = records
    self.in_memory = in_memory
    self._model = model
    self._features = []  # pairs of a space and features

  def __len__(self) -> int:
    return len(self.records)

  @functools.cached_property
  def _columns(self) -> dict[str, Any]:
    """The fields of all records."""
    indices = progress.bar(
      range(len(self)), desc=f'{self.name}: read', unit='image'
    )
    records = [self.records[i] for i in indices]
    return {
      'images': np.stack([record['image'] for record in records]),
      'labels': np.array([record['label'] for record in records], np.int32),
      'ids': np.array([record['id'].decode() for record in records]),
      'groups': np.array([record['group'].decode() for record in records]),
      'values': [
        {name: value for name, value in record.items() if name != 'image'}
        for record in records
      ],
    }

  @property
  def images(self) -> np.ndarray:
    """All images, uint8 `[N, H, W, 3]`."""
    return self._columns['images']

  @property
  def labels(self) -> np.ndarray:
    """Their labels, int32 `[N]`."""
    return self._columns['labels']

  @property
  def ids(self) -> np.ndarray:
    """Their ids, str `[N]`."""
    return self._columns['ids']

  @property
  def groups(self) -> np.ndarray:
    """Their lesions or patients, str `[N]`."""
    return self._columns['groups']

  def values(self, condition: str) -> np.ndarray:
    """Their values of a condition, int32 `[N]`."""
    values = [record[condition] for record in self._columns['values']]
    return np.array(values, np.int32)

  @functools.cached_property
  def reconstructions(self) -> np.ndarray:
    """All images, encoded and decoded, uint8 `[N, H, W, 3]`."""
    return self._model.reconstruct(self.images)

  def features(self, space: feature_spaces.Features) -> np.ndarray:
    """Features of all images, float32 `[N, F]`."""
    for known, features in self._features:
      if known is space:
        return features
    description = f'{self.name}: features'
    features = feature_spaces.extract(space, self.images, description)
    self._features.append((space, features))
    return features

  def image(self, index: int) -> np.ndarray:
    """One image, uint8 `[H, W, 3]`."""
    if self.in_memory:
      return self.images[index]
    return self.records[index]['image']


def make_bank(
  splits: Sequence[ImageSplit], space: feature_spaces.Features | None
) -> nearest_images.Bank:
  """Describes all images of some splits, one split after the other.

  Args:
    splits: splits in memory, or a single split of any kind.
    space: the space of features; None: compare by pixels only.
  """
  if not splits[0].in_memory:
    [split] = splits
    return nearest_images.make_bank(
      split.records, space, f'{split.name}: describe'
    )
  features = None
  if space is not None:
    features = np.concatenate([split.features(space) for split in splits])
  # Joined first: the last digits of `describe` depend on the number of images.
  images = np.concatenate([split.images for split in splits])
  return nearest_images.Bank(
    pixels=nearest_images.describe(images),
    features=features,
    ids=np.concatenate([split.ids for split in splits]),
    groups=np.concatenate([split.groups for split in splits]),
  )
