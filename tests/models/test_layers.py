import math
import re

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dermvq_jax.models import layers
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
  # Wide enough for Winograd's form.
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


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_space_to_depth_round_trip(factor):
  x = _normal((2, 8, 4, 3), dtype=np.float32)
  y = layers.space_to_depth(x, factor)
  assert y.shape == (2, 8 // factor, 4 // factor, factor**2 * 3)
  np.testing.assert_array_equal(y[1, 0, 0], x[1, :factor, :factor].ravel())
  np.testing.assert_array_equal(layers.depth_to_space(y, factor), x)


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_gradients_of_space_to_depth_go_back(factor):
  x = _normal((2, 8, 4, 3), dtype=np.float32)
  y, pull_back = jax.vjp(lambda x: layers.space_to_depth(x, factor), x)
  np.testing.assert_array_equal(pull_back(y)[0], x)
  x, pull_back = jax.vjp(lambda y: layers.depth_to_space(y, factor), y)
  np.testing.assert_array_equal(pull_back(x)[0], y)


@pytest.mark.parametrize(
  'name, cpu',
  [(name, True) for name in _SHAPES]
  + [(name, False) for name in ('wide', 'rows_above', 'pointwise_padded')],
)
def test_conv_and_gradients_are_those_of_xla(name, cpu, monkeypatch):
  monkeypatch.setattr(layers, '_on_one_device', lambda: True)
  height, width, inputs, features, size, padding = _SHAPES[name]

  def ours(x, kernel):
    return layers.conv(x, kernel, padding, cpu=cpu)

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
  y = layers.conv(x, jnp.ones((*size, 3, 6)), (vertical, horizontal))
  np.testing.assert_array_equal(y, np.zeros((2, 4, 5, 6)))


def test_conv_keeps_bfloat16():
  x = jnp.asarray(_normal((2, 6, 6, 8)), jnp.bfloat16)
  kernel = jnp.asarray(_normal((3, 3, 8, 4)), jnp.bfloat16)

  def loss(x, kernel):
    return layers.conv(x, kernel, _SAME, cpu=True).astype(jnp.float32).sum()

  gradients = jax.grad(loss, (0, 1))(x, kernel)
  assert [g.dtype for g in gradients] == [jnp.bfloat16] * 2
  exact = jax.grad(loss, (0, 1))(*(jnp.float32(a) for a in (x, kernel)))
  for a, e in zip(gradients, exact):
    np.testing.assert_allclose(np.float32(a), e, rtol=0.05, atol=0.5)


def test_winograd_form_is_exact_to_rounding():
  x = _normal((2, 16, 16, 64))
  kernel = _normal((3, 3, 64, 64), 1) / 24  # Outputs have a variance of 1.
  with jax.enable_x64(True):
    exact = _xla_conv(x, kernel, _SAME)
  x, kernel = np.float32(x), np.float32(kernel)
  winograd = layers.conv(x, kernel, _SAME, cpu=True)
  direct = layers.conv(x, kernel, _SAME, cpu=False)
  assert (np.asarray(winograd) != np.asarray(direct)).any()  # Else untested.
  np.testing.assert_allclose(winograd, exact, atol=1e-5)
  x, kernel = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
  winograd = layers.conv(x, kernel, _SAME, cpu=True)  # Not in 16 bits.
  direct = layers.conv(x, kernel, _SAME, cpu=False)
  np.testing.assert_array_equal(np.float32(winograd), np.float32(direct))


def test_devices_exchange_the_gradient_of_a_wide_kernel_only():
  par = parallel.Parallel('jit')

  def gradient(kernel, batch, *, axis_name):
    del axis_name
    loss = lambda k: (layers.conv(batch['x'], k, _SAME, cpu=True) ** 2).sum()  # noqa: E731
    return jax.grad(loss)(kernel)

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
    loss = lambda k: (layers.conv(x, k, _SAME, cpu=True) ** 2).sum()  # noqa: E731
    return lax.psum(jax.grad(loss)(kernel), 'data')

  actual = jax.pmap(kernel_gradient, axis_name='data')(x)
  loss = lambda k: (_xla_conv(x[:, 0], k, _SAME) ** 2).sum()  # noqa: E731
  np.testing.assert_allclose(actual[0], jax.grad(loss)(kernel), rtol=1e-4)


def test_argmax_takes_the_first_of_equals():
  x = jnp.asarray([[0.0, 2.0, 2.0], [3.0, 1.0, -jnp.inf], [1.0, jnp.nan, 0.0]])
  found = layers.argmax(x)
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, [1, 0, 2])  # In range, also for NaN.


@pytest.mark.parametrize('size', [(3, 3), (4, 4), (1, 1)])
def test_conv_module_is_that_of_flax(size):
  x = jnp.asarray(_normal((2, 6, 5, 3), dtype=np.float32))
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
  """Normal kernels, and biases of 0.5."""
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
  return jax.tree.map(
    lambda leaf: (
      _normal(leaf.shape, dtype=np.float32)
      if len(leaf.shape) == 4
      else np.full(leaf.shape, 0.5, np.float32)
    ),
    shapes,
  )


def _mask(size, seen):
  """[k, k] mask of a kernel; `seen(row, column)` of the offset."""
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
  """Puts the cropped kernels back into a [k, k, C, features] kernel."""
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
def test_causal_convs_are_the_masked_conv(name, size, grid):
  kind, include_self, seen = _CAUSAL[name]
  x = jnp.asarray(_normal((2, *grid, 3), dtype=np.float32))
  module = kind(4, size, include_self=include_self)
  variables = _variables(module, x)
  full = _full_kernel(variables['params'], size, name)
  mask = _mask(size, seen)
  # The kernel has all that the mask lets through, and nothing else.
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
  x = _normal((2, 4, 5, 3), dtype=np.float32)
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


@pytest.mark.parametrize('tied', [False, True])
def test_code_embedding(tied):
  module = layers.CodeEmbedding(50, features=16, tied=tied)
  codes = jnp.asarray([[3, 49], [0, 3]])

  def embed_and_read(module, codes):
    x = module(codes)
    return x, module.logits(x)

  (x, logits), variables = nn.init_with_output(embed_and_read, module)(
    jax.random.key(0), codes
  )
  assert x.shape == (2, 2, 16)
  assert (logits.shape, logits.dtype) == ((2, 2, 50), jnp.float32)
  params = jax.tree.map(np.asarray, variables['params'])
  table = params['embedding']['embedding']
  if tied:
    assert set(params) == {'embedding', 'bias'}
    expected, scale = x @ table.T + params['bias'], 4
  else:
    kernel, bias = params['output']['kernel'], params['output']['bias']
    expected, scale = x @ kernel + bias, 1
  np.testing.assert_allclose(x, scale * table[codes], rtol=1e-6)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
  # Both start about as large.
  np.testing.assert_allclose(scale * table.std(), 1, rtol=0.1)
  assert logits.std() < 2
  half = module.copy(dtype=jnp.bfloat16)
  x, logits = half.apply(variables, codes, method=embed_and_read)
  assert (x.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize('grid', [(2, 3), (1, 4), (4, 1)])
def test_previous_in_raster(grid):
  x = _normal((2, *grid, 3))
  flat = x.reshape(2, -1, 3)
  expected = np.concatenate([np.zeros((2, 1, 3)), flat[:, :-1]], axis=1)
  moved = layers.previous_in_raster(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(moved, expected.reshape(x.shape), rtol=1e-6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_nearest_codes_by_brute_force(dtype):
  latents = jnp.asarray(_normal((3, 4, 5, 6)), dtype)
  codebook = jnp.asarray(_normal((37, 6), 1), dtype)
  codes = jax.jit(layers.nearest_codes)(latents, codebook)
  z, e = (np.asarray(a, np.float64) for a in (latents, codebook))
  distances = ((z[..., None, :] - e) ** 2).sum(-1)
  np.testing.assert_array_equal(codes, distances.argmin(-1))
  assert codes.dtype == jnp.int32


def test_nearest_codes_takes_the_first_of_equals():
  codebook = jnp.asarray([[5.0, 5.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
  latents = jnp.asarray([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
  codes = layers.nearest_codes(latents[None, :, None], codebook)
  np.testing.assert_array_equal(codes[0, :, 0], [1, 1, 2, 0])


@pytest.mark.parametrize('block', [1, 4 * 37, 10 * 37 * 4])
@pytest.mark.parametrize('grid', [(4, 5), (1, 7), (3, 1)])
def test_nearest_codes_in_blocks(block, grid, monkeypatch):
  """Of some codes, of one position, of several: the same codes."""
  monkeypatch.setattr(layers, '_BLOCK_BYTES', 4 * block)
  latents = _normal((4, *grid, 6), dtype=np.float32)
  codebook = _normal((37, 6), 1, dtype=np.float32)
  codebook[36] = codebook[20]  # The first of equals, in whatever block.
  codes = jax.jit(layers.nearest_codes)(latents, codebook)
  distances = np.square(np.float64(latents)[..., None, :] - codebook).sum(-1)
  np.testing.assert_array_equal(codes, distances.argmin(-1))
  # Where a latent is not a number, the code exists all the same.
  nothing = jax.jit(layers.nearest_codes)(np.nan * latents, codebook)
  assert np.all((nothing >= 0) & (nothing < 37))


@pytest.mark.parametrize('codebook_size', [512, 20_000])
def test_nearest_codes_of_many(codebook_size):
  """As near as brute force in float64, but for ties within 1e-6."""
  latents = _normal((2, 8, 8, 16), dtype=np.float32)
  codebook = _normal((codebook_size, 16), 1, dtype=np.float32)
  codes = np.asarray(jax.jit(layers.nearest_codes)(latents, codebook))
  z, e = np.float64(latents).reshape(-1, 16), np.float64(codebook)
  least = np.stack([np.square(row - e).sum(1) for row in z])
  found = least[np.arange(len(z)), codes.ravel()]
  scale = np.square(z).sum(1) + np.square(e[codes.ravel()]).sum(1)
  assert np.all(found - least.min(1) <= 1e-6 * scale)
  assert np.mean(codes.ravel() == least.argmin(1)) > 0.99


@pytest.mark.parametrize(
  'batch, size, codebook_size', [(16, 16, 512), (16, 64, 512), (4, 64, 65_536)]
)
def test_nearest_codes_holds_blocks_of_distances(batch, size, codebook_size):
  dim = 64
  shapes = (
    jax.ShapeDtypeStruct((batch, size, size, dim), jnp.float32),
    jax.ShapeDtypeStruct((codebook_size, dim), jnp.float32),
  )
  compiled = jax.jit(layers.nearest_codes).lower(*shapes).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  copies = 4 * dim * 2 * codebook_size
  codes = 4 * batch * size**2
  assert temporary < codes + copies + 4 * layers._BLOCK_BYTES


@pytest.mark.parametrize('cpu', [True, False])
def test_code_sums(cpu):
  latents = _normal((50, 3), dtype=np.float32)
  codes = np.random.default_rng(0).integers(0, 6, 50)
  counts, sums = layers.code_sums(latents, codes, 8, cpu=cpu)
  one_hot = einops.rearrange(codes, 'n -> n 1') == np.arange(8)
  np.testing.assert_array_equal(counts, one_hot.sum(0))
  np.testing.assert_allclose(
    sums, one_hot.T.astype(np.float64) @ latents, rtol=1e-5, atol=1e-5
  )
