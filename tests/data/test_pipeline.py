import itertools
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from dermvq_jax.data import augment, pipeline

_N, _BATCH = 22, 8  # The last batch of an epoch is not full.
_KEYS = ('image', 'id')
_AUGMENT = augment.Augment(
  flips=True, rgb_shift_probability=0.5, cutout_probability=0.5
)


def _source(n=_N):
  images = np.random.default_rng(0).integers(1, 256, (n, 6, 6, 3), np.uint8)
  return [
    {'image': image, 'id': i, 'name': f'{i}'} for i, image in enumerate(images)
  ]


def _take(batches, n):
  return list(itertools.islice(batches, n))


def _train(n=6, **kwargs):
  kwargs = (
    dict(batch_size=_BATCH, seed=3, keys=_KEYS, augment=_AUGMENT) | kwargs
  )
  return _take(pipeline.train_batches(_source(), **kwargs), n)


def _eval(n=_N, **kwargs):
  kwargs = dict(batch_size=_BATCH, keys=_KEYS) | kwargs
  return list(pipeline.eval_batches(_source(n), **kwargs))


def _assert_same(actual, expected):
  assert len(actual) == len(expected)
  for a, b in zip(actual, expected):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def _join(hosts):
  """Joins to global batches: host p of P has the examples p, p + P, ..."""
  return [
    {
      key: np.stack([p[key] for p in parts], 1).reshape(
        -1, *parts[0][key].shape[1:]
      )
      for key in parts[0]
    }
    for parts in zip(*hosts, strict=True)
  ]


def _ids(batches):
  return np.concatenate([batch['id'] for batch in batches])


# Training.


def test_batches():
  for batch in _train():
    assert batch.keys() == {'image', 'id', 'target'}
    assert batch['image'].shape == batch['target'].shape == (_BATCH, 6, 6, 3)
    assert batch['image'].dtype == batch['target'].dtype == np.uint8
    assert batch['id'].shape == (_BATCH,)


def test_images_belong_to_their_examples():
  batch = _train(1, augment=None)[0]
  source = _source()
  assert batch.keys() == set(_KEYS)
  for i, image in zip(batch['id'], batch['image']):
    np.testing.assert_array_equal(image, source[i]['image'])


def test_batches_are_a_function_of_the_seed():
  _assert_same(_train(), _train())
  assert np.any(_ids(_train()) != _ids(_train(seed=4)))


def test_every_epoch_has_every_example_once_in_another_order():
  epochs = _ids(_train(3 * _N // _BATCH + 1))[: 3 * _N].reshape(3, _N)
  for epoch in epochs:
    assert sorted(epoch) == list(range(_N))
    assert np.any(epoch != np.arange(_N))
  for a, b in itertools.combinations(epochs, 2):
    assert np.any(a != b)


@pytest.mark.parametrize('strength', [0, 0.5, 1])
def test_rare_classes_come_more_often(strength):
  labels = np.repeat([0, 2, 3], [16, 1, 4])
  indices = pipeline.balance(labels, strength)
  assert set(indices) == set(range(21))
  shares = np.array([16, 1, 4]) ** (1.0 - strength)
  counts = np.bincount(labels[indices], minlength=4)[[0, 2, 3]]
  np.testing.assert_array_equal(counts, shares * 16**strength)
  batches = _train(len(indices) // _BATCH, indices=indices)
  seen = np.bincount(_ids(batches), minlength=_N)
  expected = np.bincount(indices, minlength=_N)
  assert (expected - seen).min() >= 0 and (expected - seen).sum() < _BATCH


def test_augmentation_differs_between_epochs_and_examples():
  batches = _train(4 * _N // _BATCH, augment=augment.Augment(flips=True))
  ids = _ids(batches)
  images = np.concatenate([batch['image'] for batch in batches])
  source = _source()
  views, unchanged = [], 0
  for i in range(_N):
    seen = images[ids == i]
    views.append(len(np.unique(seen.reshape(len(seen), -1), axis=0)))
    unchanged += sum(np.array_equal(x, source[i]['image']) for x in seen)
  assert np.mean(views) > 2.5  # Of 4, with 8 symmetries.
  assert 0 < unchanged < len(ids) / 3  # 1 in 8


@pytest.mark.parametrize('start', [1, 3, 5])
def test_starting_at_a_step_skips_the_steps_before(start):
  _assert_same(_train(3, start_step=start), _train(3 + start)[start:])


def test_starting_after_many_epochs():
  # This is fast, because the steps before are not computed.
  batch = _train(1, start_step=1_000_000)[0]
  assert len(np.unique(batch['id'])) >= _BATCH / 2


@pytest.mark.parametrize('hosts', [2, 4])
@pytest.mark.parametrize('start', [0, 3])
def test_any_number_of_hosts_makes_the_same_batches(hosts, start):
  parts = [
    _train(start_step=start, process_index=p, process_count=hosts)
    for p in range(hosts)
  ]
  assert parts[0][0]['image'].shape[0] == _BATCH // hosts
  _assert_same(_join(parts), _train(start_step=start))


@pytest.mark.parametrize('workers', [1, 2])
def test_any_number_of_workers_makes_the_same_batches(workers):
  expected = _train(start_step=2)
  _assert_same(_train(start_step=2, num_workers=workers), expected)


def test_workers_on_several_hosts():
  kwargs = dict(process_index=1, process_count=2)
  _assert_same(_train(4, num_workers=2, **kwargs), _train(4, **kwargs))


def test_fewer_examples_than_a_batch():
  batches = _train(3, batch_size=2 * _N)
  ids = _ids(batches).reshape(-1, _N)
  assert all(sorted(epoch) == list(range(_N)) for epoch in ids)


# Evaluation.


@pytest.mark.parametrize('n', [1, _BATCH - 1, _BATCH, _BATCH + 1, _N])
@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_evaluation_covers_every_example_once(n, hosts):
  parts = [_eval(n, process_index=p, process_count=hosts) for p in range(hosts)]
  for batches in parts:
    assert {len(batch['id']) for batch in batches} == {_BATCH // hosts}
  batches = _join(parts)
  assert len(batches) == -(-n // _BATCH)
  mask = np.concatenate([batch['mask'] for batch in batches])
  assert mask.dtype == np.float32
  np.testing.assert_array_equal(_ids(batches)[mask == 1], np.arange(n))
  np.testing.assert_array_equal(mask, np.arange(len(mask)) < n)
  source = _source(n)
  images = np.concatenate([batch['image'] for batch in batches])
  for i in range(n):
    np.testing.assert_array_equal(images[i], source[i]['image'])


def test_evaluation_ends_and_can_be_repeated():
  _assert_same(_eval(), _eval())
  assert all(b.keys() == {*_KEYS, 'mask'} for b in _eval())


def test_evaluation_by_workers():
  _assert_same(_eval(num_workers=2), _eval())


_PARENT = """
import multiprocessing, os, time
from absl import flags
from dermvq_jax.data import pipeline

if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()
  records = [{'image': i} for i in range(8)]
  batches = pipeline.train_batches(
    records, batch_size=2, seed=0, keys=('image',), num_workers=2
  )
  next(batches)
  workers = multiprocessing.active_children()
  print(*(worker.pid for worker in workers), flush=True)
  time.sleep(600)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
  script = tmp_path / 'parent.py'
  script.write_text(_PARENT)
  with subprocess.Popen(
    [sys.executable, str(script)], stdout=subprocess.PIPE, text=True
  ) as parent:
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
  assert len(workers) == 2
  end = time.time() + 30
  while any(map(_is_running, workers)) and time.time() < end:
    time.sleep(0.1)
  assert not any(map(_is_running, workers))


def _is_running(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return stat.rpartition(')')[2].split()[0] != 'Z'


@pytest.mark.parametrize('workers', [0, 1])
def test_errors_of_the_source_are_not_swallowed(workers):
  with pytest.raises(Exception, match='nonsense'):
    _train(1, keys=('nonsense',), num_workers=workers)


class _Counting:
  """A source that counts how often each of its records was read."""

  def __init__(self):
    self.records = _source()
    self.reads = [0] * len(self.records)

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    self.reads[index] += 1
    return self.records[index]


@pytest.mark.parametrize('share', [1, 0.5, 0])
def test_records_are_read_once_while_they_fit(share, monkeypatch):
  size = _source(1)[0]['image'].nbytes + np.asarray(0).nbytes
  monkeypatch.setattr(pipeline, 'CACHE_BYTES', int(share * _N * size))
  source = _Counting()
  batches = _take(
    pipeline.train_batches(
      source, batch_size=_BATCH, seed=3, keys=_KEYS, augment=_AUGMENT
    ),
    9,
  )
  _assert_same(batches, _train(9))
  # In three epochs. Two threads may read the same record at the same time.
  kept = sum(n <= 2 for n in source.reads)
  assert kept == pytest.approx(share * _N, abs=3 if share == 0.5 else 0)
