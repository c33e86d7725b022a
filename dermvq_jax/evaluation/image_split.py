"""The images of one split, as an evaluation needs them."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dermvq_jax import inference, progress
from dermvq_jax.evaluation import feature_spaces, nearest_images


class ImageSplit:
  """A split of a run's images; each thing is computed once, when asked for.

  Attributes:
    name: 'train', 'val' or 'test'.
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
      in_memory: whether all images may be kept in memory. Otherwise ask only
        for `bank` and single images.
    """
    self.name = name
    self._records = records
    self._model = model
    self._in_memory = in_memory
    self._features = []  # pairs of a space and features

  def __len__(self) -> int:
    return len(self._records)

  @functools.cached_property
  def _columns(self) -> dict[str, np.ndarray]:
    """All fields of the records, each as one array."""
    indices = progress.bar(range(len(self)), desc=f'{self.name}: read')
    records = [self._records[i] for i in indices]
    return {
      'images': np.stack([record['image'] for record in records]),
      'labels': np.array([record['label'] for record in records], np.int32),
      'ids': np.array([record['id'].decode() for record in records]),
      'groups': np.array([record['group'].decode() for record in records]),
    }

  @property
  def images(self) -> np.ndarray:
    """All images, uint8 `[N, H, W, 3]`."""
    return self._columns['images']

  @property
  def labels(self) -> np.ndarray:
    """Their labels, int32 `[N]`."""
    return self._columns['labels']

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

  def bank(self, space: feature_spaces.Features | None) -> nearest_images.Bank:
    """Descriptions of all images, among which the nearest ones are found.

    Args:
      space: the space of features; None: compare by pixels only.
    """
    if not self._in_memory:
      return nearest_images.make_bank(
        self._records, space, f'{self.name}: describe'
      )
    return nearest_images.Bank(
      pixels=nearest_images.describe(self.images),
      features=None if space is None else self.features(space),
      ids=self._columns['ids'],
      groups=self._columns['groups'],
    )

  def image(self, index: int) -> np.ndarray:
    """One image, uint8 `[H, W, 3]`."""
    if self._in_memory:
      return self.images[index]
    return self._records[index]['image']
