"""What a step says about its arrays is compared before they are read."""

import jax
import numpy as np
import pytest
import tensorstore as ts

from dermvq_jax import errors
from dermvq_jax.runs import checkpoints, steps


def _saved(folder, array):
  store = checkpoints.Checkpoints(folder)
  store.save_best(1, {'params': {'w': array}, 'model_state': {}})
  store.close()
  return folder


def _like(*shape, dtype=np.float32):
  array = jax.ShapeDtypeStruct(shape, dtype)
  return {'params': {'w': array}, 'model_state': {}}


def _must_not_read(*args, **kwargs):
  raise AssertionError('the arrays are read')


@pytest.fixture
def unread(monkeypatch):
  """Fails the test if arrays are read."""

  def start():
    reader = steps.ocp.StandardCheckpointHandler
    monkeypatch.setattr(reader, 'restore', _must_not_read)

  return start


def test_nothing_is_said(tmp_path, caplog):
  """Users of the package in Python see all warnings."""
  _saved(tmp_path, np.ones(3, np.float32))
  checkpoints.load_best(tmp_path)
  assert not [r for r in caplog.records if r.levelname != 'INFO']


@pytest.mark.parametrize(
  'like',
  [
    _like(3, 4),
    _like(4, 3, dtype=np.int32),
    {'params': {'v': jax.ShapeDtypeStruct((4, 3), np.float32)}},
  ],
)
def test_other_shapes_are_refused(tmp_path, unread, like):
  _saved(tmp_path, np.ones((4, 3), np.float32))
  loaded = checkpoints.load_best(tmp_path, _like(4, 3))
  assert loaded['params']['w'].shape == (4, 3)
  unread()
  match = 'is damaged|are damaged.*params/[vw] is .* would be '
  with pytest.raises(errors.UserError, match=match):
    checkpoints.load_best(tmp_path, like)
  [(kind, step, problem)] = checkpoints.verify(tmp_path, like)
  assert (kind, step) == ('best', 1) and 'would be' in problem


def test_a_small_file_with_large_arrays_is_refused(
  tmp_path, unread, monkeypatch
):
  """An array of zeros takes a thousandth of its size on the disk."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(1000, 300)).astype(np.float32)
  _saved(tmp_path / 'noise', noise)
  _saved(tmp_path / 'zeros', np.zeros_like(noise))
  monkeypatch.setattr(steps, '_SMALL', noise.nbytes - 1)
  checkpoints.load_best(tmp_path / 'noise')
  unread()
  match = r'would take 1,200,000 bytes of memory'
  with pytest.raises(errors.UserError, match=match):
    checkpoints.load_best(tmp_path / 'zeros')
  monkeypatch.setattr(steps, '_SMALL', noise.nbytes)
  with pytest.raises(errors.UserError, match='the arrays are read'):
    checkpoints.load_best(tmp_path / 'zeros')


def test_a_chunk_that_is_larger_than_its_description_is_refused(tmp_path):
  """It describes 48 bytes, and unpacks to as many as it likes."""
  folder = _saved(tmp_path, np.ones((4, 3), np.float32))
  zeros = np.zeros(2**24, np.float32)
  spec = {'driver': 'zarr', 'kvstore': 'memory://zeros/'}
  spec['metadata'] = {'compressor': {'id': 'zstd'}, 'chunks': zeros.shape}
  large = ts.open(
    spec, create=True, dtype=zeros.dtype, shape=zeros.shape
  ).result()
  large.write(zeros).result()
  chunk = large.kvstore.read('0').result().value
  assert len(chunk) < 10_000
  base = f'file://{folder}/best/1/{steps.ARRAYS}/'
  store = ts.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
  assert b'params.w/0.0' in store.list().result()
  store.write('params.w/0.0', chunk).result()
  for like in (None, _like(4, 3)):
    with pytest.raises(errors.UserError, match='unreadable.*params.w'):
      checkpoints.load_best(folder, like)
