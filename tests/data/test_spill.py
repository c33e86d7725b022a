"""Tests that records are ordered in files as they are in memory."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dermvq_jax.data import prepare, spill
from dermvq_jax.data.datasets import builder


class Noise(builder.ImageBuilder, skip_registration=True):
  """Sixty images of noise."""

  name = 'noise'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [builder.ImageConfig(name='smoke', size=8)]
  class_names = ('a', 'b')

  def read_records(self, folder):
    return [
      builder.Record(id=f'{i}', label='ab'[i % 2], group=f'{i}', source=i)
      for i in range(60)
    ]

  def read_image(self, record):
    rng = np.random.default_rng(record.source)
    return rng.integers(0, 256, (8, 8, 3), np.uint8)


def contents(data_dir):
  made = prepare.write(lambda: Noise(config='smoke', data_dir=data_dir))
  files = sorted(p for p in made.data_path.iterdir() if 'record' in p.name)
  assert not list(made.data_path.glob('*.tmp'))
  return [(p.name, p.read_bytes()) for p in files]


@pytest.mark.parametrize('buckets', [1, 7, 256])
def test_records_are_ordered_in_files(tmp_path, monkeypatch, buckets):
  expected = contents(tmp_path / 'memory')
  used = []

  class Bucket(spill._Bucket):
    def read_values(self):
      used.append(len(self))
      return super().read_values()

  monkeypatch.setattr(spill, '_MAX_BYTES', 1000)
  monkeypatch.setattr(spill, '_NUM_BUCKETS', buckets)
  monkeypatch.setattr(spill, '_Bucket', Bucket)
  assert contents(tmp_path / 'files') == expected
  assert sum(used) >= 48  # the training split


def test_other_code_is_not_affected():
  shuffle = spill.shuffle
  before = shuffle.MAX_MEM_BUFFER_SIZE, shuffle.BUCKETS_NUMBER, shuffle._Bucket
  with pytest.raises(KeyError), spill.bounded_memory():
    assert shuffle.MAX_MEM_BUFFER_SIZE == spill._MAX_BYTES
    raise KeyError
  after = shuffle.MAX_MEM_BUFFER_SIZE, shuffle.BUCKETS_NUMBER, shuffle._Bucket
  assert after == before
