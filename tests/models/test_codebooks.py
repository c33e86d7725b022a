import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax.models import codebooks


def _normal(shape=(4, 2, 3), seed=0):
  return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def test_straight_through_keeps_values_and_gradients():
  z, q, side = _normal(), _normal(seed=1), _normal(seed=2)
  np.testing.assert_array_equal(codebooks.straight_through(z, q), q)
  gradient = jax.grad(
    lambda z: jnp.sum(codebooks.straight_through(z, q) * side)
  )
  np.testing.assert_array_equal(gradient(z), side)


def test_normalize_is_defined_at_zero():
  zeros = jnp.zeros((2, 3))
  np.testing.assert_array_equal(codebooks.normalize(zeros), zeros)
  gradient = jax.grad(lambda z: codebooks.normalize(z).sum())(zeros)
  assert np.isfinite(gradient).all()
  length = jnp.linalg.norm(codebooks.normalize(_normal()), axis=-1)
  np.testing.assert_allclose(length, 1, rtol=1e-6)


def test_rows_of_global_batch_do_not_depend_on_the_number_of_devices():
  rows = _normal((16, 3))
  key = jax.random.key(1)
  expected = codebooks.rows_of_global_batch(rows, key, 5, None)
  assert np.all((expected[:, None] == rows).all(-1).any(1))
  parts = rows.reshape(8, 2, 3)
  actual = jax.pmap(
    lambda part: codebooks.rows_of_global_batch(part, key, 5, 'data'),
    axis_name='data',
  )(parts)
  for sampled in actual:  # of every device
    np.testing.assert_array_equal(sampled, expected)


@pytest.mark.parametrize('method', ['vectors', 'encode', 'init_codebook'])
def test_the_contract_has_no_implementation(method):
  inputs = () if method == 'vectors' else (_normal(),)
  with pytest.raises(NotImplementedError):
    codebooks.Quantizer().apply({}, *inputs, method=method)
