"""What a dataset says about the pixels of its splits."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.data_sources import array_record

from dermvq_jax import errors

_FINGERPRINT_DIGITS = 16
# A variance below this is zero, but for rounding errors.
_NO_VARIANCE = 1e-9


class Statistics:
  """The fingerprint of a split and, of the training split, its variance."""

  def __init__(self, split: str):
    self._split = split
    self._digest = hashlib.sha256()
    self._total, self._total_squares = 0.0, 0.0
    self._num_values = self._num_images = 0

  def add(self, identity: Any, pixels: np.ndarray) -> None:
    """Adds an image; the order of the images counts.

    Args:
      identity: what the fingerprint says of the image but its pixels, as JSON
        values.
      pixels: uint8 `[size, size, 3]`.
    """
    self._digest.update(json.dumps(identity).encode() + pixels.tobytes())
    self._num_images += 1
    if self._split == 'train':
      values = pixels.astype(np.float64) / 255
      self._total += values.sum()
      self._total_squares += np.square(values).sum()
      self._num_values += values.size

  def store(self, metadata: dict[str, Any]) -> None:
    """Puts them into the metadata of the dataset.

    Raises:
      UserError: all pixels of all training images are the same.
    """
    fingerprint = self._digest.hexdigest()[:_FINGERPRINT_DIGITS]
    metadata['fingerprint'][self._split] = fingerprint
    if not self._num_values:
      return
    mean = self._total / self._num_values
    variance = self._total_squares / self._num_values - mean**2
    if variance < _NO_VARIANCE:
      raise errors.UserError(
        f'all pixels of all {self._num_images} training images have the same '
        f'value, {255 * mean:.0f}; look at the images and save them again'
      )
    # The variance of all values in [0, 1] is the denominator of NMSE.
    metadata['train_variance'] = variance


def of_written(
  info: tfds.core.DatasetInfo, split: str, identities: Iterable[list[Any]]
) -> None:
  """Stores the statistics of a split that is written, from its files.

  Args:
    info: the description of the dataset, which gets the statistics.
    split: the name of the split.
    identities: see `Statistics.add`, in the order that counts. The first item
      of each is the id.

  Raises:
    UserError: see `Statistics.store`.
  """
  undecoded = array_record.ArrayRecordDataSource(
    info, split=split, decoders={'image': tfds.decode.SkipDecoding()}
  )
  positions = {undecoded[i]['id']: i for i in range(len(undecoded))}
  source = array_record.ArrayRecordDataSource(info, split=split)
  summary = Statistics(split)
  for identity in identities:
    record = source[positions[identity[0].encode()]]
    summary.add(identity, record['image'])
  summary.store(info.metadata)
