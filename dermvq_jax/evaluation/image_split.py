"""The images of one split, as an evaluation needs them."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dermvq_jax import inference, progress
from dermvq_jax.evaluation import feature_spaces, memorisation


class ImageSplit:
  """A split of a run's images; each thing is computed once, when asked for.

  Asking for `images`, or for anything that is computed from them, keeps all
  images of the split in memory. `bank` alone does not.

  Attributes:
    name: 'train', 'val' or 'test'.
  """

  def __init__(
    self, name: str, records: Sequence[dict[str, Any]], model: inference.Model
  ):
    """Reads nothing yet.

    Args:
      name: the name of the split.
      records: its records, `prepared.Dataset.split`.
      model: the run's model, for reconstructions.
    """
    self.name = name
    self._records = records
    self._model = model
    self._features = {}
    self._banks = {}

  def __len__(self) -> int:
    return len(self._records)

  @functools.cached_property
  def _read(self) -> dict[str, np.ndarray]:
    """Images, labels, ids and groups."""
    indices = progress.bar(range(len(self)), desc=f'{self.name}: read')
    records = [self._records[i] for i in indices]
    columns = {
      key: np.array([record[key].decode() for record in records])
      for key in ('id', 'group')
    }
    return columns | {
      'image': np.stack([record['image'] for record in records]),
      'label': np.array([record['label'] for record in records], np.int32),
    }

  @property
  def images(self) -> np.ndarray:
    """All images, uint8 `[N, H, W, 3]`."""
    return self._read['image']

  @property
  def labels(self) -> np.ndarray:
    """Their labels, int32 `[N]`."""
    return self._read['label']

  def image(self, index: int) -> np.ndarray:
    """One image, uint8 `[H, W, 3]`; the others are not read for it."""
    if '_read' in self.__dict__:
      return self.images[index]
    return self._records[index]['image']

  @functools.cached_property
  def reconstructions(self) -> np.ndarray:
    """All images, encoded and decoded, uint8 `[N, H, W, 3]`."""
    return self._model.reconstruct(self.images)

  def features(self, space: feature_spaces.Features) -> np.ndarray:
    """Features of all images, float32 `[N, F]`."""
    if space not in self._features:
      self._features[space] = feature_spaces.extract(
        space, self.images, f'{self.name}: features'
      )
    return self._features[space]

  def bank(self, space: feature_spaces.Features | None) -> memorisation.Bank:
    """Describes all images, to look for the nearest ones.

    A split whose images are not in memory is read some images at a time.

    Args:
      space: the space of features; None: pixels only.
    """
    if '_read' not in self.__dict__:
      return memorisation.make_bank(
        self._records, space, f'{self.name}: describe'
      )
    return memorisation.Bank(
      pixels=memorisation.describe_in_chunks(self.images),
      features=None if space is None else self.features(space),
      ids=self._read['id'],
      groups=self._read['group'],
    )
