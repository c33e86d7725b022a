import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.models.priors import (
  gated_pixelcnn,
  pixelcnn,
  rnn,
  sampler,
  transformer,
)

_CODES = 6
_SMALL = dict(codebook_size=_CODES, num_classes=2, num_layers=2, features=8)
_PRIOR = gated_pixelcnn.GatedPixelCNN(**_SMALL, head_features=16)
_OTHERS = {
  'pixelcnn': pixelcnn.PixelCNN(**_SMALL, head_features=16),
  'rnn': rnn.RNN(**_SMALL),
  'transformer': transformer.Transformer(**_SMALL, num_heads=2),
}
_GRID = (3, 4)


def _variables(dtype=np.float32, prior=_PRIOR):
  codes, labels = jnp.zeros((1, 2, 2), jnp.int32), jnp.zeros(1, jnp.int32)
  shapes = jax.eval_shape(
    lambda: prior.init(jax.random.key(0), codes, labels, train=False)
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(dtype), shapes
  )


@functools.partial(jax.jit, static_argnums=0)
def _all_logits(prior, variables, codes, labels):
  return prior.apply(variables, codes, labels, train=False)


@functools.partial(jax.jit, static_argnums=2)
def _noise(keys, row, width):
  return jax.vmap(
    lambda key: jax.random.gumbel(
      jax.random.fold_in(key, row), (width, _CODES), jnp.float32
    )
  )(keys)


def _log_probs(logits, loss):
  """In NumPy, float64."""
  logits = np.asarray(logits, np.float64)
  if loss == 'bce':
    logits = -np.log1p(np.exp(-logits))
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _choice(scores, noise, temperature=1.0, top_k=0, top_p=1.0):
  """One code from scores [K] and noise [K], as the contract has it."""
  order = sorted(range(len(scores)), key=lambda code: (-scores[code], code))
  order = order[:top_k] if top_k else order
  if temperature:
    weights = np.exp((scores[order] - scores.max()) / temperature)
  else:
    weights = np.float64(scores[order] == scores.max())
  if top_p < 1:
    shares = np.cumsum(weights / weights.sum())
    order = order[: np.argmax(shares >= top_p) + 1]
  return order[np.argmax((scores + temperature * noise)[order])]


def _recomputing_sampler(
  prior, variables, labels, keys, grid, controls, known, loss='cross_entropy'
):
  """Runs the whole prior for every code, on the same keys."""
  settings = dataclasses.asdict(controls)
  scale = settings.pop('guidance_scale')
  codes = np.zeros((len(labels), *grid), np.int32)
  for i in range(grid[0]):
    noise = np.asarray(_noise(keys, i, grid[1]))  # [B, w, K]
    for j in range(grid[1]):
      logits = _all_logits(prior, variables, codes, labels)[:, i, j]
      scores = _log_probs(logits, loss)
      if scale != 1:
        nothing = jnp.full_like(labels, prior.num_classes)
        logits = _all_logits(prior, variables, codes, nothing)[:, i, j]
        scores = scale * scores + (1 - scale) * _log_probs(logits, loss)
      for b in range(len(labels)):
        codes[b, i, j] = _choice(scores[b], noise[b, j], **settings)
        if known and known['known_mask'][b, i, j]:
          codes[b, i, j] = known['known_codes'][b, i, j]
  return codes


def _known(count, grid, seed=0):
  """Random codes, a random half of them known, in every image another."""
  rng = np.random.default_rng(seed)
  codes = rng.integers(0, _CODES, (count, *grid))
  return {'known_codes': codes, 'known_mask': rng.random(codes.shape) < 0.5}


_ALL_ON = sampler.Controls(0.8, top_k=5, top_p=0.7, guidance_scale=2.5)


@pytest.mark.parametrize(
  ('controls', 'grid', 'completes', 'loss'),
  [
    (sampler.Controls(), _GRID, False, 'cross_entropy'),
    (sampler.Controls(0.5), _GRID, True, 'cross_entropy'),
    (sampler.Controls(0.0), _GRID, True, 'bce'),
    (sampler.Controls(top_k=2), _GRID, False, 'cross_entropy'),
    (sampler.Controls(0, top_p=0.9), _GRID, True, 'cross_entropy'),
    (sampler.Controls(guidance_scale=0), (1, 5), True, 'cross_entropy'),
    (_ALL_ON, (3, 4), True, 'cross_entropy'),
    (_ALL_ON, (5, 2), True, 'bce'),
    (_ALL_ON, (5, 1), False, 'cross_entropy'),
  ],
)
def test_draws_what_the_recomputing_sampler_draws(
  controls, grid, completes, loss, prior=_PRIOR
):
  count = 100 if controls is _ALL_ON else 20
  known = _known(count, grid) if completes else {}
  with jax.enable_x64(True):
    labels = jnp.arange(count, dtype=jnp.int32) % 3
    keys = sampler.image_keys(0, labels)
    variables = _variables(np.float64, prior)
    args = prior, variables, labels, keys, grid, controls
    codes = sampler.sample_codes(*args, loss=loss, **known)
    expected = _recomputing_sampler(*args, known, loss)
  np.testing.assert_array_equal(codes, expected)
  assert codes.dtype == jnp.int32
  assert len(np.unique(expected)) > 3  # The test is not about one code.


@pytest.mark.parametrize('name', _OTHERS)
def test_every_prior_draws_what_the_recomputing_sampler_draws(name):
  for grid in ((3, 4), (4, 2)):
    test_draws_what_the_recomputing_sampler_draws(
      _ALL_ON, grid, True, 'cross_entropy', _OTHERS[name]
    )


@pytest.mark.parametrize('controls', [sampler.Controls(), _ALL_ON])
def test_an_image_does_not_depend_on_its_batch(controls):
  labels = jnp.asarray([0, 1, 2, 1, 0])
  keys = sampler.image_keys(7, labels)
  variables = _variables()
  known = _known(5, _GRID) if controls is _ALL_ON else {}

  def draw(chosen):
    return sampler.sample_codes(
      _PRIOR,
      variables,
      labels[chosen],
      keys[chosen],
      _GRID,
      controls,
      **{name: array[chosen] for name, array in known.items()},
    )

  together = draw(np.arange(5))
  np.testing.assert_array_equal(draw(np.arange(5)[::-1]), together[::-1])
  for n in range(5):
    np.testing.assert_array_equal(draw(np.asarray([n])), together[n : n + 1])


@pytest.mark.parametrize('chunk_size', [2, 5, 8])
def test_chunks_change_nothing(chunk_size):
  labels = np.asarray([0, 1, 2, 1, 0])
  args = _PRIOR, _variables(), labels, sampler.image_keys(7, labels), _GRID
  known = _known(5, _GRID)
  expected = sampler.sample_codes(*args, _ALL_ON, **known)
  codes = sampler.sample_in_batches(
    *args, _ALL_ON, **known, chunk_size=chunk_size
  )
  assert codes.dtype == np.int32
  np.testing.assert_array_equal(codes, expected)


def test_no_images():
  keys = sampler.image_keys(0, [])
  codes = sampler.sample_in_batches(_PRIOR, _variables(), [], keys, _GRID)
  assert codes.shape == (0, *_GRID)


def test_progress_is_shown_on_demand(capsys):
  labels = np.asarray([0, 1, 2])
  args = _PRIOR, _variables(), labels, sampler.image_keys(0, labels), _GRID
  sampler.sample_in_batches(*args, chunk_size=2)
  assert not capsys.readouterr().err
  sampler.sample_in_batches(*args, chunk_size=2, show_progress=True)
  assert '3/3' in capsys.readouterr().err


def test_values_do_not_recompile():
  variables = _variables()

  def draw(seed, completes=False, **controls):
    labels = np.asarray([seed, 1])
    keys = sampler.image_keys(seed, labels)
    controls = sampler.Controls(**controls)
    known = _known(2, _GRID, seed) if completes else {}
    sampler.sample_codes(
      _PRIOR, variables, labels, keys, _GRID, controls, **known
    )
    return sampler._sample_codes._cache_size()

  compiled = draw(0)
  assert draw(1, temperature=0.5) == draw(2, temperature=0) == compiled
  assert draw(1, temperature=np.float32(0.7)) == compiled
  on = dict(completes=True, top_k=3, top_p=0.9, guidance_scale=2.0)
  compiled = draw(0, **on)
  assert draw(1, **on) == draw(2, **on, temperature=3) == compiled
  other = dict(completes=True, top_k=10**12, top_p=0.1, guidance_scale=3)
  assert draw(0, **other) == compiled
  other = dict(top_k=np.int64(2), top_p=np.float64(0.5), guidance_scale=0)
  assert draw(0, completes=True, **other) == compiled


# Controls.


@pytest.mark.parametrize('control', ['temperature', 'guidance_scale'])
@pytest.mark.parametrize('value', [-0.1, float('nan'), float('inf')])
def test_refuses_impossible_scales(control, value):
  with pytest.raises(errors.UserError, match=f'{control} is {value}'):
    sampler.Controls(**{control: value})


@pytest.mark.parametrize('top_k', [-1, 2.5, float('nan'), float('inf')])
def test_refuses_impossible_top_k(top_k):
  with pytest.raises(errors.UserError, match='top_k is .*whole number'):
    sampler.Controls(top_k=top_k)


@pytest.mark.parametrize('top_p', [0, -0.5, 1.01, float('nan')])
def test_refuses_impossible_top_p(top_p):
  with pytest.raises(errors.UserError, match=f'top_p is {top_p}'):
    sampler.Controls(top_p=top_p)


def test_what_is_off_is_not_compiled():
  assert sampler.Controls().switched_on() == {'temperature': 1.0}
  assert _ALL_ON.switched_on() == dataclasses.asdict(_ALL_ON)


@pytest.mark.parametrize('temperature', [1.0, 0.3, 0.0])
@pytest.mark.parametrize('top_k', [0, 1, 7, 40, 99])
@pytest.mark.parametrize('top_p', [1.0, 0.9, 0.35, 1e-9])
def test_choose_against_numpy(temperature, top_k, top_p):
  """With many ties and impossible codes among the scores."""
  rng = np.random.default_rng(0)
  scores = rng.integers(-3, 3, (50, 40)).astype(np.float32)
  scores[rng.random(scores.shape) < 0.1] = -np.inf
  noise = rng.gumbel(size=scores.shape).astype(np.float32)
  controls = sampler.Controls(temperature, top_k, top_p).switched_on()
  codes = sampler.choose(jnp.asarray(scores), jnp.asarray(noise), **controls)
  expected = [
    _choice(s.astype(np.float64), n, temperature, top_k, top_p)
    for s, n in zip(scores, noise)
  ]
  assert codes.dtype == jnp.int32
  np.testing.assert_array_equal(codes, expected)


def test_the_code_that_reaches_top_p_is_in():
  scores = jnp.log(jnp.asarray([[0.125, 0.5, 0.25, 0.125]]))

  def possible(top_p):
    """Noise lets each code win in turn, if it may."""
    noise = 100 * jnp.eye(4)
    codes = sampler.choose(jnp.tile(scores, (4, 1)), noise, 1.0, top_p=top_p)
    return set(np.asarray(codes).tolist())

  assert possible(0.01) == possible(0.5) == {1}
  assert possible(0.51) == possible(0.75) == {1, 2}
  # Of equals the one with the lower number comes first.
  assert possible(0.76) == possible(0.87) == {0, 1, 2}
  assert possible(0.88) == {0, 1, 2, 3}


def test_top_p_is_of_what_top_k_leaves():
  scores = jnp.log(jnp.asarray([[0.3, 0.2, 0.5]]))
  noise = jnp.asarray([[100.0, 0, 0]])
  # 0.5 of 0.8 is 0.625: the second one is not needed.
  assert sampler.choose(scores, noise, 1.0, 2, 0.62) == 2
  assert sampler.choose(scores, noise, 1.0, 2, 0.63) == 0
  assert sampler.choose(scores, noise, 1.0, None, 0.62) == 0


def test_guide_against_numpy():
  rng = np.random.default_rng(0)
  c, u = np.log(rng.dirichlet(np.ones(7), (2, 5)))
  for scale in (0.0, 0.5, 1.0, 3.0):
    guided = sampler.guide(jnp.asarray(c), jnp.asarray(u), scale)
    expected = np.exp(u) * (np.exp(c) / np.exp(u)) ** scale
    np.testing.assert_allclose(np.exp(guided), expected, rtol=1e-4)


def test_guidance_leaves_impossible_codes_impossible():
  c = jnp.asarray([-1.0, -jnp.inf, -jnp.inf, -2.0])
  u = jnp.asarray([-1.0, -jnp.inf, -1.0, -jnp.inf])
  for scale in (0.0, 2.0):
    guided = sampler.guide(c, u, scale)
    np.testing.assert_array_equal(guided, [-1, -np.inf, -np.inf, -2])


def test_controls_that_change_nothing():
  """The draws do not depend on what is off, or on without effect."""
  labels = jnp.asarray([0, 1, 0, 1])
  args = _variables(), labels, sampler.image_keys(3, labels), _GRID
  plain = sampler.sample_codes(_PRIOR, *args)
  for controls in (
    sampler.Controls(top_k=_CODES),
    sampler.Controls(top_p=1 - 1e-7, top_k=1000),
  ):
    codes = sampler.sample_codes(_PRIOR, *args, controls)
    np.testing.assert_array_equal(codes, plain)
  # At scale 0 the label is not seen at all.
  unguided = sampler.sample_codes(
    _PRIOR, *args, sampler.Controls(guidance_scale=0)
  )
  args = _variables(), jnp.full(4, 2), sampler.image_keys(3, labels), _GRID
  np.testing.assert_array_equal(sampler.sample_codes(_PRIOR, *args), unguided)


# Completion.


def test_known_codes_come_back_untouched():
  labels = np.arange(6) % 3
  args = _PRIOR, _variables(), labels, sampler.image_keys(0, labels), _GRID
  known = _known(6, _GRID)
  codes, mask = known['known_codes'], known['known_mask']
  mask[0], mask[1] = True, False
  drawn = np.asarray(sampler.sample_codes(*args, _ALL_ON, **known))
  np.testing.assert_array_equal(drawn[mask], codes[mask])
  free = np.asarray(sampler.sample_codes(*args, _ALL_ON))
  np.testing.assert_array_equal(drawn[1], free[1])
  assert (drawn[2:] != free[2:])[~mask[2:]].any()  # They matter to the others.
  # What is not known may be anything.
  codes[~mask] = -7
  again = sampler.sample_codes(*args, _ALL_ON, **known)
  np.testing.assert_array_equal(drawn, again)


def test_known_codes_matter_only_after_them():
  labels = np.arange(6) % 3
  args = _PRIOR, _variables(), labels, sampler.image_keys(0, labels), _GRID
  free = np.asarray(sampler.sample_codes(*args)).reshape(6, -1)
  known = np.zeros((6, *_GRID), bool)
  known[:, 1, 2] = True
  drawn = sampler.sample_codes(
    *args, known_codes=np.zeros((6, *_GRID), int), known_mask=known
  )
  drawn = np.asarray(drawn).reshape(6, -1)
  np.testing.assert_array_equal(drawn[:, :6], free[:, :6])
  assert (drawn[:, 7:] != free[:, 7:]).any()


_CODES_OF_TWO = np.zeros((2, *_GRID), int)
_MASK_OF_TWO = np.ones((2, *_GRID), bool)


@pytest.mark.parametrize(
  ('codes', 'mask', 'message'),
  [
    (_CODES_OF_TWO, None, 'or neither'),
    (None, _MASK_OF_TWO, 'or neither'),
    (_CODES_OF_TWO[0], _MASK_OF_TWO, r'integers \[2, 3, 4\], not .*\[3, 4\]'),
    (_CODES_OF_TWO[:1], _MASK_OF_TWO, 'known_codes'),
    (_CODES_OF_TWO, _MASK_OF_TWO[:, :2], r'bool \[2, 3, 4\], not bool'),
    (_CODES_OF_TWO, _CODES_OF_TWO, 'must be bool .*not int64'),
    (_CODES_OF_TWO * 1.0, _MASK_OF_TWO, 'must be integers .*not float64'),
    (_CODES_OF_TWO - 1, _MASK_OF_TWO, r'\[0, 6\); these reach from -1 to -1'),
    (_CODES_OF_TWO + 6, _MASK_OF_TWO, 'from 6 to 6'),
  ],
)
def test_refuses_what_is_not_known_codes(codes, mask, message):
  keys = sampler.image_keys(0, [0, 1])
  for draw in (sampler.sample_codes, sampler.sample_in_batches):
    with pytest.raises(errors.UserError, match=message):
      draw(
        *(_PRIOR, {}, np.asarray([0, 1]), keys, _GRID),
        known_codes=codes,
        known_mask=mask,
      )


# Keys and frequencies.


def test_image_keys():
  labels, ids = [0, 0, 1, 1, 1], [0, 1, 0, 1, 2]
  keys = sampler.image_keys(3, labels, ids)
  for key, label, n in zip(keys, labels, ids):
    expected = jax.random.fold_in(
      jax.random.fold_in(jax.random.key(3), label), n
    )
    assert key == expected
  every = [sampler.image_keys(seed, labels, ids) for seed in (3, 4)]
  bits = np.concatenate([jax.random.key_data(keys) for keys in every])
  assert len(np.unique(bits, axis=0)) == len(bits)


def test_ids_count_within_each_label():
  labels = [4, 1, 4, 4, 1]
  ids = sampler.count_within_labels(labels)
  np.testing.assert_array_equal(ids, [0, 0, 1, 2, 1])
  assert (
    sampler.image_keys(0, labels) == sampler.image_keys(0, labels, ids)
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
  keys = sampler.image_keys(0, [0] * images)
  codes = sampler.sample_codes(
    _Table(),
    {},
    jnp.zeros(images, jnp.int32),
    keys,
    (2, 2),
    sampler.Controls(temperature),
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


class _Same(nn.Module):
  """A prior without parameters whose codes do not depend on anything."""

  codebook_size: int = 6

  def init_cache(self, labels, grid):
    return jnp.zeros((len(labels), self.codebook_size)) + jnp.log(_shares())

  def start_row(self, cache, i, row_above):
    return cache

  def step(self, cache, i, j, previous):
    return cache, cache


def _shares():
  return jnp.asarray([0.1, 0.35, 0.05, 0.0, 0.3, 0.2])


@pytest.mark.parametrize(
  ('controls', 'left'),
  [
    (sampler.Controls(top_p=0.8), [1, 4, 5]),  # 0.35 + 0.3 + 0.2
    (sampler.Controls(0.5, top_p=0.8), [1, 4]),  # of the squares: 0.78, ...
    (sampler.Controls(2.0, top_p=0.97), [0, 1, 2, 4, 5]),
    (sampler.Controls(top_k=4, top_p=0.65), [1, 4]),  # of 0.95
  ],
)
def test_frequencies_of_the_nucleus(controls, left):
  images, grid = 2000, (2, 4)
  keys = sampler.image_keys(1, [0] * images)
  labels = jnp.zeros(images, jnp.int32)
  codes = sampler.sample_codes(_Same(), {}, labels, keys, grid, controls)
  expected = np.zeros(6)
  expected[left] = np.asarray(_shares())[left] ** (1 / controls.temperature)
  expected *= codes.size / expected.sum()
  observed = np.bincount(np.asarray(codes).ravel(), minlength=6)
  assert (observed[expected == 0] == 0).all()
  chi_squared = ((observed - expected)[left] ** 2 / expected[left]).sum()
  quantiles = {1: 10.8, 2: 13.8, 4: 18.5}  # p = 0.001
  assert chi_squared < quantiles[len(left) - 1]


def test_choose_takes_the_first_of_equals():
  logits = jnp.asarray([[0.0, 2.0, 2.0], [3.0, 1.0, -jnp.inf]])
  codes = sampler.choose(logits, jnp.zeros((2, 3)), 1.0)
  assert codes.dtype == jnp.int32
  np.testing.assert_array_equal(codes, [1, 0])
