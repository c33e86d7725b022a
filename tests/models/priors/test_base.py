"""The parts that all priors share: conditions and embeddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.models.priors import base

_SPEC = (('label', 7), ('site', 3))


def _conditions(count):
  rng = np.random.default_rng(0)
  return {
    name: jnp.asarray(rng.integers(0, number, count), jnp.int32)
    for name, number in _SPEC
  }


class _Prior(base.Prior):
  conditions: base.ConditionSpec = _SPEC


def test_null_value_is_the_number_of_values():
  null = _Prior().null_conditions(2)
  assert {name: x.tolist() for name, x in null.items()} == {
    'label': [7, 7],
    'site': [3, 3],
  }
  assert {x.dtype for x in null.values()} == {jnp.dtype('int32')}


@pytest.mark.parametrize('rate', [0.0, 0.1, 0.5, 1.0])
def test_one_condition_is_dropped_as_by_a_vector_of_its_own(rate):
  rng = jax.random.key(3)
  label = _conditions(1001)['label']
  drop = jax.random.bernoulli(rng, rate, label.shape)
  dropped = base.drop_conditions(rng, {'label': label}, _SPEC[:1], [rate])
  assert set(dropped) == {'label'}
  assert dropped['label'].dtype == jnp.int32
  np.testing.assert_array_equal(dropped['label'], jnp.where(drop, 7, label))


def test_conditions_are_dropped_independently():
  count, rates = 20_000, [0.3, 0.6]
  conditions = _conditions(count)
  dropped = jax.jit(base.drop_conditions, static_argnums=2)(
    jax.random.key(0), conditions | {'age': jnp.zeros(count)}, _SPEC, rates
  )
  assert list(dropped) == ['label', 'site']  # no others
  is_null = {name: dropped[name] == number for name, number in _SPEC}
  for name, _ in _SPEC:  # conditions that are not dropped are unchanged
    kept = ~is_null[name]
    np.testing.assert_array_equal(dropped[name][kept], conditions[name][kept])
  both = is_null['label'] & is_null['site']
  expected = 0.3, 0.6, 0.3 * 0.6
  for share, p in zip((*is_null.values(), both), expected):
    assert abs(share.mean() - p) < 4 * (p * (1 - p) / count) ** 0.5


def test_condition_embedding_is_the_sum_of_all_embeddings():
  module = base.ConditionEmbedding(_SPEC, 16)
  conditions = _conditions(5) | {'age': jnp.zeros(5)}  # ignored
  x, variables = module.init_with_output(jax.random.key(0), conditions)
  tables = {k: v['embedding'] for k, v in variables['params'].items()}
  assert {name: table.shape for name, table in tables.items()} == {
    'label': (8, 16),
    'site': (4, 16),
  }
  assert all(0.05 < table.std() < 0.15 for table in tables.values())
  expected = sum(tables[name][conditions[name]] for name in tables)
  np.testing.assert_array_equal(x, expected)
  half = module.copy(dtype=jnp.bfloat16)
  assert half.apply(variables, conditions).dtype == jnp.bfloat16


def test_a_single_condition_is_embedded_as_it_is():
  module = base.ConditionEmbedding(_SPEC[:1], 16)
  conditions = _conditions(5)
  x, variables = module.init_with_output(jax.random.key(0), conditions)
  table = variables['params']['label']['embedding']
  np.testing.assert_array_equal(x, table[conditions['label']])


@pytest.mark.parametrize(
  ('spec', 'error', 'message'),
  [((), errors.UserError, 'needs a condition'), (_SPEC, KeyError, 'site')],
)
def test_refuses_missing_conditions(spec, error, message):
  module = base.ConditionEmbedding(spec, 16)
  with pytest.raises(error, match=message):
    module.init(jax.random.key(0), {'label': jnp.zeros(5, jnp.int32)})


@pytest.mark.parametrize('tied', [False, True])
def test_code_embedding(tied):
  module = base.CodeEmbedding(50, features=16, tied=tied)
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
  # The initial embedding is about equally large, tied or not.
  np.testing.assert_allclose(scale * table.std(), 1, rtol=0.1)
  assert logits.std() < 2
  half = module.copy(dtype=jnp.bfloat16)
  x, logits = half.apply(variables, codes, method=embed_and_read)
  assert (x.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize('grid', [(2, 3), (1, 4), (4, 1)])
def test_previous_in_raster(grid):
  x = np.random.default_rng(0).normal(size=(2, *grid, 3)).astype(np.float32)
  flat = x.reshape(2, -1, 3)
  expected = np.concatenate([np.zeros((2, 1, 3)), flat[:, :-1]], axis=1)
  moved = base.previous_in_raster(jnp.asarray(x))
  np.testing.assert_array_equal(moved, expected.reshape(x.shape))


def test_codes_that_do_not_exist_are_embedded_as_zeros():
  table = jnp.asarray([[1.0, 2.0], [3.0, -1.0]])
  codes = jnp.asarray([[1, 0, 1]])
  embed = jax.jit(
    lambda exists: base.embed_past(table.__getitem__, codes, exists)
  )
  np.testing.assert_array_equal(embed(True), table[codes])
  np.testing.assert_array_equal(embed(False), np.zeros((1, 3, 2)))
