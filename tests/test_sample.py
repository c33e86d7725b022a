import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import errors, sample
from dermvq_jax.models import gated_pixelcnn

_CODES = 6
_PRIOR = gated_pixelcnn.GatedPixelCNN(
  _CODES, num_classes=2, num_layers=2, features=8, head_features=16
)
_GRID = (3, 4)


def _variables(dtype=np.float32):
  codes, labels = jnp.zeros((1, 2, 2), jnp.int32), jnp.zeros(1, jnp.int32)
  shapes = jax.eval_shape(
    lambda: _PRIOR.init(jax.random.key(0), codes, labels, train=False)
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(dtype), shapes
  )


@jax.jit
def _all_logits(variables, codes, labels):
  return _PRIOR.apply(variables, codes, labels, train=False)


@functools.partial(jax.jit, static_argnums=2)
def _noise(keys, row, width):
  keys = [jax.random.fold_in(key, row) for key in keys]
  shape = (width, _CODES)
  return jnp.stack([jax.random.gumbel(k, shape, jnp.float32) for k in keys])


def _recomputing_sampler(variables, labels, keys, grid, temperature):
  """Runs the whole prior for every code, on the same keys."""
  codes = np.zeros((len(labels), *grid), np.int32)
  for i in range(grid[0]):
    noise = np.asarray(_noise(keys, i, grid[1]))  # [B, w, K]
    for j in range(grid[1]):
      logits = np.asarray(_all_logits(variables, codes, labels))[:, i, j]
      scores = logits + temperature * noise[:, j]
      codes[:, i, j] = scores.argmax(-1)
  return codes


@pytest.mark.parametrize('temperature', [1.0, 0.5, 0.0])
def test_draws_what_the_recomputing_sampler_draws(temperature):
  with jax.enable_x64(True):
    variables = _variables(np.float64)
    labels = jnp.arange(12, dtype=jnp.int32) % 3
    keys = sample.image_keys(0, labels)
    args = variables, labels, keys, _GRID, temperature
    codes = sample.sample_codes(_PRIOR, *args)
    np.testing.assert_array_equal(codes, _recomputing_sampler(*args))
  assert codes.dtype == jnp.int32


def test_an_image_does_not_depend_on_its_batch():
  labels = jnp.asarray([0, 1, 2, 1, 0])
  keys = sample.image_keys(7, labels)
  variables = _variables()

  def draw(chosen):
    return sample.sample_codes(
      _PRIOR, variables, labels[chosen], keys[chosen], _GRID
    )

  together = draw(np.arange(5))
  np.testing.assert_array_equal(draw(np.arange(5)[::-1]), together[::-1])
  for n in range(5):
    np.testing.assert_array_equal(draw(np.asarray([n])), together[n : n + 1])


@pytest.mark.parametrize('chunk_size', [2, 5, 8])
def test_chunks_change_nothing(chunk_size):
  labels = np.asarray([0, 1, 2, 1, 0])
  keys = sample.image_keys(7, labels)
  expected = sample.sample_codes(_PRIOR, _variables(), labels, keys, _GRID)
  codes = sample.sample_in_batches(
    _PRIOR, _variables(), labels, keys, _GRID, chunk_size=chunk_size
  )
  assert codes.dtype == np.int32
  np.testing.assert_array_equal(codes, expected)


def test_no_images():
  keys = sample.image_keys(0, [])
  codes = sample.sample_in_batches(_PRIOR, _variables(), [], keys, _GRID)
  assert codes.shape == (0, *_GRID)


def test_progress_is_shown_on_demand(capsys):
  labels = np.asarray([0, 1, 2])
  args = _PRIOR, _variables(), labels, sample.image_keys(0, labels), _GRID
  sample.sample_in_batches(*args, chunk_size=2)
  assert not capsys.readouterr().err
  sample.sample_in_batches(*args, chunk_size=2, show_progress=True)
  assert '3/3' in capsys.readouterr().err


def test_values_do_not_recompile():
  def draw(seed, temperature):
    labels = np.asarray([seed, 1])
    keys = sample.image_keys(seed, labels)
    sample.sample_codes(_PRIOR, _variables(), labels, keys, _GRID, temperature)
    return sample._sample_codes._cache_size()

  compiled = draw(0, 1.0)
  assert draw(1, 0.5) == draw(2, 0) == compiled


@pytest.mark.parametrize('temperature', [-0.1, float('nan'), float('inf')])
def test_refuses_impossible_temperatures(temperature):
  keys = sample.image_keys(0, [0])
  for draw in (sample.sample_codes, sample.sample_in_batches):
    with pytest.raises(errors.UserError, match='temperature'):
      draw(_PRIOR, {}, np.asarray([0]), keys, _GRID, temperature)


def test_image_keys():
  labels, ids = [0, 0, 1, 1, 1], [0, 1, 0, 1, 2]
  keys = sample.image_keys(3, labels, ids)
  for key, label, n in zip(keys, labels, ids):
    expected = jax.random.fold_in(
      jax.random.fold_in(jax.random.key(3), label), n
    )
    assert key == expected
  every = [sample.image_keys(seed, labels, ids) for seed in (3, 4)]
  bits = np.concatenate([jax.random.key_data(keys) for keys in every])
  assert len(np.unique(bits, axis=0)) == len(bits)


def test_ids_count_within_each_label():
  labels = [4, 1, 4, 4, 1]
  ids = sample.count_within_labels(labels)
  np.testing.assert_array_equal(ids, [0, 0, 1, 2, 1])
  assert (
    sample.image_keys(0, labels) == sample.image_keys(0, labels, ids)
  ).all()


class _Table(nn.Module):
  """A prior without parameters: p(code | code to the left, code above)."""

  codebook_size: int = 2

  def init_cache(self, labels, grid):
    return {'above': jnp.zeros((grid[1], len(labels)), jnp.int32)}

  def start_row(self, cache, i, row_above):
    return {'above': jnp.where(i > 0, row_above.T, 0)}

  def step(self, cache, i, j, previous):
    left = jnp.where(j > 0, previous, 0)
    return cache, jnp.log(_table()[left, cache['above'][j]])


def _table():
  ones = jnp.asarray([[0.3, 0.5], [0.8, 0.1]])  # [left, above]
  return jnp.stack([1 - ones, ones], -1)


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_frequencies_of_a_known_distribution(temperature):
  images = 4000
  keys = sample.image_keys(0, [0] * images)
  codes = sample.sample_codes(
    _Table(), {}, jnp.zeros(images, jnp.int32), keys, (2, 2), temperature
  )
  table = np.asarray(_table()) ** (1 / temperature)
  table /= table.sum(-1, keepdims=True)
  expected = np.zeros((2, 2, 2, 2))
  for a, b, c, d in np.ndindex(expected.shape):
    expected[a, b, c, d] = images * (
      table[0, 0, a] * table[a, 0, b] * table[0, a, c] * table[c, b, d]
    )
  observed = np.zeros_like(expected)
  np.add.at(observed, tuple(np.asarray(codes).reshape(-1, 4).T), 1)
  chi_squared = ((observed - expected) ** 2 / expected).sum()
  assert chi_squared < 37.7  # 15 degrees of freedom, p = 0.001


def test_choose_takes_the_first_of_equals():
  logits = jnp.asarray([[0.0, 2.0, 2.0], [3.0, 1.0, -jnp.inf]])
  codes = sample.choose(logits, jnp.zeros((2, 3)), 1.0)
  assert codes.dtype == jnp.int32
  np.testing.assert_array_equal(codes, [1, 0])
