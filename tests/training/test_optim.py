import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from dermvq_jax import errors
from dermvq_jax.training import optim

_PEAK, _STEPS = 0.1, 20


_ALL = {'': 'optim'}


def _field(**kwargs):
  return {
    'learning_rate': _PEAK,
    'schedule': 'constant',
    'warmup_steps': 0,
    'b1': 0.9,
    'b2': 0.9,
    'weight_decay': 0.0,
    'max_grad_norm': 0.0,
  } | kwargs


def _config(num_train_steps=_STEPS, **kwargs):
  return ml_collections.ConfigDict(
    {'optim': _field(**kwargs), 'num_train_steps': num_train_steps}
  )


def _params():
  rng = np.random.default_rng(0)
  return {
    'a': jnp.float32(rng.normal(size=(3, 2))),
    'b': jnp.float32(rng.normal(size=4)),
  }


def _grads(step):
  rng = np.random.default_rng(10 + step)
  return jax.tree.map(
    lambda x: jnp.float32(rng.normal(size=x.shape)), _params()
  )


def _train(config, steps=3):
  tx = optim.make(config, _ALL).tx
  params = _params()
  state = tx.init(params)
  for step in range(steps):
    updates, state = tx.update(_grads(step), state, params)
    params = optax.apply_updates(params, updates)
  return params


def _adamw(rates, b1=0.9, b2=0.9, weight_decay=0.0, max_grad_norm=0.0):
  """Loshchilov and Hutter 2019, algorithm 2, with eps = 1e-8."""
  params = {k: np.float64(v) for k, v in _params().items()}
  m = {k: np.zeros_like(v) for k, v in params.items()}
  v = {k: np.zeros_like(v) for k, v in params.items()}
  for t, rate in enumerate(rates, 1):
    grads = {k: np.float64(g) for k, g in _grads(t - 1).items()}
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    if max_grad_norm and norm > max_grad_norm:
      grads = {k: g * max_grad_norm / norm for k, g in grads.items()}
    for k, g in grads.items():
      m[k] = b1 * m[k] + (1 - b1) * g
      v[k] = b2 * v[k] + (1 - b2) * g**2
      m_hat, v_hat = m[k] / (1 - b1**t), v[k] / (1 - b2**t)
      update = m_hat / (np.sqrt(v_hat) + 1e-8) + weight_decay * params[k]
      params[k] = params[k] - rate * update
  return params


@pytest.mark.parametrize(
  'kwargs',
  [
    {},
    {'b1': 0.5},
    {'b1': 0.0},
    {'b2': 0.99},
    {'weight_decay': 0.3},
    {'max_grad_norm': 0.5},
    {'max_grad_norm': 2.5, 'weight_decay': 0.1},  # Clips some steps only.
  ],
)
def test_adamw_against_numpy(kwargs):
  actual, expected = _train(_config(**kwargs)), _adamw([_PEAK] * 3, **kwargs)
  for k in expected:
    np.testing.assert_allclose(actual[k], expected[k], rtol=1e-4, atol=1e-5)


def _rate(step, schedule, warmup):
  if step < warmup:
    return _PEAK * step / warmup
  if schedule == 'constant':
    return _PEAK
  share = (step - warmup) / (_STEPS - warmup)
  return _PEAK * (1 + np.cos(np.pi * share)) / 2


@pytest.mark.parametrize('warmup', [0, 5])
@pytest.mark.parametrize('schedule', ['constant', 'cosine'])
def test_schedule(schedule, warmup):
  # The same gradient at each step: Adam moves by the learning rate.
  config = _config(schedule=schedule, warmup_steps=warmup)
  optimizer = optim.make(config, _ALL)
  tx = optimizer.tx
  params, gradient = jnp.zeros(()), jnp.ones(())
  update = jax.jit(tx.update)
  state = tx.init(params)
  for step in range(_STEPS + 3):
    updates, state = update(gradient, state, params)
    expected = _rate(min(step, _STEPS), schedule, warmup)
    np.testing.assert_allclose(-updates, expected, rtol=1e-4, atol=1e-6)
    rate = optimizer.schedules[''](step)
    np.testing.assert_allclose(rate, expected, rtol=1e-4, atol=1e-6)


def test_constant_schedule_does_not_depend_on_the_number_of_steps():
  gradients = jnp.ones(())
  rates = []
  for steps in (2, 2000):
    tx = optim.make(_config(steps, warmup_steps=5), _ALL).tx
    updates, _ = tx.update(gradients, tx.init(gradients), gradients)
    rates.append(float(updates))
  assert rates[0] == rates[1]


@pytest.mark.parametrize(
  'kwargs, message',
  [
    ({'schedule': 'linear'}, "'linear'.*'constant' or 'cosine'"),
    ({'schedule': 'cosine', 'warmup_steps': _STEPS}, 'warmup_steps=20'),
    ({'schedule': 'cosine', 'warmup_steps': 100}, 'warmup_steps=100'),
  ],
)
def test_mistakes_are_told(kwargs, message):
  with pytest.raises(errors.UserError, match=message) as e:
    optim.make(_config(**kwargs), _ALL)
  assert '\n' not in str(e.value)


def test_a_subtree_has_an_optimiser_of_its_own():
  """'b' moves by another rate and is clipped by its own norm."""
  config = _config()
  config.other = _field(learning_rate=0.5, max_grad_norm=0.1)
  optimizer = optim.make(config, {'': 'optim', 'b': 'other'})
  params, grads = _params(), _grads(0)
  updates, _ = optimizer.tx.update(grads, optimizer.tx.init(params), params)
  for name, kwargs in (
    ('a', {}),
    ('b', {'learning_rate': 0.5, 'max_grad_norm': 0.1}),
  ):
    alone = optim.make(_config(**kwargs), _ALL).tx
    part = {name: params[name]}
    expected, _ = alone.update({name: grads[name]}, alone.init(part), part)
    np.testing.assert_array_equal(updates[name], expected[name])
  parts = optimizer.subtrees(params)
  assert {k: list(v) for k, v in parts.items()} == {'': ['a'], 'b': ['b']}
  assert optimizer.schedules['b'](0) == 0.5
