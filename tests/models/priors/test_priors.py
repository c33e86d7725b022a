"""The contract of `base.Prior` for every prior, and what is special in each.

All tests have two conditions; no prior knows their names.
"""

import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from dermvq_jax import errors
from dermvq_jax.models import losses, priors
from dermvq_jax.models.priors import (
  base,
  gated_pixelcnn,
  levels,
  pixelcnn,
  rnn,
  transformer,
)

_CODES = 7
_CONDITIONS = (('label', 3), ('site', 3))
_NAMES = [name for name, _ in _CONDITIONS]
_SMALL = dict(codebook_size=_CODES, conditions=_CONDITIONS)
_LABEL = (('label', 7),)

# Small, but deep enough to see all of a 4 x 5 grid. A new prior is a new row.
PRIORS = {
  'gated_pixelcnn': gated_pixelcnn.GatedPixelCNN(
    **_SMALL,
    num_layers=3,
    features=8,
    head_features=16,
    first_kernel_size=5,
  ),
  'pixelcnn': pixelcnn.PixelCNN(
    **_SMALL,
    num_layers=2,
    features=16,
    head_features=16,
    first_kernel_size=5,
  ),
  'rnn': rnn.RNN(**_SMALL, num_layers=2, features=8),
  'transformer': transformer.Transformer(
    **_SMALL, num_layers=2, features=8, num_heads=2
  ),
}
# Other code paths of the incremental form.
_VARIANTS = {
  'gated_pixelcnn_wide_kernel': gated_pixelcnn.GatedPixelCNN(
    **_SMALL,
    num_layers=2,
    features=8,
    head_features=16,
    kernel_size=5,
    first_kernel_size=3,
  ),
  'pixelcnn_wide_kernel_tied': pixelcnn.PixelCNN(
    **_SMALL,
    num_layers=2,
    features=16,
    kernel_size=5,
    first_kernel_size=3,
    tie_embeddings=True,
  ),
  'rnn_gru_one_layer_tied': rnn.RNN(
    **_SMALL,
    num_layers=1,
    features=8,
    cell='gru',
    kernel_size=5,
    tie_embeddings=True,
  ),
  'transformer_one_head_tied': transformer.Transformer(
    **_SMALL, num_layers=1, features=8, num_heads=1, tie_embeddings=True
  ),
  'leveled': levels.LeveledPrior(PRIORS['rnn'], num_levels=1),
}
# Properties that the sampler and the training rely on.
assert all(isinstance(p, base.Prior) for p in (PRIORS | _VARIANTS).values())


def test_every_prior_has_a_row():
  modules = {
    module.name: importlib.import_module(f'{priors.__name__}.{module.name}')
    for module in pkgutil.iter_modules(priors.__path__)
  }
  found = {name for name, m in modules.items() if hasattr(m, 'Prior')}
  assert found - {'base'} == set(PRIORS)


every_prior = pytest.mark.parametrize('prior', PRIORS.values(), ids=PRIORS)
_CASES = [(name, (4, 5)) for name in PRIORS | _VARIANTS] + [
  (name, grid) for name in PRIORS for grid in [(1, 6), (6, 1)]
]
every_case = pytest.mark.parametrize('name, grid', _CASES)


def _codes(batch, grid, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, _CODES, (batch, *grid)), jnp.int32)


def _conditions(batch):
  """Pairs of a label and a site, null values included."""
  n = jnp.arange(batch, dtype=jnp.int32)
  return {'label': n % 4, 'site': (n + 1 + n // 4) % 4}


def _shapes(prior):
  inputs = _codes(1, (4, 4)), prior.null_conditions(1)
  return jax.eval_shape(
    lambda: prior.init(jax.random.key(0), *inputs, train=False)
  )


@functools.cache
def _variables(prior, dtype=np.float32):
  """Random parameters, so that no bias is zero."""
  rng = np.random.default_rng(0)

  def normal(leaf):
    fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim == 4 else 4
    return (rng.normal(size=leaf.shape) / fan_in**0.5).astype(dtype)

  return jax.tree.map(normal, _shapes(prior))


@functools.partial(jax.jit, static_argnums=0)
def _full(prior, variables, codes, conditions):
  return prior.apply(variables, codes, conditions, train=False)


@functools.partial(jax.jit, static_argnums=0)
def _incremental(prior, variables, codes, conditions):
  """Logits from the incremental form, given the true codes."""
  _, height, width = codes.shape
  # The codes before the first row or column must not matter.
  before = ((0, 0), (1, 0), (1, 0))
  codes = jnp.pad(codes, before, constant_values=_CODES - 1)
  methods = prior.bind(variables)

  def run_row(cache, i):
    cache = methods.start_row(cache, i, codes[:, i, 1:])
    return lax.scan(
      lambda cache, j: methods.step(cache, i, j, codes[:, i + 1, j]),
      cache,
      jnp.arange(width),
    )

  cache = methods.init_cache(conditions, (height, width))
  _, logits = lax.scan(run_row, cache, jnp.arange(height))
  return jnp.moveaxis(logits, 2, 0)  # [B, h, w, K]


@functools.cache
def _float64_logits(name, grid):
  """Full and incremental logits of images that differ in one code.

  Image p differs from the last one only in the code at position p.
  """
  prior, size = (PRIORS | _VARIANTS)[name], grid[0] * grid[1]
  codes = np.tile(_codes(1, grid), (size + 1, 1, 1)).reshape(size + 1, size)
  codes[np.arange(size), np.arange(size)] += 1
  codes = jnp.asarray(codes % _CODES).reshape(-1, *grid)
  with jax.enable_x64(True):
    conditions = {name: jnp.ones(size + 1, jnp.int32) for name in _NAMES}
    args = _variables(prior, np.float64), codes, conditions
    logits = _full(prior, *args), _incremental(prior, *args)
    return tuple(np.asarray(x).reshape(size + 1, size, _CODES) for x in logits)


@every_case
def test_incremental_and_full_logits_agree(name, grid):
  full, incremental = _float64_logits(name, grid)
  assert full.dtype == incremental.dtype == np.float64
  np.testing.assert_allclose(incremental, full, rtol=0, atol=1e-9)


@every_prior
def test_incremental_and_full_logits_agree_in_float32(prior):
  args = _variables(prior), _codes(5, (3, 4)), _conditions(5)
  full = _full(prior, *args)
  incremental = _incremental(prior, *args)
  assert full.shape == (5, 3, 4, _CODES)
  assert full.dtype == incremental.dtype == np.float32
  np.testing.assert_allclose(incremental, full, rtol=0, atol=1e-4)


def _pixelcnn_field(prior, grid):
  """Computes from its masks what a PixelCNN sees: bool [seen, seeing]."""
  rows, columns = np.indices(grid).reshape(2, -1)

  def mask(kernel_size, include_self):
    near = abs(rows[:, None] - rows) <= kernel_size // 2
    near &= abs(columns[:, None] - columns) <= kernel_size // 2
    return np.triu(near, k=0 if include_self else 1).astype(float)

  blocks = mask(prior.kernel_size, include_self=True)
  blocks = np.linalg.matrix_power(blocks, prior.num_layers)
  return mask(prior.first_kernel_size, include_self=False) @ blocks > 0


@every_case
def test_a_position_sees_exactly_those_before_it(name, grid):
  full, _ = _float64_logits(name, grid)
  change = abs(full[:-1] - full[-1]).max(-1)  # [changed, seeing]
  seen = np.triu(np.ones(change.shape, bool), k=1)
  if name.startswith('pixelcnn'):
    field = _pixelcnn_field((PRIORS | _VARIANTS)[name], grid)
    assert not (field & ~seen).any()
    seen = field
  assert change[~seen].max() < 1e-13
  assert change[seen].min() > 1e-10


@pytest.mark.parametrize('num_layers', [2, 50])
def test_pixelcnn_has_its_known_blind_spot(num_layers):
  prior = PRIORS['pixelcnn'].copy(num_layers=num_layers)
  field = _pixelcnn_field(prior, (4, 5)).reshape(4, 5, 4, 5)
  seen = np.where(field[:, :, 3, 0], 'x', '.')  # by the first of the last row
  assert [''.join(row) for row in seen] == ['xxxxx', 'xxxx.', 'xxx..', '.....']


@every_prior
@pytest.mark.parametrize('name', _NAMES)
def test_values_and_null_value_of_every_condition_matter_everywhere(
  prior, name
):
  count = dict(_CONDITIONS)[name] + 1
  codes = jnp.tile(_codes(1, (3, 4)), (count, 1, 1))
  conditions = prior.null_conditions(count) | {name: jnp.arange(count)}
  logits = _full(prior, _variables(prior), codes, conditions)
  for a in range(count):
    for b in range(a):
      assert abs(logits[a] - logits[b]).max(-1).min() > 1e-3


@every_prior
def test_other_conditions_are_ignored(prior):
  args = _variables(prior), _codes(5, (3, 4))
  more = _conditions(5) | {'age': jnp.arange(5)}
  for form in (_full, _incremental):
    np.testing.assert_array_equal(
      form(prior, *args, more), form(prior, *args, _conditions(5))
    )


@every_prior
def test_a_missing_condition_is_an_error(prior):
  label = {'label': jnp.zeros(1, jnp.int32)}
  with pytest.raises(KeyError, match='site'):
    prior.apply(_variables(prior), _codes(1, (3, 4)), label, train=False)


# Number of embeddings of each condition.
_NUM_EMBEDDINGS = {
  'gated_pixelcnn': 3,  # one per layer
  'pixelcnn': 2,
  'rnn': 2,
  'transformer': 1,  # added to every position
}


@pytest.mark.parametrize('name', PRIORS)
def test_only_embeddings_of_the_values_given_have_a_gradient(name):
  prior = PRIORS[name]
  values = {'label': 3, 'site': 1}  # null, and a site
  conditions = {k: jnp.asarray([value]) for k, value in values.items()}

  @jax.jit
  @jax.grad
  def gradient(variables):
    logits = prior.apply(variables, _codes(1, (3, 3)), conditions, train=False)
    return (logits**2).sum()

  gradients = jax.tree.leaves_with_path(gradient(_variables(prior)))
  for condition, value in values.items():
    embeddings = [
      x for path, x in gradients if condition in jax.tree_util.keystr(path)
    ]
    assert len(embeddings) == _NUM_EMBEDDINGS[name]
    for leaf in embeddings:
      assert leaf.shape[0] == 4
      assert abs(leaf[value]).max() > 0
      assert abs(np.delete(leaf, value, axis=0)).max() == 0


@every_prior
def test_overfits_a_tiny_set(prior):
  codes, conditions = _codes(4, (3, 3)), _conditions(4)
  tx = optax.adam(1e-2)

  def loss_fn(variables):
    logits = prior.apply(variables, codes, conditions, train=True)
    return losses.cross_entropy(logits, codes).mean()

  @jax.jit
  def train(variables):
    def step(carry, _):
      variables, state = carry
      loss, gradient = jax.value_and_grad(loss_fn)(variables)
      updates, state = tx.update(gradient, state)
      return (optax.apply_updates(variables, updates), state), loss

    carry = variables, tx.init(variables)
    return jax.lax.scan(step, carry, length=150)[1]

  loss = train(_variables(prior))
  assert loss[0] > 1
  assert loss[-1] < 0.05


@every_prior
def test_dropout_only_in_training(prior):
  prior = prior.copy(num_layers=1)
  args = _variables(prior), _codes(5, (3, 4)), _conditions(5)
  dropping = prior.copy(dropout_rate=0.5)

  @jax.jit
  def train(seed, *args):
    rngs = {'dropout': jax.random.key(seed)}
    return dropping.apply(*args, train=True, rngs=rngs)

  np.testing.assert_array_equal(train(0, *args), train(0, *args))
  assert abs(train(0, *args) - train(1, *args)).max() > 1e-3
  # Otherwise it needs no random numbers.
  np.testing.assert_allclose(
    _full(dropping, *args), _full(prior, *args), atol=1e-5
  )


@every_prior
def test_bfloat16(prior):
  prior = prior.copy(num_layers=1)
  args = _variables(prior), _codes(5, (3, 4)), _conditions(5)
  exact = _full(prior, *args)
  half = prior.copy(dtype=jnp.bfloat16)
  for logits in (_full(half, *args), _incremental(half, *args)):
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, exact, atol=0.2)


@pytest.mark.parametrize(
  'prior, count',
  [
    (gated_pixelcnn.GatedPixelCNN(512, _LABEL), 1_545_728),
    (PRIORS['gated_pixelcnn'].copy(conditions=(('label', 3),)), 5_599),
    (pixelcnn.PixelCNN(512, _LABEL), 1_224_576),
    (rnn.RNN(512, _LABEL), 1_213_776),
    (rnn.RNN(512, _LABEL, cell='gru'), 1_040_720),
    (transformer.Transformer(512, _LABEL), 1_322_496),
    # Without a matrix for the logits.
    (rnn.RNN(512, _LABEL, tie_embeddings=True), 1_213_776 - 512 * 208),
    (
      transformer.Transformer(512, _LABEL, tie_embeddings=True),
      1_322_496 - 512 * 128,
    ),
  ],
)
def test_number_of_parameters(prior, count):
  leaves = jax.tree.leaves(_shapes(prior))
  assert sum(leaf.size for leaf in leaves) == count
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  'prior, message',
  [
    (PRIORS['gated_pixelcnn'].copy(first_kernel_size=1), 'must be odd'),
    (PRIORS['pixelcnn'].copy(kernel_size=1), 'must be odd'),
    (PRIORS['rnn'].copy(cell='tanh'), "'lstm' or 'gru'"),
    (PRIORS['transformer'].copy(num_heads=3), 'divisible'),
    (PRIORS['transformer'].copy(features=6), 'divisible'),
  ],
)
def test_refuses_fields_that_cannot_work(prior, message):
  with pytest.raises(errors.UserError, match=message):
    _shapes(prior)


def test_transformer_positions_are_all_different():
  args = 16, jnp.float32
  grid = transformer.positions(jnp.arange(20), jnp.arange(30), *args)
  assert grid.shape == (20, 30, 16)
  flat = np.asarray(grid).reshape(-1, 16)
  products = flat @ flat.T  # All have the same length: sin^2 + cos^2 = 1.
  np.testing.assert_allclose(np.diag(products), 8, rtol=1e-5)
  assert (products - 100 * np.eye(len(flat))).max() < 7.99
  # The first half depends only on the row, the second only on the column.
  np.testing.assert_array_equal(grid[3, :, :8], grid[3, :1, :8].repeat(30, 0))
  np.testing.assert_array_equal(grid[:, 3, 8:], grid[:1, 3, 8:].repeat(20, 0))
