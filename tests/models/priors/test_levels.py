"""Priors over the codes of residual levels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax.models import losses
from dermvq_jax.models.priors import base, levels, pixelcnn, randomness, sampler

_LEVELS, _K, _GRID = 2, 3, (3, 4)
_PRIOR = levels.LeveledPrior(
  pixelcnn.PixelCNN(
    codebook_size=_LEVELS * _K,
    conditions=(('label', 2),),
    num_layers=1,
    features=8,
    head_features=8,
    first_kernel_size=3,
  ),
  _LEVELS,
)
_POSSIBLE = (
  np.arange(_GRID[1])[:, None] % _LEVELS == np.arange(_LEVELS * _K) // _K
)


def _codes(n=4):
  rng = np.random.default_rng(0)
  level = np.arange(_GRID[1]) % _LEVELS
  return jnp.int32(rng.integers(0, _K, (n, *_GRID)) + _K * level)


_CONDITIONS = {'label': jnp.arange(4) % 2}


@pytest.fixture(scope='module')
def variables():
  init = functools.partial(_PRIOR.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), _codes(), _CONDITIONS)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), shapes)


@jax.jit
def _logits(variables, codes):
  return _PRIOR.apply(variables, codes, _CONDITIONS, train=False)


def test_only_codes_of_other_levels_are_impossible(variables):
  logits = _logits(variables, _codes())
  plain = _PRIOR.prior.apply(
    {'params': variables['params']['prior']},
    _codes(),
    _CONDITIONS,
    train=False,
  )
  possible = np.broadcast_to(_POSSIBLE, logits.shape)
  np.testing.assert_allclose(logits[possible], plain[possible], rtol=1e-5)
  assert np.all(logits[~possible] == -np.inf)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('loss', losses.LOSSES)
def test_losses_count_only_the_possible_codes(variables, loss, smoothing):
  codes = _codes()

  @jax.jit
  @jax.value_and_grad
  def mean_loss(variables):
    logits = _PRIOR.apply(variables, codes, _CONDITIONS, train=False)
    return losses.code_loss(logits, codes, loss, smoothing).mean()

  value, gradients = mean_loss(variables)
  logits = np.asarray(_logits(variables, codes))
  own = np.broadcast_to(_POSSIBLE, logits.shape)
  own = logits[own].reshape(*codes.shape, _K)
  expected = losses.code_loss(own, codes % _K, loss, smoothing).mean()
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
  p = np.exp(losses.log_probs(logits, loss))
  np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
  assert np.all(p[~np.broadcast_to(_POSSIBLE, p.shape)] == 0)


@pytest.mark.parametrize(
  'controls',
  [
    {},
    {'temperature': 50.0},
    {'temperature': 0},
    {'top_k': _K + 1, 'top_p': 0.99},
    {'guidance_scale': 3.0, 'temperature': 5.0},
    {'autoguidance_scale': 3.0, 'temperature': 5.0},
  ],
)
def test_samples_have_possible_codes(variables, controls):
  labels = np.arange(8) % 2
  codes = sampler.sample_codes(
    _PRIOR,
    variables | {base.WEAK: jax.tree.map(lambda x: x / 2, variables['params'])},
    {'label': labels},
    randomness.image_keys(0, labels),
    _GRID,
    sampler.Controls(**controls),
  )
  np.testing.assert_array_equal(
    codes // _K, np.broadcast_to(np.arange(_GRID[1]) % _LEVELS, codes.shape)
  )


def test_both_forms_agree(variables):
  """At temperature 0 a sample's codes are the most likely ones."""
  keys = randomness.image_keys(0, _CONDITIONS['label'])
  controls = sampler.Controls(temperature=0)
  codes = sampler.sample_codes(
    _PRIOR, variables, _CONDITIONS, keys, _GRID, controls
  )
  logits = _logits(variables, codes)
  np.testing.assert_array_equal(codes, logits.argmax(-1))
