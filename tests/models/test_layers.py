import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dermvq_jax import errors
from dermvq_jax.models import layers


def _normal(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _xla_conv(x, kernel, padding):
  return lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_space_to_depth_round_trip(factor):
  x = _normal((2, 8, 4, 3))
  y = layers.space_to_depth(x, factor)
  assert y.shape == (2, 8 // factor, 4 // factor, factor**2 * 3)
  np.testing.assert_array_equal(y[1, 0, 0], x[1, :factor, :factor].ravel())
  np.testing.assert_array_equal(layers.depth_to_space(y, factor), x)


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_gradients_of_space_to_depth_are_the_inverse(factor):
  x = _normal((2, 8, 4, 3))
  y, pull_back = jax.vjp(lambda x: layers.space_to_depth(x, factor), x)
  np.testing.assert_array_equal(pull_back(y)[0], x)
  x, pull_back = jax.vjp(lambda y: layers.depth_to_space(y, factor), y)
  np.testing.assert_array_equal(pull_back(x)[0], y)


@pytest.mark.parametrize('size', [(3, 3), (4, 4), (1, 1)])
def test_conv_module_equals_that_of_flax(size):
  x = jnp.asarray(_normal((2, 6, 5, 3)))
  ours, theirs = layers.Conv(7, size), nn.Conv(7, size)
  variables = ours.init(jax.random.key(0), x)
  like = jax.eval_shape(theirs.init, jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, like)
  variables['params']['bias'] += jnp.arange(7.0)
  np.testing.assert_allclose(
    ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5
  )


def test_conv_module_options():
  x = jnp.ones((1, 4, 4, 3))
  module = layers.Conv(
    2,
    (2, 3),
    padding=((1, 0), (0, 0)),
    use_bias=False,
    dtype=jnp.bfloat16,
    kernel_init=nn.initializers.ones_init(),
  )
  variables = module.init(jax.random.key(0), x)
  assert list(variables['params']) == ['kernel']
  assert variables['params']['kernel'].dtype == jnp.float32
  y = module.apply(variables, x)
  assert (y.shape, y.dtype) == ((1, 4, 2, 2), jnp.bfloat16)
  np.testing.assert_array_equal(np.float32(y[0, :, 0, 0]), [9, 18, 18, 18])
  valid = layers.Conv(2, (2, 3), padding='VALID')
  assert valid.init_with_output(jax.random.key(0), x)[0].shape == (1, 3, 2, 2)


def _variables(module, x):
  """Variables with normal kernels and biases of 0.5."""
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
  return jax.tree.map(
    lambda leaf: (
      _normal(leaf.shape)
      if len(leaf.shape) == 4
      else np.full(leaf.shape, 0.5, np.float32)
    ),
    shapes,
  )


def _mask(size, seen):
  """The mask [k, k] where `seen(row offset, column offset)`."""
  reach = size // 2
  offsets = range(-reach, reach + 1)
  return np.array([[float(seen(i, j)) for j in offsets] for i in offsets])


_CAUSAL = {
  'vertical': (layers.VerticalConv, True, lambda i, j: i <= 0),
  'vertical_strict': (layers.VerticalConv, False, lambda i, j: i < 0),
  'horizontal': (layers.HorizontalConv, True, lambda i, j: i == 0 and j <= 0),
  'horizontal_strict': (
    layers.HorizontalConv,
    False,
    lambda i, j: i == 0 and j < 0,
  ),
  'mask_b': (layers.MaskedConv, True, lambda i, j: (i, j) <= (0, 0)),
  'mask_a': (layers.MaskedConv, False, lambda i, j: (i, j) < (0, 0)),
}


def _full_kernel(params, size, name):
  """The [k, k, C, features] kernel that the parameters are parts of."""
  if name.startswith('mask'):
    above = _full_kernel(params['above'], size, 'vertical')
    return above + _full_kernel(params['left'], size, 'horizontal')
  kernel = params['kernel']
  full = np.zeros((size, size, *kernel.shape[2:]))
  if name.startswith('vertical'):
    full[: kernel.shape[0]] = kernel
  else:
    full[size // 2, : kernel.shape[1]] = kernel[0]
  return full


@pytest.mark.parametrize(
  'size, grid',
  [(1, (4, 5)), (3, (4, 5)), (5, (4, 5)), (3, (1, 4)), (3, (4, 1))],
)
@pytest.mark.parametrize('name', _CAUSAL)
def test_causal_convs_equal_a_masked_conv(name, size, grid):
  kind, include_self, seen = _CAUSAL[name]
  x = jnp.asarray(_normal((2, *grid, 3)))
  module = kind(4, size, include_self=include_self)
  variables = _variables(module, x)
  full = _full_kernel(variables['params'], size, name)
  mask = _mask(size, seen)
  # The kernel has exactly the weights that the mask lets through.
  np.testing.assert_array_equal((full != 0).all(axis=(2, 3)), mask != 0)
  reach = (size // 2, size // 2)
  kernel = np.float32(full * mask[..., None, None])
  actual, expected = jax.jit(
    lambda x, variables, kernel: (
      module.apply(variables, x),
      _xla_conv(x, kernel, (reach, reach)) + 0.5,
    )
  )(x, variables, kernel)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('include_self', [True, False])
@pytest.mark.parametrize('kind', [layers.VerticalConv, layers.HorizontalConv])
def test_causal_convs_one_step_at_a_time(kind, include_self):
  size, reach = 5, 2
  x = _normal((2, 4, 5, 3))
  module = kind(4, size, include_self=include_self)
  variables = module.init(jax.random.key(0), x)
  axis = 1 if kind is layers.VerticalConv else 2
  width = [(0, 0)] * 4
  width[axis] = (reach, 0)
  padded = np.pad(x, width)
  steps = []
  for i in range(x.shape[axis]):
    window = padded.take(range(i, i + reach + include_self), axis=axis)
    steps.append(module.apply(variables, window, has_context=True))
  np.testing.assert_allclose(
    np.concatenate(steps, axis), module.apply(variables, x), atol=1e-5
  )


def test_kernels_of_a_wrong_size_are_refused():
  for size in (3, 7):
    layers.check_causal_size('kernel_size', size)
  for size in (1, 4):
    with pytest.raises(errors.UserError, match=f'kernel_size is {size}; .*odd'):
      layers.check_causal_size('kernel_size', size)
