import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dermvq_jax.models import cpu_convolution
from dermvq_jax.training import parallel

_SAME = ((1, 1), (1, 1))
# (height, width, inputs, features, kernel, padding)
_SHAPES = {
  'wide': (5, 6, 8, 8, (3, 3), _SAME),
  'few_inputs': (6, 5, 3, 8, (3, 3), _SAME),
  'few_features': (6, 5, 8, 3, (3, 3), _SAME),
  'pointwise': (4, 5, 6, 7, (1, 1), ((0, 0), (0, 0))),
  'pointwise_padded': (4, 5, 6, 7, (1, 1), ((1, 0), (2, 0))),
  'even': (6, 6, 4, 6, (4, 2), ((1, 2), (0, 1))),
  'no_padding': (6, 6, 4, 6, (3, 2), ((0, 0), (0, 0))),
  'rows_above_and_self': (5, 6, 4, 8, (2, 3), ((1, 0), (1, 1))),
  'rows_above': (5, 6, 4, 8, (3, 7), ((3, -1), (3, 3))),
  'row_left_and_self': (5, 6, 4, 8, (1, 2), ((0, 0), (1, 0))),
  'row_left': (5, 6, 8, 4, (1, 3), ((0, 0), (3, -1))),
  'row_left_far': (5, 9, 8, 8, (1, 5), ((0, 0), (5, -1))),
  'padded_beyond_kernel': (3, 4, 5, 4, (2, 2), ((3, 0), (0, 4))),
  # Wide enough for Winograd's form:
  'winograd': (8, 10, 64, 64, (3, 3), _SAME),
  'winograd_odd': (9, 11, 64, 72, (3, 3), _SAME),
  'winograd_no_padding': (11, 12, 72, 64, (3, 3), ((0, 0), (0, 0))),
  'winograd_rows_above': (9, 8, 64, 64, (2, 3), ((1, 0), (1, 1))),
  'winograd_uneven': (8, 8, 64, 64, (3, 2), ((1, 2), (1, 1))),
  'winograd_columns': (8, 9, 64, 64, (3, 2), ((2, 2), (0, 1))),
  'one_row': (1, 6, 4, 8, (2, 3), ((1, 0), (1, 1))),
  'one_column': (6, 1, 4, 8, (1, 2), ((0, 0), (1, 0))),
  'one_output': (2, 3, 4, 8, (2, 3), ((0, 0), (0, 0))),
}


def _normal(shape, seed=0, dtype=np.float64):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def _xla_conv(x, kernel, padding):
  return lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


@pytest.mark.parametrize(
  'name, cpu',
  [(name, True) for name in _SHAPES]
  + [(name, False) for name in ('wide', 'rows_above', 'pointwise_padded')],
)
def test_conv_and_its_gradients_equal_those_of_xla(name, cpu, monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  height, width, inputs, features, size, padding = _SHAPES[name]

  def ours(x, kernel):
    return cpu_convolution.conv(x, kernel, padding, cpu=cpu)

  def theirs(x, kernel):
    return _xla_conv(x, kernel, padding)

  @jax.jit
  def values_and_gradients(x, kernel, scale):
    results = []
    for conv in (ours, theirs):
      y, pull_back = jax.vjp(conv, x, kernel)
      weights = scale * jnp.cos(jnp.arange(y.size)).reshape(y.shape)
      results.append((y, *pull_back(weights)))
    return results

  with jax.enable_x64(True):
    x = _normal((2, height, width, inputs))
    kernel = _normal((*size, inputs, features), 1)
    actual, expected = values_and_gradients(x, kernel, np.float64(1))
  for a, e in zip(actual, expected):
    assert (a.shape, a.dtype) == (e.shape, np.float64)
    np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('size', [(0, 3), (1, 0)])
def test_conv_with_empty_kernel_is_zero(size):
  reach = size[1] // 2
  horizontal = (reach, reach) if size[1] else (0, -1)
  vertical = (0, 0) if size[0] else (0, -1)
  x = jnp.ones((2, 4, 5, 3))
  y = cpu_convolution.conv(x, jnp.ones((*size, 3, 6)), (vertical, horizontal))
  np.testing.assert_array_equal(y, np.zeros((2, 4, 5, 6)))


def test_conv_keeps_bfloat16():
  x = jnp.asarray(_normal((2, 6, 6, 8)), jnp.bfloat16)
  kernel = jnp.asarray(_normal((3, 3, 8, 4)), jnp.bfloat16)

  def loss(x, kernel):
    return (
      cpu_convolution.conv(x, kernel, _SAME, cpu=True).astype(jnp.float32).sum()
    )

  gradients = jax.grad(loss, (0, 1))(x, kernel)
  assert [g.dtype for g in gradients] == [jnp.bfloat16] * 2
  exact = jax.grad(loss, (0, 1))(*(jnp.float32(a) for a in (x, kernel)))
  for a, e in zip(gradients, exact):
    np.testing.assert_allclose(np.float32(a), e, rtol=0.05, atol=0.5)


def test_winograd_form_is_exact_to_rounding():
  x = _normal((2, 16, 16, 64))
  kernel = _normal((3, 3, 64, 64), 1) / 24  # outputs of variance 1
  with jax.enable_x64(True):
    exact = _xla_conv(x, kernel, _SAME)
  x, kernel = np.float32(x), np.float32(kernel)
  winograd = cpu_convolution.conv(x, kernel, _SAME, cpu=True)
  direct = cpu_convolution.conv(x, kernel, _SAME, cpu=False)
  assert (np.asarray(winograd) != np.asarray(direct)).any()  # the forms differ
  np.testing.assert_allclose(winograd, exact, atol=1e-5)
  x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
  winograd = cpu_convolution.conv(
    x, kernel, _SAME, cpu=True
  )  # not used in 16 bits
  direct = cpu_convolution.conv(x, kernel, _SAME, cpu=False)
  np.testing.assert_array_equal(np.float32(winograd), np.float32(direct))


def _squares(kernel, x):
  y = cpu_convolution.conv(x, kernel, _SAME, cpu=True)
  return (y**2).sum()


def test_devices_exchange_only_the_gradient_of_a_wide_kernel():
  par = parallel.Parallel('jit')

  def gradient(kernel, batch, *, axis_name):
    del axis_name
    return jax.grad(_squares)(kernel, batch['x'])

  kernel = par.put_tree(np.ones((3, 3, 64, 64), np.float32))
  batch = par.put_batch({'x': np.ones((16, 8, 8, 64), np.float32)})
  program = par.compile(gradient).lower(kernel, batch).compile().as_text()
  reduced = re.findall(r'= (.*) all-reduce\(', program)
  numbers = re.findall(r'f32\[([\d,]+)\]', ' '.join(reduced))
  assert sum(math.prod(map(int, n.split(','))) for n in numbers) == kernel.size


def test_conv_under_pmap():
  devices = jax.local_device_count()
  x = jnp.asarray(_normal((devices, 1, 4, 4, 3), dtype=np.float32))
  kernel = jnp.asarray(_normal((3, 3, 3, 4), dtype=np.float32))

  def kernel_gradient(x):
    return lax.psum(jax.grad(_squares)(kernel, x), 'data')

  actual = jax.pmap(kernel_gradient, axis_name='data')(x)
  expected = jax.grad(lambda k: (_xla_conv(x[:, 0], k, _SAME) ** 2).sum())
  np.testing.assert_allclose(actual[0], expected(kernel), rtol=1e-4)
