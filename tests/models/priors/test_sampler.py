"""The sampler, against one that recomputes everything, and its controls."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_priors

from dermvq_jax import errors, progress
from dermvq_jax.models.priors import (
  base,
  choice,
  gated_pixelcnn,
  randomness,
  sampler,
)

_CODES = 6
_LABEL = (('label', 2),)
_LABEL_AND_SITE = (('label', 2), ('site', 3))
_SMALL = dict(codebook_size=_CODES, conditions=_LABEL, num_layers=2, features=8)
_PRIOR = gated_pixelcnn.GatedPixelCNN(**_SMALL, head_features=16)
_OTHERS = {
  name: prior.copy(codebook_size=_CODES, conditions=_LABEL)
  for name, prior in test_priors.PRIORS.items()
  if name != 'gated_pixelcnn'
}
_GRID = (3, 4)


def _variables(dtype=np.float32, prior=_PRIOR):
  inputs = jnp.zeros((1, 2, 2), jnp.int32), prior.null_conditions(1)
  shapes = jax.eval_shape(
    lambda: prior.init(jax.random.key(0), *inputs, train=False)
  )
  rng = np.random.default_rng(0)

  def draw():
    return jax.tree.map(
      lambda leaf: (0.5 * rng.normal(size=leaf.shape)).astype(dtype),
      shapes['params'],
    )

  return {'params': draw(), base.WEAK: draw()}


@functools.partial(jax.jit, static_argnums=0)
def _all_logits(prior, variables, codes, conditions):
  return prior.apply(variables, codes, conditions, train=False)


@functools.partial(jax.jit, static_argnums=2)
def _noise(keys, row, width):
  return jax.vmap(
    lambda key: jax.random.gumbel(
      jax.random.fold_in(key, row), (width, _CODES), jnp.float32
    )
  )(keys)


def _log_probs(logits, loss):
  """Computes log-probabilities in NumPy, float64."""
  logits = np.asarray(logits, np.float64)
  if loss == 'bce':
    logits = -np.log1p(np.exp(-logits))
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _choice(scores, noise, temperature=1.0, top_k=0, top_p=1.0):
  """Chooses one code given scores [K] and noise [K], as `Controls` says."""
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
  prior,
  variables,
  conditions,
  keys,
  grid,
  controls,
  known,
  loss='cross_entropy',
):
  """Samples with the same keys, and runs the full prior for every code."""
  settings = dataclasses.asdict(controls)
  start, rise = settings.pop('guidance_scale'), settings.pop('guidance_rise')
  auto_scale = settings.pop('autoguidance_scale')
  weak = {'params': variables[base.WEAK]}
  codes = np.zeros((len(keys), *grid), np.int32)
  for i in range(grid[0]):
    noise = np.asarray(_noise(keys, i, grid[1]))  # [B, w, K]
    for j in range(grid[1]):
      logits = _all_logits(prior, variables, codes, conditions)[:, i, j]
      scores = _log_probs(logits, loss)
      passed = (i * grid[1] + j) / (grid[0] * grid[1] - 1)
      scale = max(start + rise * passed, 0)
      if scale != 1:
        nothing = {
          name: jnp.full_like(conditions[name], number)
          for name, number in prior.conditions
        }
        logits = _all_logits(prior, variables, codes, nothing)[:, i, j]
        scores = scale * scores + (1 - scale) * _log_probs(logits, loss)
      if auto_scale != 1:
        logits = _all_logits(prior, weak, codes, conditions)[:, i, j]
        weak_scores = _log_probs(logits, loss)
        scores = auto_scale * scores + (1 - auto_scale) * weak_scores
      for b in range(len(keys)):
        codes[b, i, j] = _choice(scores[b], noise[b, j], **settings)
        if known and known['known_mask'][b, i, j]:
          codes[b, i, j] = known['known_codes'][b, i, j]
  return codes


def _known(count, grid, seed=0):
  """Random codes; a random half of them is known."""
  rng = np.random.default_rng(seed)
  codes = rng.integers(0, _CODES, (count, *grid))
  return {'known_codes': codes, 'known_mask': rng.random(codes.shape) < 0.5}


def _args(labels, seed=0):
  """Arguments of the sampler for images of these labels."""
  keys = randomness.image_keys(seed, labels)
  return _PRIOR, _variables(), {'label': np.asarray(labels)}, keys, _GRID


_ALL_ON = sampler.Controls(
  0.8,
  top_k=5,
  top_p=0.7,
  guidance_scale=2.5,
  guidance_rise=-1.5,
  autoguidance_scale=1.7,
)


@pytest.mark.parametrize(
  ('controls', 'grid', 'completes', 'loss'),
  [
    (sampler.Controls(), _GRID, False, 'cross_entropy'),
    (sampler.Controls(0.5), _GRID, True, 'cross_entropy'),
    (sampler.Controls(0.0), _GRID, True, 'bce'),
    (sampler.Controls(top_k=2), _GRID, False, 'cross_entropy'),
    (sampler.Controls(0, top_p=0.9), _GRID, True, 'cross_entropy'),
    (sampler.Controls(guidance_scale=0), (1, 5), True, 'cross_entropy'),
    (sampler.Controls(guidance_rise=3), _GRID, False, 'cross_entropy'),
    (sampler.Controls(guidance_rise=-4), _GRID, False, 'bce'),
    (sampler.Controls(autoguidance_scale=2), _GRID, False, 'cross_entropy'),
    (sampler.Controls(autoguidance_scale=0), _GRID, True, 'bce'),
    (_ALL_ON, (3, 4), True, 'cross_entropy'),
    (_ALL_ON, (5, 2), True, 'bce'),
    (_ALL_ON, (5, 1), False, 'cross_entropy'),
  ],
)
def test_samples_what_the_recomputing_sampler_samples(
  controls, grid, completes, loss, prior=_PRIOR
):
  count = 100 if controls is _ALL_ON else 20
  known = _known(count, grid) if completes else {}
  with jax.enable_x64(True):
    n = jnp.arange(count, dtype=jnp.int32)
    values = {'label': n % 3, 'site': n // 3 % 4}  # null values included
    keys = randomness.image_keys(0, values['label'])
    conditions = {name: values[name] for name, _ in prior.conditions}
    variables = _variables(np.float64, prior)
    args = prior, variables, conditions, keys, grid, controls
    codes = sampler.sample_codes(*args, loss=loss, **known)
    expected = _recomputing_sampler(*args, known, loss)
  np.testing.assert_array_equal(codes, expected)
  assert codes.dtype == jnp.int32
  assert len(np.unique(expected)) >= 3  # not one code only


@pytest.mark.parametrize('name', _OTHERS)
def test_every_prior_samples_what_the_recomputing_sampler_samples(name):
  for grid in ((3, 4), (4, 2)):
    test_samples_what_the_recomputing_sampler_samples(
      _ALL_ON, grid, True, 'cross_entropy', _OTHERS[name]
    )


@pytest.mark.parametrize('name', ['gated_pixelcnn', 'transformer'])
def test_guidance_uses_the_null_value_of_every_condition(name):
  prior = {'gated_pixelcnn': _PRIOR, **_OTHERS}[name]
  test_samples_what_the_recomputing_sampler_samples(
    sampler.Controls(guidance_scale=2.5),
    _GRID,
    False,
    'cross_entropy',
    prior.copy(conditions=_LABEL_AND_SITE),
  )


def test_an_image_depends_on_every_condition_of_the_prior_and_no_other():
  prior = _PRIOR.copy(conditions=_LABEL_AND_SITE)
  conditions = {'label': [0, 1, 0, 1], 'site': [0, 1, 2, 3]}
  keys = randomness.image_keys(0, [0] * 4)
  variables = _variables(prior=prior)

  def sample(**conditions):
    codes = sampler.sample_codes(prior, variables, conditions, keys, _GRID)
    np.testing.assert_array_equal(
      sampler.sample_in_batches(
        prior, variables, conditions, keys, _GRID, chunk_size=3
      ),
      codes,
    )
    return np.asarray(codes)

  codes = sample(**conditions)
  others = sample(**(conditions | {'site': [1, 1, 2, 3]}))
  assert (codes[0] != others[0]).any()
  np.testing.assert_array_equal(codes[1:], others[1:])
  others = sample(**(conditions | {'label': [0, 1, 0, 2]}))
  assert (codes[3] != others[3]).any()
  np.testing.assert_array_equal(codes[:3], others[:3])
  np.testing.assert_array_equal(sample(**conditions, age=[0, 1, 2, 3]), codes)


@pytest.mark.parametrize('controls', [sampler.Controls(), _ALL_ON])
def test_an_image_does_not_depend_on_its_batch(controls):
  labels = jnp.asarray([0, 1, 2, 1, 0])
  keys = randomness.image_keys(7, labels)
  variables = _variables()
  known = _known(5, _GRID) if controls is _ALL_ON else {}

  def sample(chosen):
    return sampler.sample_codes(
      _PRIOR,
      variables,
      {'label': labels[chosen]},
      keys[chosen],
      _GRID,
      controls,
      **{name: array[chosen] for name, array in known.items()},
    )

  together = sample(np.arange(5))
  np.testing.assert_array_equal(sample(np.arange(5)[::-1]), together[::-1])
  for n in range(5):
    np.testing.assert_array_equal(sample(np.asarray([n])), together[n : n + 1])


@pytest.mark.parametrize('chunk_size', [2, 5, 8])
def test_chunks_change_nothing(chunk_size):
  labels = np.asarray([0, 1, 2, 1, 0])
  args = _args(labels, seed=7)
  known = _known(5, _GRID)
  expected = sampler.sample_codes(*args, _ALL_ON, **known)
  codes = sampler.sample_in_batches(
    *args, _ALL_ON, **known, chunk_size=chunk_size
  )
  assert codes.dtype == np.int32
  np.testing.assert_array_equal(codes, expected)


def test_no_images():
  codes = sampler.sample_in_batches(*_args([]))
  assert codes.shape == (0, *_GRID)


def test_progress_is_shown_on_demand(capsys, monkeypatch):
  monkeypatch.setattr(progress, '_LOG_INTERVAL_SECONDS', 0)
  args = _args([0, 1, 2])
  sampler.sample_in_batches(*args, chunk_size=2)
  assert not capsys.readouterr().err
  sampler.sample_in_batches(*args, chunk_size=2, show_progress=True)
  assert '3 of 3' in capsys.readouterr().err


class _Counting(gated_pixelcnn.GatedPixelCNN):
  """Counts how often it is traced, which each compilation does."""

  def step(self, cache, i, j, previous):
    _TRACED.append((i, j))
    return super().step(cache, i, j, previous)


_TRACED = []


def test_values_do_not_recompile():
  variables = _variables()
  prior = _Counting(**_SMALL, head_features=16)

  def compiles(seed, completes=False, **controls):
    labels = np.asarray([seed, 1])
    keys = randomness.image_keys(seed, labels)
    _TRACED.clear()
    sampler.sample_codes(
      prior,
      variables,
      {'label': labels, 'age': labels[: seed + 1]},
      keys,
      _GRID,
      sampler.Controls(**controls),
      **(_known(2, _GRID, seed) if completes else {}),
    )
    return bool(_TRACED)

  assert compiles(0)
  assert not compiles(1, temperature=0.5)
  assert not compiles(2, temperature=0)
  assert not compiles(1, temperature=np.float32(0.7))
  on = dict(completes=True, top_k=3, top_p=0.9, guidance_scale=2.0)
  assert compiles(0, **on)
  assert not compiles(1, **on)
  assert not compiles(2, **on, temperature=3)
  assert not compiles(1, **on, guidance_rise=2)
  assert compiles(0, **on, autoguidance_scale=2)
  assert not compiles(0, **on, autoguidance_scale=1.5)
  other = dict(completes=True, top_k=10**12, top_p=0.1, guidance_scale=3)
  assert not compiles(0, **other)
  other = dict(top_k=np.int64(2), top_p=np.float64(0.5), guidance_scale=0)
  assert not compiles(0, completes=True, **other)


# Controls.


@pytest.mark.parametrize(
  'control', ['temperature', 'guidance_scale', 'autoguidance_scale']
)
@pytest.mark.parametrize('value', [-0.1, float('nan'), float('inf')])
def test_refuses_impossible_scales(control, value):
  with pytest.raises(errors.UserError, match=f'{control} is {value}'):
    sampler.Controls(**{control: value})


@pytest.mark.parametrize('value', [float('nan'), float('inf'), '1'])
def test_refuses_an_impossible_rise(value):
  with pytest.raises(errors.UserError, match=f'guidance_rise is {value}'):
    sampler.Controls(guidance_rise=value)


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
  """The scores have many ties and impossible codes."""
  rng = np.random.default_rng(0)
  scores = rng.integers(-3, 3, (50, 40)).astype(np.float32)
  scores[rng.random(scores.shape) < 0.1] = -np.inf
  noise = rng.gumbel(size=scores.shape).astype(np.float32)
  controls = sampler.Controls(temperature, top_k, top_p).switched_on()
  codes = choice.choose(jnp.asarray(scores), jnp.asarray(noise), **controls)
  expected = [
    _choice(s.astype(np.float64), n, temperature, top_k, top_p)
    for s, n in zip(scores, noise)
  ]
  assert codes.dtype == jnp.int32
  np.testing.assert_array_equal(codes, expected)


def test_the_code_that_reaches_top_p_is_included():
  scores = jnp.log(jnp.asarray([[0.125, 0.5, 0.25, 0.125]]))

  def possible(top_p):
    """Noise makes each code win in turn, if it is allowed."""
    noise = 100 * jnp.eye(4)
    codes = choice.choose(jnp.tile(scores, (4, 1)), noise, 1.0, top_p=top_p)
    return set(np.asarray(codes).tolist())

  assert possible(0.01) == possible(0.5) == {1}
  assert possible(0.51) == possible(0.75) == {1, 2}
  # Equally likely codes are ordered by their numbers.
  assert possible(0.76) == possible(0.87) == {0, 1, 2}
  assert possible(0.88) == {0, 1, 2, 3}


def test_top_p_is_a_share_of_what_top_k_keeps():
  scores = jnp.log(jnp.asarray([[0.3, 0.2, 0.5]]))
  noise = jnp.asarray([[100.0, 0, 0]])
  # 0.5 / 0.8 = 0.625: only above that the second code is needed.
  assert choice.choose(scores, noise, 1.0, 2, 0.62) == 2
  assert choice.choose(scores, noise, 1.0, 2, 0.63) == 0
  assert choice.choose(scores, noise, 1.0, None, 0.62) == 0


def test_guide_against_numpy():
  rng = np.random.default_rng(0)
  c, u = np.log(rng.dirichlet(np.ones(7), (2, 5)))
  for scale in (0.0, 0.5, 1.0, 3.0):
    guided = choice.guide(jnp.asarray(c), jnp.asarray(u), scale)
    expected = np.exp(u) * (np.exp(c) / np.exp(u)) ** scale
    np.testing.assert_allclose(np.exp(guided), expected, rtol=1e-4)


def test_guidance_leaves_impossible_codes_impossible():
  c = jnp.asarray([-1.0, -jnp.inf, -jnp.inf, -2.0])
  u = jnp.asarray([-1.0, -jnp.inf, -1.0, -jnp.inf])
  for scale in (0.0, 2.0):
    guided = choice.guide(c, u, scale)
    np.testing.assert_array_equal(guided, [-1, -np.inf, -np.inf, -2])


def test_controls_without_effect():
  """Samples do not change if a control keeps all codes."""
  labels = np.asarray([0, 1, 0, 1])
  args = _args(labels, seed=3)
  plain = sampler.sample_codes(*args)
  for controls in (
    sampler.Controls(top_k=_CODES),
    sampler.Controls(top_p=1 - 1e-7, top_k=1000),
  ):
    codes = sampler.sample_codes(*args, controls)
    np.testing.assert_array_equal(codes, plain)
  # At scale 0 the label has no effect.
  unguided = sampler.sample_codes(*args, sampler.Controls(guidance_scale=0))
  null = {'label': np.full(4, 2)}
  np.testing.assert_array_equal(
    sampler.sample_codes(_PRIOR, _variables(), null, *args[3:]), unguided
  )


# Completion.


def test_known_codes_are_returned_unchanged():
  args = _args(np.arange(6) % 3)
  known = _known(6, _GRID)
  codes, mask = known['known_codes'], known['known_mask']
  mask[0], mask[1] = True, False
  completed = np.asarray(sampler.sample_codes(*args, _ALL_ON, **known))
  np.testing.assert_array_equal(completed[mask], codes[mask])
  free = np.asarray(sampler.sample_codes(*args, _ALL_ON))
  np.testing.assert_array_equal(completed[1], free[1])
  # The other codes depend on them.
  assert (completed[2:] != free[2:])[~mask[2:]].any()
  # Values of unknown codes have no effect.
  codes[~mask] = -7
  again = sampler.sample_codes(*args, _ALL_ON, **known)
  np.testing.assert_array_equal(completed, again)


def test_known_codes_change_only_codes_after_them():
  args = _args(np.arange(6) % 3)
  free = np.asarray(sampler.sample_codes(*args)).reshape(6, -1)
  known = np.zeros((6, *_GRID), bool)
  known[:, 1, 2] = True
  completed = sampler.sample_codes(
    *args, known_codes=np.zeros((6, *_GRID), int), known_mask=known
  )
  completed = np.asarray(completed).reshape(6, -1)
  np.testing.assert_array_equal(completed[:, :6], free[:, :6])
  assert (completed[:, 7:] != free[:, 7:]).any()


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
    (_CODES_OF_TWO - 1, _MASK_OF_TWO, r'\[0, 6\); these are from -1 to -1'),
    (_CODES_OF_TWO + 6, _MASK_OF_TWO, 'from 6 to 6'),
  ],
)
def test_refuses_known_codes_that_do_not_fit(codes, mask, message):
  for sample in (sampler.sample_codes, sampler.sample_in_batches):
    with pytest.raises(errors.UserError, match=message):
      sample(*_args([0, 1]), known_codes=codes, known_mask=mask)


# Keys and frequencies.


def test_image_keys():
  labels, ids = [0, 0, 1, 1, 1], [0, 1, 0, 1, 2]
  keys = randomness.image_keys(3, labels, ids)
  for key, label, n in zip(keys, labels, ids):
    expected = jax.random.fold_in(
      jax.random.fold_in(jax.random.key(3), label), n
    )
    assert key == expected
  every = [randomness.image_keys(seed, labels, ids) for seed in (3, 4)]
  bits = np.concatenate([jax.random.key_data(keys) for keys in every])
  assert len(np.unique(bits, axis=0)) == len(bits)


def test_ids_count_within_each_label():
  labels = [4, 1, 4, 4, 1]
  ids = randomness.count_within_labels(labels)
  np.testing.assert_array_equal(ids, [0, 0, 1, 2, 1])
  assert (
    randomness.image_keys(0, labels) == randomness.image_keys(0, labels, ids)
  ).all()


class _Table(base.Prior):
  """A prior without parameters: p(code | code to the left, code above)."""

  codebook_size: int = 2
  conditions: base.ConditionSpec = _LABEL

  def init_cache(self, conditions, grid):
    batch = len(conditions['label'])
    return {'above': jnp.zeros((grid[1], batch), jnp.int32)}

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
  keys = randomness.image_keys(0, [0] * images)
  codes = sampler.sample_codes(
    _Table(),
    {},
    {'label': jnp.zeros(images, jnp.int32)},
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


class _Independent(base.Prior):
  """A prior without parameters whose codes do not depend on anything."""

  codebook_size: int = 6
  conditions: base.ConditionSpec = _LABEL

  def init_cache(self, conditions, grid):
    batch = len(conditions['label'])
    return jnp.zeros((batch, self.codebook_size)) + jnp.log(_shares())

  def start_row(self, cache, i, row_above):
    return cache

  def step(self, cache, i, j, previous):
    return cache, cache


def _shares():
  return jnp.asarray([0.1, 0.35, 0.05, 0.0, 0.3, 0.2])


@pytest.mark.parametrize(
  ('controls', 'kept'),
  [
    (sampler.Controls(top_p=0.8), [1, 4, 5]),  # 0.35 + 0.3 + 0.2
    (sampler.Controls(0.5, top_p=0.8), [1, 4]),  # of the squares: 0.78, ...
    (sampler.Controls(2.0, top_p=0.97), [0, 1, 2, 4, 5]),
    (sampler.Controls(top_k=4, top_p=0.65), [1, 4]),  # of 0.95
  ],
)
def test_frequencies_of_the_nucleus(controls, kept):
  images, grid = 2000, (2, 4)
  keys = randomness.image_keys(1, [0] * images)
  conditions = {'label': jnp.zeros(images, jnp.int32)}
  codes = sampler.sample_codes(
    _Independent(), {}, conditions, keys, grid, controls
  )
  expected = np.zeros(6)
  expected[kept] = np.asarray(_shares())[kept] ** (1 / controls.temperature)
  expected *= codes.size / expected.sum()
  observed = np.bincount(np.asarray(codes).ravel(), minlength=6)
  assert (observed[expected == 0] == 0).all()
  chi_squared = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
  quantiles = {1: 10.8, 2: 13.8, 4: 18.5}  # p = 0.001
  assert chi_squared < quantiles[len(kept) - 1]


def test_choose_takes_the_first_of_equals():
  logits = jnp.asarray([[0.0, 2.0, 2.0], [3.0, 1.0, -jnp.inf]])
  codes = choice.choose(logits, jnp.zeros((2, 3)), 1.0)
  assert codes.dtype == jnp.int32
  np.testing.assert_array_equal(codes, [1, 0])
