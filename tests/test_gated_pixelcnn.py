"""What every prior keeps, and what is the Gated PixelCNN's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dermvq_jax import losses
from dermvq_jax.models import gated_pixelcnn

_CODES, _CLASSES = 7, 3
_SMALL = dict(codebook_size=_CODES, num_classes=_CLASSES)

# Small, yet deep enough to see all of a 5 x 5 grid. A prior is a row here.
PRIORS = {
  'gated_pixelcnn': gated_pixelcnn.GatedPixelCNN(
    **_SMALL,
    num_layers=3,
    features=8,
    head_features=16,
    first_kernel_size=5,
  ),
  'gated_pixelcnn_wide_kernel': gated_pixelcnn.GatedPixelCNN(
    **_SMALL,
    num_layers=2,
    features=8,
    head_features=16,
    kernel_size=5,
    first_kernel_size=3,
  ),
}
_GRIDS = [(4, 5), (1, 6), (6, 1)]

every_prior = pytest.mark.parametrize('prior', PRIORS.values(), ids=PRIORS)


def _codes(batch, grid, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, _CODES, (batch, *grid)), jnp.int32)


def _labels(batch):
  return jnp.arange(batch, dtype=jnp.int32) % (_CLASSES + 1)


def _variables(prior, dtype=np.float32):
  """Random parameters, so that nothing is hidden by a zero bias."""
  rng = np.random.default_rng(0)

  def draw(leaf):
    fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim == 4 else 4
    return (rng.normal(size=leaf.shape) / fan_in**0.5).astype(dtype)

  return jax.tree.map(draw, _shapes(prior))


def _shapes(prior):
  inputs = _codes(1, (4, 4)), _labels(1)
  return jax.eval_shape(
    lambda: prior.init(jax.random.key(0), *inputs, train=False)
  )


@functools.partial(jax.jit, static_argnums=0)
def _apply(prior, variables, codes, labels):
  return prior.apply(variables, codes, labels, train=False)


def _full(*args):
  return np.asarray(_apply(*args))


@functools.partial(jax.jit, static_argnums=0)
def _start_row(prior, variables, cache, i, row):
  return prior.apply(variables, cache, i, row, method='start_row')


@functools.partial(jax.jit, static_argnums=0)
def _step(prior, variables, cache, i, j, previous):
  return prior.apply(variables, cache, i, j, previous, method='step')


def _incremental(prior, variables, codes, labels):
  """Logits from the incremental form, given the true codes."""
  _, height, width = codes.shape

  cache = prior.apply(variables, labels, (height, width), method='init_cache')
  # What is before the first row or column must not matter.
  codes = np.pad(codes, ((0, 0), (1, 0), (1, 0)), constant_values=_CODES - 1)
  logits = []
  for i in range(height):
    cache = _start_row(prior, variables, cache, i, codes[:, i, 1:])
    for j in range(width):
      cache, code_logits = _step(
        prior, variables, cache, i, j, codes[:, i + 1, j]
      )
      logits.append(code_logits)
  return np.stack(logits, 1).reshape(-1, height, width, _CODES)


@every_prior
@pytest.mark.parametrize('grid', _GRIDS)
def test_incremental_logits_are_the_full_ones(prior, grid):
  variables, codes, labels = _variables(prior), _codes(4, grid), _labels(4)
  full = _full(prior, variables, codes, labels)
  assert (full.shape, full.dtype) == ((4, *grid, _CODES), np.float32)
  incremental = _incremental(prior, variables, codes, labels)
  assert incremental.dtype == np.float32
  np.testing.assert_allclose(incremental, full, rtol=0, atol=1e-4)


@every_prior
def test_incremental_logits_in_float64(prior):
  with jax.enable_x64(True):
    variables = _variables(prior, np.float64)
    codes, labels = _codes(2, (5, 4)), _labels(2)
    full = _full(prior, variables, codes, labels)
    incremental = _incremental(prior, variables, codes, labels)
  assert full.dtype == incremental.dtype == np.float64
  np.testing.assert_allclose(incremental, full, rtol=0, atol=1e-9)


@every_prior
@pytest.mark.parametrize('grid', [(5, 5), (2, 5)])
def test_every_past_position_is_seen_and_no_other(prior, grid):
  size = grid[0] * grid[1]
  codes = np.tile(_codes(1, grid), (size + 1, 1, 1)).reshape(size + 1, size)
  # Image p has another code at position p; the last one is as it was.
  codes[np.arange(size), np.arange(size)] += 1
  codes = jnp.asarray(codes % _CODES).reshape(-1, *grid)
  with jax.enable_x64(True):
    variables = _variables(prior, np.float64)
    labels = jnp.zeros(size + 1, jnp.int32)
    logits = _full(prior, variables, codes, labels)
  logits = logits.reshape(size + 1, size, _CODES)
  change = abs(logits[:-1] - logits[-1]).max(-1)  # [changed, seeing]
  past = np.triu(np.ones((size, size), bool), k=1)
  assert change[~past].max() < 1e-13
  assert change[past].min() > 1e-10


@every_prior
def test_labels_and_null_label_matter_everywhere(prior):
  labels = jnp.arange(_CLASSES + 1)
  codes = jnp.tile(_codes(1, (3, 4)), (len(labels), 1, 1))
  logits = _full(prior, _variables(prior), codes, labels)
  for a in range(len(labels)):
    for b in range(a):
      assert abs(logits[a] - logits[b]).max(-1).min() > 1e-3


@every_prior
def test_overfits_a_tiny_set(prior):
  codes, labels = _codes(4, (3, 3)), _labels(4)
  tx = optax.adam(1e-2)

  def loss_fn(variables):
    logits = prior.apply(variables, codes, labels, train=True)
    return losses.cross_entropy(logits, codes).mean()

  @jax.jit
  def train(variables):
    def step(carry, _):
      variables, state = carry
      loss, gradient = jax.value_and_grad(loss_fn)(variables)
      updates, state = tx.update(gradient, state)
      return (optax.apply_updates(variables, updates), state), loss

    carry = variables, tx.init(variables)
    return jax.lax.scan(step, carry, length=100)[1]

  loss = train(_variables(prior))
  assert loss[0] > 1
  assert loss[-1] < 0.05


@pytest.mark.parametrize(
  'prior, count',
  [
    (gated_pixelcnn.GatedPixelCNN(512, 7), 1_545_728),
    (PRIORS['gated_pixelcnn'], 5_599),
  ],
)
def test_number_of_parameters(prior, count):
  leaves = jax.tree.leaves(_shapes(prior))
  assert sum(leaf.size for leaf in leaves) == count
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}


def test_gated_pixelcnn_has_a_class_bias_in_every_layer_and_stack():
  prior = PRIORS['gated_pixelcnn']
  variables = _variables(prior)
  codes, null_label = _codes(1, (3, 3)), jnp.asarray([_CLASSES])

  def energy(variables):
    return (prior.apply(variables, codes, null_label, train=False) ** 2).sum()

  gradients = jax.jit(jax.grad(energy))(variables)['params']
  for n in range(prior.num_layers):
    gradient = gradients[f'layers_{n}']['class_bias']['embedding']
    assert gradient.shape == (_CLASSES + 1, 2 * 2 * prior.features)
    assert abs(gradient[_CLASSES]).min() > 0
    assert abs(gradient[:_CLASSES]).max() == 0


def test_gated_pixelcnn_dropout_only_in_training():
  small = dict(_SMALL, num_layers=1, features=8, head_features=16)
  prior = gated_pixelcnn.GatedPixelCNN(**small, dropout_rate=0.5)
  variables, codes, labels = _variables(prior), _codes(2, (3, 3)), _labels(2)

  @functools.partial(jax.jit, static_argnums=0)
  def apply(train, seed):
    rngs = {'dropout': jax.random.key(seed)}
    return prior.apply(variables, codes, labels, train=train, rngs=rngs)

  np.testing.assert_array_equal(apply(False, 0), apply(False, 1))
  np.testing.assert_array_equal(apply(True, 0), apply(True, 0))
  assert abs(apply(True, 0) - apply(True, 1)).max() > 1e-3
  # Without dropout training needs no random numbers.
  plain = gated_pixelcnn.GatedPixelCNN(**small)
  logits = plain.apply(variables, codes, labels, train=True)
  np.testing.assert_allclose(apply(False, 0), logits, atol=1e-5)


def test_gated_pixelcnn_in_bfloat16():
  prior = PRIORS['gated_pixelcnn']
  variables, codes, labels = _variables(prior), _codes(2, (3, 4)), _labels(2)
  half = prior.copy(dtype=jnp.bfloat16)
  logits = _full(half, variables, codes, labels)
  assert logits.dtype == np.float32
  exact = _full(prior, variables, codes, labels)
  np.testing.assert_allclose(logits, exact, atol=0.2)


def test_gated_pixelcnn_refuses_kernels_without_neighbours():
  prior = gated_pixelcnn.GatedPixelCNN(**_SMALL, first_kernel_size=1)
  with pytest.raises(ValueError, match='no neighbours'):
    _variables(prior)
