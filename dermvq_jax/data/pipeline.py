"""The grain pipeline of both phases.

The global batch of a step is a pure function of (seed, step): any number of
workers and hosts sees the same ones, and a run resumes by starting at its step.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from dermvq_jax.data import augment as augment_lib

Batch = dict[str, np.ndarray]
# Batches made ahead: a step never waits, and memory stays small.
_PREFETCH = 4
_THREADS = 4
# Decoded records in memory, a process: all of 20,000 images of 64 px.
_KEPT_BYTES = 2**28


class _Padded:
  """A source lengthened to a multiple of the batch size; `mask` 0 marks it."""

  def __init__(self, source: Any, batch_size: int):
    self._source = source
    self._length = -(-len(source) // batch_size) * batch_size

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> dict[str, Any]:
    real = index < len(self._source)
    record = self._source[index if real else 0]
    return {**record, 'mask': np.float32(real)}


class _Kept:
  """Some features of a source, which stay in memory once they were read."""

  def __init__(self, source: Any, keys: Sequence[str]):
    self._source = source
    self._keys = keys
    self._records: dict[int, dict[str, Any]] = {}
    self._bytes = 0

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._records.get(index)
    if record is None:
      whole = self._source[index]
      record = {key: whole[key] for key in self._keys}
      size = sum(np.asarray(value).nbytes for value in record.values())
      if self._bytes + size <= _KEPT_BYTES:
        self._records[index] = record
        self._bytes += size
    return dict(record)


def _select(dataset: grain.MapDataset, keys: Sequence[str]) -> grain.MapDataset:
  return dataset.map(lambda record: {key: record[key] for key in keys})


def _iterate(dataset: grain.MapDataset, num_workers: int) -> Iterator[Batch]:
  options = grain.ReadOptions(
    num_threads=_THREADS, prefetch_buffer_size=_PREFETCH
  )
  dataset = dataset.to_iter_dataset(options)
  if num_workers:
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=num_workers, per_worker_buffer_size=_PREFETCH
      )
    )
  return iter(dataset)


def train_batches(
  source: Any,
  *,
  batch_size: int,
  seed: int,
  keys: Sequence[str],
  start_step: int = 0,
  augment: augment_lib.Augment | None = None,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
) -> Iterator[Batch]:
  """Endless shuffled, augmented batches from `start_step` on.

  Decoded records stay in memory, 256 MiB of them a process: reading them again
  in each epoch would cost twice as much as all the rest.

  Args:
    source: random access source of records, for example a TFDS data source.
    batch_size: global batch size.
    seed: seeds order and augmentation.
    keys: features to read from each record.
    start_step: the step of the first batch returned.
    augment: applied to each record.
    process_index: this host, which gets every `process_count`-th example.
    process_count: number of hosts; must divide `batch_size`.
    num_workers: worker processes; 0 reads in threads of this process.

  Yields:
    Batches of `batch_size // process_count` examples.
  """
  dataset = grain.MapDataset.source(_Kept(source, keys))
  dataset = dataset.seed(seed).shuffle().repeat()
  if augment is not None:
    dataset = dataset.random_map(augment)
  # Sliced after random_map: then augmentations do not depend on the hosts.
  dataset = dataset[process_index::process_count]
  dataset = dataset.batch(batch_size // process_count, drop_remainder=True)
  return _iterate(dataset[start_step:], num_workers)


def eval_batches(
  source: Any,
  *,
  batch_size: int,
  keys: Sequence[str],
  augment: augment_lib.Augment | None = None,
  seed: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
) -> Iterator[Batch]:
  """Every example once, in order; the last batch is padded.

  Arguments are those of `train_batches`.

  Yields:
    Batches with a feature `mask`, float32 `[B]`: 1 for examples, 0 for padding.
  """
  dataset = grain.MapDataset.source(_Padded(source, batch_size))
  dataset = _select(dataset, (*keys, 'mask'))
  if augment is not None:
    dataset = dataset.seed(seed).random_map(augment)
  dataset = dataset[process_index::process_count]
  dataset = dataset.batch(batch_size // process_count)
  return _iterate(dataset, num_workers)
