import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dermvq_jax.training import state

_RATE, _EMA_DECAY = 0.1, 0.3


def _params():
  rng = np.random.default_rng(0)
  return {'a': jnp.float32(rng.normal(size=(3, 2))), 'b': jnp.ones(4)}


def _grads(step):
  rng = np.random.default_rng(10 + step)
  return jax.tree.map(
    lambda x: jnp.float32(rng.normal(size=x.shape)), _params()
  )


def _create(ema=True, tx=None):
  tx = tx or optax.sgd(_RATE)
  counts = {'codebook': {'counts': jnp.zeros(5)}}
  return state.TrainState.create(_params(), counts, tx, ema=ema), tx


def _assert_close(actual, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    actual,
    expected,
  )


def test_create():
  s, _ = _create()
  assert (s.step, s.step.dtype) == (0, jnp.int32)
  _assert_close(s.ema_params, s.params)
  # A donated state must not hold a buffer twice.
  for a, b in zip(jax.tree.leaves(s.params), jax.tree.leaves(s.ema_params)):
    assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()


def test_updates_against_numpy():
  s, tx = _create()
  params = jax.tree.map(np.float64, _params())
  average = params
  update = jax.jit(lambda s, g, m: s.update(g, m, tx, _EMA_DECAY))
  for step in range(5):
    model_state = {'codebook': {'counts': jnp.full(5, step)}}
    s = update(s, _grads(step), model_state)
    params = jax.tree.map(
      lambda p, g: p - _RATE * np.float64(g), params, _grads(step)
    )
    decay = min(_EMA_DECAY, (1 + step) / (10 + step))
    average = jax.tree.map(
      lambda a, p, d=decay: d * a + (1 - d) * p, average, params
    )
    assert s.step == step + 1
    _assert_close(s.params, params)
    _assert_close(s.ema_params, average)
    _assert_close(s.model_state, model_state)
  assert decay == _EMA_DECAY  # Both of its forms were tried.


def test_adamw_step_against_numpy():
  decay = 0.2
  s, tx = _create(tx=optax.adamw(_RATE, b2=0.99, weight_decay=decay))
  old, gradient = np.float64(s.params['a']), np.float64(_grads(0)['a'])
  s = s.update(_grads(0), s.model_state, tx, _EMA_DECAY)
  # The first moments, after bias correction, are the gradient and its square.
  moved = gradient / (np.abs(gradient) + 1e-8) + decay * old
  _assert_close(s.params['a'], old - _RATE * moved)


@pytest.mark.parametrize('ema', [True, False])
def test_what_is_evaluated(ema):
  s, tx = _create(ema=ema)
  s = s.update(_grads(0), s.model_state, tx, _EMA_DECAY)
  s = s.update(_grads(1), s.model_state, tx, _EMA_DECAY)
  assert (s.ema_params is None) != ema
  assert s.eval_params is (s.ema_params if ema else s.params)
  if ema:
    assert np.any(s.ema_params['a'] != s.params['a'])


def _accepted(skip, *spoilt, steps=1):
  """A state after `steps` steps; in the first one `spoilt` is NaN."""
  old, tx = _create(tx=optax.adam(_RATE))

  @jax.jit
  def step(s, i):
    def spoil(name, x):
      bad = (i == 0) & (name in spoilt)
      return jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), x)

    grads = spoil('grads', _grads(0))
    counts = spoil('counts', {'codebook': {'counts': jnp.ones(5)}})
    new = s.update(grads, counts, tx, _EMA_DECAY)
    return s.accept(new, spoil('loss', jnp.float32(1)), grads, skip=skip)

  new = old
  for i in range(steps):
    new, good = step(new, i)
  return old, new, good


@pytest.mark.parametrize('skip', [False, True])
def test_a_finite_step_is_accepted(skip):
  old, new, good = _accepted(skip)
  assert good and new.step == 1 and not new.failure.any()
  assert (new.params['a'] != old.params['a']).all()


@pytest.mark.parametrize(
  ('spoilt', 'what'),
  [
    (('loss',), 'the loss'),
    (('grads',), 'a gradient'),
    (('counts',), 'a weight'),
    (('loss', 'grads', 'counts'), 'the loss'),
  ],
)
def test_a_step_that_is_not_finite_freezes_the_state(spoilt, what):
  old, new, good = _accepted(False, *spoilt, steps=3)
  assert not good
  step, index = new.failure
  assert step == 1 and state.FAILURES[index - 1] == what
  jax.tree.map(
    np.testing.assert_array_equal, new.replace(failure=old.failure), old
  )


def test_a_skipped_step_leaves_only_its_number():
  old, new, good = _accepted(True, 'grads')
  assert not good and new.step == 1 and not new.failure.any()
  jax.tree.map(np.testing.assert_array_equal, new.replace(step=old.step), old)
  _, new, good = _accepted(True, 'grads', steps=2)
  assert good and new.step == 2
  assert (new.params['a'] != old.params['a']).all()
