import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.models import losses


def _logits(shape=(2, 3, 4, 11), scale=5.0):
  return np.random.default_rng(0).normal(size=shape) * scale


def test_log_probs():
  logits = _logits()
  logits[0, 0, 0] += 1e4  # a shared constant changes nothing, no overflow
  shifted = logits - logits.max(-1, keepdims=True)
  expected = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  actual = losses.log_probs(jnp.asarray(logits, jnp.float32))
  np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=2e-3)
  np.testing.assert_allclose(np.exp(actual).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_log_probs_are_float32(dtype):
  logits = jnp.asarray(_logits(), dtype)
  expected = losses.log_probs(logits.astype(jnp.float32))
  actual = losses.log_probs(logits)
  assert actual.dtype == jnp.float32
  np.testing.assert_array_equal(actual, expected)


def test_log_probs_of_impossible_codes():
  log_probs = losses.log_probs(jnp.asarray([0.0, -jnp.inf, 0.0]))
  np.testing.assert_allclose(np.exp(log_probs), [0.5, 0, 0.5])


def test_cross_entropy():
  logits = _logits()
  codes = np.random.default_rng(1).integers(0, 11, logits.shape[:-1])
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = -np.log(np.take_along_axis(probs, codes[..., None], -1)[..., 0])
  actual = jax.jit(losses.cross_entropy)(jnp.float32(logits), codes)
  assert actual.shape == codes.shape
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_cross_entropy_of_equal_logits_is_log_k():
  nll = losses.cross_entropy(jnp.zeros((3, 7)), jnp.arange(3))
  np.testing.assert_allclose(nll, np.log(7), rtol=1e-6)


def test_cross_entropy_gradient():
  logits, codes = jnp.float32(_logits((5, 11))), jnp.arange(5)
  gradient = jax.grad(lambda x: losses.cross_entropy(x, codes).sum())(logits)
  expected = jax.nn.softmax(logits) - np.eye(11)[codes]
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


def _one_hot(codes, smoothing):
  return (1 - smoothing) * np.eye(11)[codes] + smoothing / 11


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('loss', losses.LOSSES)
def test_losses_against_numpy(loss, smoothing):
  logits = _logits()
  codes = np.random.default_rng(1).integers(0, 11, logits.shape[:-1])
  target = _one_hot(codes, smoothing)
  if loss == 'bce':  # Equation 3 of the report, with its misprints corrected.
    p = 1 / (1 + np.exp(-logits))
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(-1)
  else:
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -(target * np.log(p)).sum(-1)
  actual = losses.code_loss(jnp.float32(logits), codes, loss, smoothing)
  assert actual.shape == codes.shape
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_binary_cross_entropy_gradient(smoothing):
  """Each decision moves to its own target; large logits stay finite."""
  logits, codes = jnp.float32(_logits((5, 11), 30.0)), jnp.arange(5)
  gradient = jax.grad(
    lambda x: losses.code_loss(x, codes, 'bce', smoothing).sum()
  )(logits)
  expected = jax.nn.sigmoid(logits) - _one_hot(codes, smoothing)
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_probabilities_of_bce_are_normalised_sigmoids():
  logits = _logits()
  sigmoids = 1 / (1 + np.exp(-logits))
  expected = sigmoids / sigmoids.sum(-1, keepdims=True)
  log_p = losses.log_probs(jnp.float32(logits), 'bce')
  np.testing.assert_allclose(np.exp(log_p), expected, rtol=1e-4)
  codes = np.random.default_rng(1).integers(0, 11, logits.shape[:-1])
  picked = np.take_along_axis(expected, codes[..., None], -1)[..., 0]
  nll = losses.nll(jnp.float32(logits), codes, 'bce')
  np.testing.assert_allclose(nll, -np.log(picked), rtol=1e-4, atol=1e-5)
  # Far below zero a sigmoid is 0 in float32, but its logarithm is finite.
  log_p = losses.log_probs(jnp.asarray([-200.0, -201.0]), 'bce')
  np.testing.assert_allclose(
    log_p, losses.log_probs(jnp.asarray([1.0, 0])), rtol=1e-4
  )


def test_impossible_codes_cost_nothing():
  logits = jnp.asarray([0.0, -jnp.inf, 1.0])
  for loss in losses.LOSSES:
    log_p = losses.log_probs(logits, loss)
    assert log_p[1] == -jnp.inf and np.isfinite(log_p[0] + log_p[2])
    assert np.isfinite(losses.code_loss(logits, jnp.int32(0), loss))


def test_wrong_arguments_are_refused():
  for loss in losses.LOSSES:
    losses.check(loss, 0.0)
  with pytest.raises(errors.UserError, match="'mse'.*'cross_entropy', 'bce'"):
    losses.check('mse', 0.0)
  for smoothing in (-0.1, 1.0, float('nan')):
    with pytest.raises(errors.UserError, match='label_smoothing'):
      losses.check('bce', smoothing)
