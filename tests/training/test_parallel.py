import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.training import metrics, parallel

KINDS = ('jit', 'pmap')
every_kind = pytest.mark.parametrize('kind', KINDS)


def _tree():
  weights = np.random.default_rng(0).normal(size=(3, 2))
  return {'weights': jnp.float32(weights), 'step': jnp.int32(4)}


def _batch(n=16):
  rng = np.random.default_rng(1)
  return {
    'x': np.float32(rng.normal(size=(n, 5, 3))),
    'codes': np.int32(rng.integers(0, 7, n)),
  }


def _step(tree, batch, *, axis_name):
  """Like a step of training: mean gradients, summed metrics."""

  def loss_fn(weights):
    loss = jnp.mean(jnp.tanh(batch['x'] @ weights) ** 2)
    return loss, {
      'loss': metrics.Mean.of(loss[None]),
      'perplexity': metrics.Perplexity.of(batch['codes'], 7),
    }

  (_, sums), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
    tree['weights']
  )
  if axis_name is not None:
    gradient = jax.lax.pmean(gradient, axis_name)
    sums = jax.lax.psum(sums, axis_name)
  return {
    'weights': tree['weights'] - 0.1 * gradient,
    'step': tree['step'] + 1,
    'metrics': {k: m.compute() for k, m in sums.items()},
  }


def _run(kind, steps=3):
  par = parallel.Parallel(kind)
  tree = par.put_tree(_tree())
  step = par.compile(_step, donate=True)
  results = []
  for _ in range(steps):
    tree = step(tree, par.put_batch(_batch()))
    results.append(jax.device_get(tree))
    tree = {k: tree[k] for k in ('weights', 'step')}
  return results


def test_there_are_several_devices():
  assert jax.device_count() == 8


@every_kind
def test_result_is_that_of_one_device(kind):
  tree = _tree()
  for actual in _run(kind):
    tree = jax.device_get(_step(tree, _batch(), axis_name=None))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), actual, tree
    )
    assert actual['step'].shape == ()  # No device axis.
    assert actual['weights'].shape == (3, 2)


@every_kind
def test_function_sees_its_part_of_the_batch(kind):
  seen = {}

  def f(tree, batch, *, axis_name):
    seen['shape'], seen['axis_name'] = batch['x'].shape, axis_name
    return tree

  par = parallel.Parallel(kind)
  par.compile(f)(par.put_tree(_tree()), par.put_batch(_batch()))
  parts = {
    'jit': {'shape': (16, 5, 3), 'axis_name': None},
    'pmap': {'shape': (2, 5, 3), 'axis_name': 'data'},
  }
  assert seen == parts[kind]


def test_jit_splits_the_batch_and_copies_the_tree():
  par = parallel.Parallel('jit')
  batch = par.put_batch(_batch())
  assert {s.data.shape for s in batch['x'].addressable_shards} == {(2, 5, 3)}
  assert len(batch['x'].sharding.device_set) == 8
  tree = par.put_tree(_tree())
  assert tree['weights'].sharding.is_fully_replicated
  assert len(tree['weights'].sharding.device_set) == 8
  out = par.compile(_step)(tree, batch)
  assert out['weights'].sharding.is_fully_replicated


@every_kind
def test_the_order_of_examples_is_kept(kind):
  """Device i has the examples after those of device i - 1."""
  par = parallel.Parallel(kind)
  batch = par.put_batch({'i': np.arange(16)})
  assert np.asarray(batch['i']).ravel().tolist() == list(range(16))
  if kind == 'pmap':
    assert batch['i'].shape == (8, 2)


def test_a_codebook_lookup_works_when_sharded():
  # Explicit axes, JAX's default, would raise ShardingTypeError.
  def f(tree, batch, *, axis_name):
    assert axis_name is None
    return jnp.sum(tree['weights'][batch['codes'] % 3], 0)

  par = parallel.Parallel('jit')
  actual = par.compile(f)(par.put_tree(_tree()), par.put_batch(_batch()))
  expected = np.asarray(_tree()['weights'])[_batch()['codes'] % 3].sum(0)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


@every_kind
def test_donation(kind):
  par = parallel.Parallel(kind)
  step = par.compile(lambda t, b, *, axis_name: t + b['x'].sum(), donate=True)
  given = jnp.arange(3.0)
  tree = par.put_tree(given)
  step(tree, par.put_batch({'x': np.ones(8)}))
  assert tree.is_deleted()
  np.testing.assert_array_equal(given, [0, 1, 2])
  step = par.compile(lambda t, b, *, axis_name: t + b['x'].sum())
  tree = par.put_tree(jnp.zeros(3))
  step(tree, par.put_batch({'x': np.ones(8)}))
  assert not tree.is_deleted()


@every_kind
def test_batch_size_that_the_devices_do_not_divide(kind):
  par = parallel.Parallel(kind)
  par.check_batch_size(24)
  with pytest.raises(errors.UserError, match='batch_size=12.* 8 devices;'):
    par.check_batch_size(12)
  par.check_batch_size(32, 4)
  with pytest.raises(errors.UserError, match='24.*num_microbatches=2'):
    par.check_batch_size(24, 2)


def test_unknown_kind():
  with pytest.raises(errors.UserError, match="'shard'.*'jit' or 'pmap'"):
    parallel.Parallel('shard')
