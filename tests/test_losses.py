import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import losses


def _logits(shape=(2, 3, 4, 11), scale=5.0):
  return np.random.default_rng(0).normal(size=shape) * scale


def test_log_probs():
  logits = _logits()
  logits[0, 0, 0] += 1e4  # A shared constant changes nothing and overflows not.
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


def test_squared_error():
  a, b = _logits((2, 3, 3, 3)), _logits((2, 3, 3, 3), 2.0)
  actual = losses.squared_error(jnp.float32(a), jnp.float32(b))
  np.testing.assert_allclose(actual, (a - b) ** 2, rtol=1e-5)
  half = losses.squared_error(jnp.bfloat16(a), jnp.bfloat16(b))
  assert half.dtype == jnp.float32
