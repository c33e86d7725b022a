import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax.models import layers, quantizers, vqvae

_K, _D = 12, 4
# Formulas, GELU's by tanh (Hendrycks and Gimpel 2016, section 2).
_ACTIVATIONS = {
  'relu': lambda x: np.maximum(x, 0),
  'gelu': lambda x: (
    x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  ),
  'silu': lambda x: x / (1 + np.exp(-x)),
}


def _model(downsampling=4, dtype=jnp.float32, features=8):
  shared = dict(
    features=features,
    num_residual_blocks=1,
    residual_features=4,
    downsampling=downsampling,
    dtype=dtype,
  )
  return vqvae.VQVAE(
    encoder=vqvae.Encoder(code_dim=_D, **shared),
    quantizer=quantizers.EmaQuantizer(_K, _D),
    decoder=vqvae.Decoder(**shared),
  )


def _images(shape=(2, 16, 24, 3), seed=0):
  return jnp.float32(np.random.default_rng(seed).random(shape))


def _random(module, *inputs, **kwargs):
  """Random variables: faster than `init`, and no bias is zero."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    functools.partial(module.init, **kwargs), jax.random.key(0), *inputs
  )

  def draw(leaf):
    fan_in = max(1, np.prod(leaf.shape[:-1]))
    return np.asarray(rng.normal(size=leaf.shape) / fan_in**0.5, leaf.dtype)

  return jax.tree.map(draw, shapes)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _apply(model, variables, inputs, method):
  return model.apply(variables, inputs, method=method)


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(model, variables, images):
  return model.apply(variables, images)


@pytest.mark.parametrize('size', [(16, 16), (8, 24)])
@pytest.mark.parametrize('downsampling', [2, 4, 8])
def test_shapes(downsampling, size):
  model, images = _model(downsampling), _images((2, *size, 3))
  grid = tuple(s // downsampling for s in size)

  def everything():
    variables = model.init(jax.random.key(0), images)
    output = model.apply(variables, images)
    latents = model.apply(variables, images, method='latents')
    codes = model.apply(variables, images, method='encode')
    return (
      output,
      latents,
      codes,
      model.apply(variables, codes, method='decode'),
    )

  output, latents, codes, decoded = jax.eval_shape(everything)
  assert output.reconstruction.shape == decoded.shape == images.shape
  assert output.quantized.quantized.shape == latents.shape == (2, *grid, _D)
  assert output.quantized.codes.shape == codes.shape == (2, *grid)
  assert output.quantized.codes.dtype == codes.dtype == jnp.int32


@pytest.fixture(scope='module')
def trained_like():
  """A model whose codes are latents."""
  model, images = _model(), _images()
  variables = _random(model, images)
  latents = _apply(model, variables, images, 'latents')
  _, initialised = model.apply(
    variables,
    latents.reshape(-1, _D),
    method='init_codebook',
    mutable=['codebook'],
    rngs={'codebook': jax.random.key(1)},
  )
  return model, {**variables, **initialised}, images


def test_the_parts_agree_with_the_whole(trained_like):
  model, variables, images = trained_like
  output = _reconstruct(model, variables, images)
  codes = _apply(model, variables, images, 'encode')
  assert len(np.unique(codes)) > _K / 2
  np.testing.assert_array_equal(codes, output.quantized.codes)
  decoded = _apply(model, variables, codes, 'decode')
  expected = np.clip(output.reconstruction, 0, 1)
  np.testing.assert_allclose(decoded, expected, atol=1e-5)
  assert np.ptp(expected) > 0.1
  latents = _apply(model, variables, images, 'latents')
  codebook = variables['codebook']['quantizer']['codebook']
  distances = np.square(latents[..., None, :] - codebook).sum(-1)
  np.testing.assert_array_equal(codes, distances.argmin(-1))


def test_codes_begin_as_latents(trained_like):
  model, variables, images = trained_like
  rows = _apply(model, variables, images, 'latents').reshape(-1, _D)
  codebook = variables['codebook']['quantizer']['codebook']
  assert all(np.any(np.all(rows == code, axis=-1)) for code in codebook)


def test_decoded_images_are_in_range(trained_like):
  model, variables, images = trained_like
  wild = jax.tree.map(lambda x: 30 * x, variables)
  codes = _apply(model, variables, images, 'encode')
  decoded = _apply(model, wild, codes, 'decode')
  assert (decoded.min(), decoded.max()) == (0, 1)


def test_images_do_not_see_each_other(trained_like):
  model, variables, images = trained_like
  both = _reconstruct(model, variables, images).reconstruction
  other = images.at[0].set(0.0)
  second = _reconstruct(model, variables, other).reconstruction
  np.testing.assert_allclose(both[1], second[1], atol=1e-5)
  assert np.any(both[0] != second[0])


def test_the_encoder_is_trained_through_the_codes(trained_like):
  model, variables, images = trained_like
  state = {'codebook': variables['codebook']}

  @jax.jit
  def grad(params):
    def loss(params):
      output = model.apply({'params': params, **state}, images)
      return jnp.mean(jnp.square(output.reconstruction - images))

    return jax.grad(loss)(params)

  for name, leaf in jax.tree_util.tree_leaves_with_path(
    grad(variables['params'])
  ):
    assert np.any(leaf != 0), name


def test_bfloat16_is_used_inside_only():
  model = _model(dtype=jnp.bfloat16)
  images = _images()
  variables = _random(model, images)
  assert {x.dtype for x in jax.tree.leaves(variables['params'])} == {
    jnp.dtype('float32')
  }
  output = _reconstruct(model, variables, images)
  latents = _apply(model, variables, images, 'latents')
  for x in (output.reconstruction, output.quantized.quantized, latents):
    assert x.dtype == jnp.float32
  # But the convolutions did run in it.
  exact = _apply(_model(), variables, images, 'latents')
  assert 0 < np.abs(latents - exact).max() < 0.1
  np.testing.assert_allclose(
    output.reconstruction.astype(jnp.bfloat16) - 0.5,
    output.reconstruction - 0.5,
    atol=0.01,
  )


def _decoder(downsampling=4, **kwargs):
  return vqvae.Decoder(
    features=8,
    num_residual_blocks=1,
    residual_features=4,
    downsampling=downsampling,
    **kwargs,
  )


@pytest.mark.parametrize(
  ('downsampling', 'widths'), [(2, []), (4, [4]), (8, [8, 4])]
)
def test_blocks_at_each_resolution_between_codes_and_image(
  downsampling, widths
):
  latents = jnp.zeros((1, 2, 3, _D))
  decoder = _decoder(downsampling, stage_blocks=2)
  params = _random(decoder, latents)['params']
  found = [
    [conv['kernel'].shape for conv in params[f'ResidualBlock_{i}'].values()]
    for i in range(1, 1 + 2 * len(widths))  # 0 is at the lowest resolution
  ]
  expected = [
    [(3, 3, width, width // 2), (1, 1, width // 2, width)]
    for width in widths
    for _ in range(2)
  ]
  assert found == expected
  assert f'ResidualBlock_{1 + len(found)}' not in params
  shape = jax.eval_shape(decoder.apply, {'params': params}, latents).shape
  assert shape == (1, 2 * downsampling, 3 * downsampling, 3)


def test_blocks_that_add_nothing_change_nothing():
  latents = jnp.float32(np.random.default_rng(1).normal(size=(1, 2, 3, _D)))
  params = _random(_decoder(stage_blocks=1), latents)['params']
  plain = {k: v for k, v in params.items() if k != 'ResidualBlock_1'}
  expected = _decoder().apply({'params': plain}, latents)
  decoder = _decoder(stage_blocks=1)
  assert (
    np.abs(decoder.apply({'params': params}, latents) - expected).max() > 0.01
  )
  block = params['ResidualBlock_1']
  silent = block | {'Conv_1': jax.tree.map(np.zeros_like, block['Conv_1'])}
  changed = {'params': params | {'ResidualBlock_1': silent}}
  actual = decoder.apply(changed, latents)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize('activation', vqvae.ACTIVATIONS)
def test_encoder_against_plain_convolutions(activation):
  """Space to depth and a 3x3 convolution equal a strided 6x6 convolution."""
  activate = _ACTIVATIONS[activation]
  model = vqvae.Encoder(
    activation=activation,
    features=4,
    num_residual_blocks=0,
    residual_features=4,
    downsampling=2,
    code_dim=_D,
  )
  images = _images((1, 8, 8, 3))
  params = _random(model, images)['params']
  kernel = params['Conv_0']['kernel'].reshape(3, 3, 2, 2, 3, 4)
  strided = np.einsum('hwijco->hiwjco', kernel).reshape(6, 6, 3, 4)
  x = jax.lax.conv_general_dilated(
    images - 0.5,
    strided,
    (2, 2),
    ((2, 2), (2, 2)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  x = activate(x + params['Conv_0']['bias'])
  conv = layers.Conv(4, (3, 3))
  x = activate(conv.apply({'params': params['Conv_1']}, x))
  expected = x @ params['Conv_2']['kernel'][0, 0] + params['Conv_2']['bias']
  actual = model.apply({'params': params}, images)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_block_with_norm_does_not_depend_on_the_scale():
  block = vqvae.ResidualBlock(4, norm_groups=2)
  x = 10 * _images((1, 4, 5, 6))
  variables = _random(block, x)
  change = block.apply(variables, x) - x
  change_of_double = block.apply(variables, 2 * x) - 2 * x
  np.testing.assert_allclose(change, change_of_double, rtol=1e-3, atol=1e-4)


def test_attention_against_its_formula():
  attention = vqvae.Attention(num_heads=2)
  x = _images((1, 3, 4, 6))
  params = _random(attention, x)['params']
  rows = np.float64(x).reshape(12, 6)
  y = rows - rows.mean(1, keepdims=True)
  y /= np.sqrt(y.var(1, keepdims=True) + 1e-6)
  y = y * params['LayerNorm_0']['scale'] + params['LayerNorm_0']['bias']
  parts = params['MultiHeadDotProductAttention_0']

  def project(name):  # to [heads, rows, 3]
    kernel, bias = parts[name]['kernel'], parts[name]['bias']
    return np.einsum('nc,chd->hnd', y, kernel) + bias[:, None]

  query, key, value = (project(name) for name in ('query', 'key', 'value'))
  scores = query @ key.swapaxes(1, 2) / np.sqrt(3)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  mixed = weights / weights.sum(-1, keepdims=True) @ value
  out = np.einsum('hnd,hdc->nc', mixed, parts['out']['kernel'])
  expected = x.reshape(12, 6) + out + parts['out']['bias']
  actual = attention.apply({'params': params}, x)
  np.testing.assert_allclose(actual.reshape(12, 6), expected, atol=1e-4)


@pytest.mark.parametrize('activation', vqvae.ACTIVATIONS)
def test_residual_block_against_its_formula(activation):
  activate = _ACTIVATIONS[activation]
  block = vqvae.ResidualBlock(4, activation)
  x = jnp.float32(np.random.default_rng(0).normal(size=(1, 4, 5, 6)))
  params = _random(block, x)['params']
  y = layers.Conv(4, (3, 3)).apply({'params': params['Conv_0']}, activate(x))
  kernel, bias = params['Conv_1']['kernel'][0, 0], params['Conv_1']['bias']
  expected = x + activate(y) @ kernel + bias
  actual = block.apply({'params': params}, x)
  np.testing.assert_allclose(actual, expected, atol=1e-5)
