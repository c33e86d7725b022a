import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import checkpoints, errors


def tree(value):
  """With the kinds of leaves a training state has."""
  return {
    'tree': {
      'step': jnp.asarray(value, jnp.int32),
      'params': {'kernel': jnp.full((2, 3), value, jnp.bfloat16)},
      'ema_params': None,
      'opt_state': (jnp.full(4, value / 3), {'count': np.int32(value)}),
    },
    'best': np.float32(value / 7),
  }


def weights(value):
  return {
    'params': {'w': np.full(3, value, np.float32)},
    'model_state': {'codebook': {'counts': np.arange(3.0)}},
  }


@pytest.fixture
def folder(tmp_path):
  return tmp_path / 'vqvae'


def saved(folder, *steps):
  store = checkpoints.Checkpoints(folder)
  for step in steps:
    store.save(step, tree(step))
  store.close()
  return checkpoints.Checkpoints(folder)


def test_restores_what_was_saved(folder):
  store = saved(folder, 3, 5)
  assert store.latest_step() == 5
  restored = store.restore(tree(0))
  store.close()
  expected = tree(5)
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_keeps_the_latest_two(folder):
  saved(folder, 1, 2, 3).close()
  assert sorted(p.name for p in (folder / 'checkpoints').iterdir()) == [
    '2',
    '3',
  ]


def test_nothing_saved(folder):
  store = checkpoints.Checkpoints(folder)
  assert store.latest_step() is None
  store.close()


def test_what_was_saved_does_not_change_with_donated_buffers(folder):
  """A save goes on in the background while the next step runs."""
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  value = jnp.zeros((512, 512))
  store = checkpoints.Checkpoints(folder)
  store.save(1, {'x': value})
  for _ in range(5):
    value = step(value)
  store.close()
  store = checkpoints.Checkpoints(folder)
  np.testing.assert_array_equal(store.restore({'x': value})['x'], 0)
  store.close()


def test_only_complete_steps_count(folder):
  """What a kill during a save leaves is ignored, then removed."""
  saved(folder, 1, 2).close()
  states = folder / 'checkpoints'
  partial = states / '3.orbax-checkpoint-tmp'
  shutil.copytree(states / '2', partial)
  store = checkpoints.Checkpoints(folder)
  assert store.latest_step() == 2
  assert store.restore(tree(0))['tree']['step'] == 2
  store.save(3, tree(3))
  store.close()
  assert not partial.exists()


def test_best_is_replaced(folder):
  store = checkpoints.Checkpoints(folder)
  for step in (5, 10):
    store.save_best(step, weights(step))
  store.close()
  loaded = checkpoints.load_best(folder)
  assert [p.name for p in (folder / 'best').iterdir()] == ['10']
  jax.tree.map(np.testing.assert_array_equal, loaded, weights(10))


@pytest.mark.parametrize('step', [10, 7])
def test_best_after_going_back(folder, step):
  """A resumed run reaches steps again that were the best before the kill."""
  store = checkpoints.Checkpoints(folder)
  store.save_best(10, weights(10))
  store.close()
  store = checkpoints.Checkpoints(folder)
  store.save_best(step, weights(1))
  store.close()
  np.testing.assert_array_equal(checkpoints.load_best(folder)['params']['w'], 1)
  assert [p.name for p in (folder / 'best').iterdir()] == [str(step)]


def test_no_best_weights(folder):
  with pytest.raises(
    errors.UserError, match='no trained weights.*train --config=vqvae'
  ):
    checkpoints.load_best(folder)
  checkpoints.Checkpoints(folder).close()  # started, nothing saved yet
  with pytest.raises(errors.UserError, match='no trained weights'):
    checkpoints.load_best(folder)


def test_readers_do_not_touch_what_a_trainer_is_writing(folder):
  store = checkpoints.Checkpoints(folder)
  store.save_best(5, weights(5))
  store.close()
  writing = folder / 'best' / '10.orbax-checkpoint-tmp'
  shutil.copytree(folder / 'best' / '5', writing)
  loaded = checkpoints.load_best(folder)
  np.testing.assert_array_equal(loaded['params']['w'], 5)
  assert writing.exists()


def test_relative_folders(folder, monkeypatch):
  folder.mkdir()
  monkeypatch.chdir(folder.parent)
  store = checkpoints.Checkpoints('vqvae')
  store.save_best(1, weights(1))
  store.close()
  np.testing.assert_array_equal(
    checkpoints.load_best('vqvae')['params']['w'], 1
  )
