"""From records to batches, with grain; the same for all models.

The global batch of a step is a pure function of (seed, step). So it does not
depend on the number of workers and hosts, and a run resumes at any step.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from dermvq_jax.data import augment as augment_lib

Batch = dict[str, np.ndarray]
# Batches that are made ahead: enough that a step never waits, and few enough to
# take little memory.
_PREFETCH = 4
_THREADS = 4
# Decoded records that each process keeps: 20,000 images of 64 px.
CACHE_BYTES = 2**28


class _Selected:
  """A source whose records have only the fields `keys`."""

  def __init__(self, source: Any, keys: Sequence[str]):
    self._source = source
    self._keys = keys

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._source[index]
    return {key: record[key] for key in self._keys}


class _Padded:
  """A source padded to a multiple of the batch size; `mask` 0 is padding."""

  def __init__(self, source: Any, batch_size: int):
    self._source = source
    self._length = -(-len(source) // batch_size) * batch_size

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> dict[str, Any]:
    is_real = index < len(self._source)
    record = self._source[index if is_real else 0]
    return {**record, 'mask': np.float32(is_real)}


class _Cached:
  """A source whose records stay in memory after the first reading."""

  def __init__(self, source: Any):
    self._source = source
    self._records: dict[int, dict[str, Any]] = {}
    self._bytes = 0

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._records.get(index)
    if record is None:
      record = self._source[index]
      size = sum(np.asarray(value).nbytes for value in record.values())
      if self._bytes + size <= CACHE_BYTES:
        self._records[index] = record
        self._bytes += size
    return dict(record)


class _Picked:
  """The records of a source at some positions, which may repeat."""

  def __init__(self, source: Any, indices: np.ndarray):
    self._source = source
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._source[int(self._indices[index])]


def balance(labels: np.ndarray, strength: float) -> np.ndarray:
  """Chooses records so that rare classes come more often.

  A class of n images gets a share proportional to n^(1 - strength). All records
  are chosen, those of the class that gains least once.

  Args:
    labels: classes of the records, int `[N]`.
    strength: from 0, the classes as they are, to 1, all classes equally often.

  Returns:
    Positions of the records, int `[M]`, sorted by class; M is at least N.
  """
  classes, counts = np.unique(labels, return_counts=True)
  times = (counts.max() / counts) ** strength  # how often a record is chosen
  return np.concatenate(
    [
      np.resize(np.flatnonzero(labels == label), round(count * times_))
      for label, count, times_ in zip(classes, counts, times)
    ]
  )


def _end_with_parent(index: int, count: int):
  """Ends this worker process when the process that started it is gone.

  A process that is killed, for example for lack of memory, ends no workers.
  """
  del index, count

  def wait():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _iterate(dataset: grain.MapDataset, num_workers: int) -> Iterator[Batch]:
  options = grain.ReadOptions(
    num_threads=_THREADS, prefetch_buffer_size=_PREFETCH
  )
  dataset = dataset.to_iter_dataset(options)
  if num_workers:
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=num_workers, per_worker_buffer_size=_PREFETCH
      ),
      _end_with_parent,
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
  indices: np.ndarray | None = None,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
) -> Iterator[Batch]:
  """Endless shuffled, augmented batches, starting with step `start_step`.

  Each process keeps up to 256 MiB of decoded records in memory. Reading them
  again in each epoch would take twice as long as everything else.

  Args:
    source: random-access source of records, for example a split of a dataset.
    batch_size: global batch size.
    seed: seed of the order and of the augmentation.
    keys: fields to read from each record.
    start_step: step of the first batch.
    augment: the augmentation that is applied to each record.
    indices: positions of the records of an epoch, from `balance`; None: each
      record once.
    process_index: number of this host, which gets every `process_count`-th
      example.
    process_count: number of hosts; must divide `batch_size`.
    num_workers: number of worker processes; 0 reads in threads of this process.

  Yields:
    Batches of `batch_size // process_count` examples.
  """
  source = _Cached(_Selected(source, keys))
  if indices is not None:
    source = _Picked(source, indices)
  dataset = grain.MapDataset.source(source)
  dataset = dataset.seed(seed).shuffle().repeat()
  if augment is not None:
    dataset = dataset.random_map(augment)
  # After random_map, so that augmentations do not depend on the hosts.
  dataset = dataset[process_index::process_count]
  dataset = dataset.batch(batch_size // process_count, drop_remainder=True)
  return _iterate(dataset[start_step:], num_workers)


def eval_batches(
  source: Any,
  *,
  batch_size: int,
  keys: Sequence[str],
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
) -> Iterator[Batch]:
  """Batches of every example once, in order; the last batch is padded.

  The arguments are the same as in `train_batches`.

  Yields:
    Batches that also have `mask`, float32 `[B]`: 1 for examples, 0 for padding.
  """
  padded = _Padded(_Selected(source, keys), batch_size)
  dataset = grain.MapDataset.source(padded)[process_index::process_count]
  dataset = dataset.batch(batch_size // process_count)
  return _iterate(dataset, num_workers)
