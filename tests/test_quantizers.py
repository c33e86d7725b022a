import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dermvq_jax.models import quantizers

_K, _D = 6, 3

# Every quantizer is a row here; L codes a latent make the codes L times wider.
QUANTIZERS = {
  'ema': quantizers.EmaQuantizer(_K, _D, codebook_ema_decay=0.8),
  'ema_restart': quantizers.EmaQuantizer(_K, _D, restart_after=3),
}
every_quantizer = pytest.mark.parametrize(
  'quantizer', QUANTIZERS.values(), ids=QUANTIZERS
)


def _latents(batch=4, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  return jnp.float32(rng.normal(size=(batch, 2, 3, _D)) * scale)


def _variables(quantizer, latents, **collection):
  """Variables before the first step, the codebook on the latents' scale."""
  variables = jax.eval_shape(
    lambda: quantizer.init(jax.random.key(1), latents, train=False)
  )
  variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
  codebook = np.random.default_rng(7).normal(size=(_K, _D))
  state = {'codebook': jnp.float32(codebook), **collection}
  return {**variables, 'codebook': variables['codebook'] | state}


@functools.partial(jax.jit, static_argnums=0, static_argnames='axis_name')
def _step(quantizer, variables, latents, seed=0, axis_name=None):
  """One step of training: what it returns and the variables after it."""
  out, updated = quantizer.apply(
    variables,
    latents,
    train=True,
    axis_name=axis_name,
    mutable=['codebook'],
    rngs={'codebook': jax.random.key(seed)},
  )
  return out, {**variables, **updated}


@functools.partial(jax.jit, static_argnums=0)
def _encode(quantizer, variables, latents):
  return quantizer.apply(variables, latents, method='encode')


def _nearest(latents, codebook):
  """Codes by the definition."""
  distances = np.square(latents[..., None, :] - codebook).sum(-1)
  return distances.argmin(-1)


# What every quantizer keeps.


@every_quantizer
@pytest.mark.parametrize('train', [True, False])
def test_output(quantizer, train):
  latents = _latents()
  variables = _variables(quantizer, latents)
  if train:
    out, _ = _step(quantizer, variables, latents)
  else:
    out = quantizer.apply(variables, latents, train=False)
  assert out.quantized.shape == latents.shape
  assert (out.codes.shape, out.codes.dtype) == ((4, 2, 3), jnp.int32)
  assert out.codes.min() >= 0 and out.codes.max() < _K
  assert out.loss.shape == ()
  codes = _encode(quantizer, variables, latents)
  np.testing.assert_array_equal(out.codes, codes)
  looked_up = quantizer.apply(variables, codes, method='lookup')
  np.testing.assert_allclose(out.quantized, looked_up, atol=1e-6)


@every_quantizer
def test_codes_are_the_nearest(quantizer):
  latents = _latents()
  variables = _variables(quantizer, latents)
  codebook = np.asarray(variables['codebook']['codebook'])
  codes = _encode(quantizer, variables, latents)
  np.testing.assert_array_equal(codes, _nearest(np.asarray(latents), codebook))
  looked_up = quantizer.apply(variables, codes, method='lookup')
  np.testing.assert_array_equal(looked_up, codebook[codes])


@every_quantizer
def test_gradient_goes_straight_through(quantizer):
  latents = _latents()
  variables = _variables(quantizer, latents)
  side = _latents(seed=3)  # What the decoder sends back.

  def decoder_side(latents, variables):
    out, _ = _step(quantizer, variables, latents)
    return jnp.sum(out.quantized * side)

  to_latents, to_variables = jax.grad(decoder_side, (0, 1), allow_int=True)(
    latents, variables
  )
  np.testing.assert_array_equal(to_latents, side)
  for leaf in jax.tree.leaves(to_variables):
    if leaf.dtype != jax.dtypes.float0:
      np.testing.assert_array_equal(leaf, 0)


@every_quantizer
def test_evaluation_changes_nothing(quantizer):
  latents = _latents()
  variables = _variables(quantizer, latents)
  _, updated = quantizer.apply(
    variables, latents, train=False, mutable=['codebook']
  )
  jax.tree.map(
    np.testing.assert_array_equal, updated['codebook'], variables['codebook']
  )
  # Nor may encoding and decoding ask for anything mutable or random.
  codes = _encode(quantizer, variables, latents)
  quantizer.apply(variables, codes, method='lookup')


@every_quantizer
def test_initialising_counts_nothing(quantizer):
  rngs = {'params': jax.random.key(0), 'codebook': jax.random.key(1)}
  variables = quantizer.init(rngs, _latents(), train=True)
  assert np.all(np.asarray(variables['codebook']['ema_counts']) == 0)


@every_quantizer
def test_bfloat16_latents(quantizer):
  latents = _latents().astype(jnp.bfloat16)
  variables = _variables(quantizer, latents)
  out, variables = _step(quantizer, variables, latents)
  assert out.quantized.dtype == jnp.bfloat16
  assert out.loss.dtype == jnp.float32
  for name, leaf in variables['codebook'].items():
    expected = jnp.int32 if name == 'unused_steps' else jnp.float32
    assert leaf.dtype == expected


@every_quantizer
def test_any_number_of_devices(quantizer):
  """Under pmap and sharded jit the statistics are those of one device."""
  batch = _latents(8)
  variables = _variables(quantizer, batch)
  # Far codes: unused, so that all restart at once, from the global batch.
  far = variables['codebook']['codebook'].at[3:].add(100.0)
  variables = _variables(quantizer, batch, codebook=far)
  one = pmapped = sharded = variables
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec('data'))
  step = jax.pmap(
    lambda v, x, seed: _step(quantizer, v, x, seed, axis_name='data')[1],
    axis_name='data',
    in_axes=(None, 0, None),
  )
  for i in range(4):
    batch = _latents(8, seed=i)
    _, one = _step(quantizer, one, batch, i)
    _, sharded = _step(quantizer, sharded, jax.device_put(batch, split), i)
    every = step(pmapped, batch[:, None], i)
    for device in range(1, 8):
      jax.tree.map(
        lambda x, device=device: np.testing.assert_array_equal(x[device], x[0]),
        every,
      )
    pmapped = jax.tree.map(lambda x: np.asarray(x[0]), every)
    for other in (pmapped, sharded):
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        one,
        other,
      )
  moved = np.asarray(one['codebook']['codebook'])[3:]
  restarts = quantizer.restart_after > 0
  assert (np.abs(moved).max() < 20) == restarts


# The EMA quantizer's own.


def test_two_ema_steps_against_numpy():
  quantizer = QUANTIZERS['ema']
  decay = quantizer.codebook_ema_decay
  variables = _variables(quantizer, _latents())
  codebook = np.float64(variables['codebook']['codebook'])
  counts, sums = np.zeros(_K), np.zeros((_K, _D))
  for seed in range(2):
    latents = _latents(seed=seed)
    _, variables = _step(quantizer, variables, latents)
    rows = np.float64(latents).reshape(-1, _D)
    codes = _nearest(rows, codebook)
    for k in range(_K):
      mine = rows[codes == k]
      counts[k] = decay * counts[k] + (1 - decay) * len(mine)
      sums[k] = decay * sums[k] + (1 - decay) * mine.sum(0)
      if counts[k]:
        codebook[k] = sums[k] / counts[k]
    state = variables['codebook']
    np.testing.assert_allclose(state['ema_counts'], counts, rtol=1e-5)
    np.testing.assert_allclose(state['ema_sums'], sums, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
      state['codebook'], codebook, rtol=1e-4, atol=1e-6
    )


def test_first_use_moves_a_code_to_the_mean_of_its_latents():
  quantizer = QUANTIZERS['ema']
  latents = _latents()
  variables = _variables(quantizer, latents)
  out, variables = _step(quantizer, variables, latents)
  for k in np.unique(out.codes):
    mean = latents[out.codes == k].mean(0)
    code = variables['codebook']['codebook'][k]
    np.testing.assert_allclose(code, mean, rtol=1e-5, atol=1e-6)


def test_commitment_loss_and_gradient_against_numpy():
  quantizer = quantizers.EmaQuantizer(_K, _D, commitment_weight=0.7)
  latents = _latents()
  variables = _variables(quantizer, latents)
  codebook = np.asarray(variables['codebook']['codebook'])
  z = np.asarray(latents)
  difference = z - codebook[_nearest(z, codebook)]
  mse = np.mean(difference**2)

  def loss(latents, variables):
    out, _ = _step(quantizer, variables, latents)
    return out.loss, out.metrics

  grad_fn = jax.value_and_grad(loss, (0, 1), has_aux=True, allow_int=True)
  (value, metrics), (to_latents, to_variables) = grad_fn(latents, variables)
  np.testing.assert_allclose(metrics['commitment_loss'].mean(), mse, rtol=1e-5)
  np.testing.assert_allclose(value, 0.7 * mse, rtol=1e-5)
  expected = 0.7 * 2 * difference / z.size
  np.testing.assert_allclose(to_latents, expected, rtol=1e-4, atol=1e-7)
  np.testing.assert_array_equal(to_variables['codebook']['codebook'], 0)


@pytest.mark.parametrize('batch', [1, 2])  # As many as codes; twice as many.
def test_start_picks_distinct_latents(batch):
  quantizer = QUANTIZERS['ema']
  rows = _latents(batch).reshape(-1, _D)
  variables = _variables(quantizer, _latents())

  def start(seed):
    _, updated = quantizer.apply(
      variables,
      rows,
      method='start',
      mutable=['codebook'],
      rngs={'codebook': jax.random.key(seed)},
    )
    return updated['codebook']

  state = start(0)
  # Which row each code is: one and only one.
  same = np.all(state['codebook'][:, None] == rows, axis=-1)
  assert same.sum(1).tolist() == [1] * _K
  assert same.sum(0).max() == 1
  assert np.any(state['codebook'] != start(1)['codebook'])
  for name in ('ema_counts', 'ema_sums', 'unused_steps'):
    np.testing.assert_array_equal(state[name], variables['codebook'][name])


def test_unused_codes_keep_their_place():
  quantizer = QUANTIZERS['ema']
  latents = _latents()
  variables = _variables(quantizer, latents)
  far = variables['codebook']['codebook'].at[-1].set(50.0)
  variables = _variables(quantizer, latents, codebook=far)
  for seed in range(3):
    _, variables = _step(quantizer, variables, _latents(seed=seed))
    np.testing.assert_array_equal(variables['codebook']['codebook'][-1], 50.0)


def test_a_code_used_once_long_ago_keeps_its_place():
  quantizer = QUANTIZERS['ema']
  outlier = _latents().at[0, 0, 0].set(50.0)
  start = _variables(quantizer, _latents())['codebook']['codebook']
  variables = _variables(quantizer, _latents(), codebook=start.at[-1].set(49.0))
  _, variables = _step(quantizer, variables, outlier)
  batches = [_latents(seed=seed) for seed in range(4)]
  for seed in range(200):
    _, variables = _step(quantizer, variables, batches[seed % 4])
  assert variables['codebook']['ema_counts'][-1] < 1e-15
  np.testing.assert_allclose(variables['codebook']['codebook'][-1], 50.0)


def test_restart_after_that_many_unused_steps():
  quantizer = QUANTIZERS['ema_restart']
  start = _variables(quantizer, _latents())['codebook']['codebook']
  variables = _variables(quantizer, _latents(), codebook=start.at[-1].set(50.0))
  for seed in range(quantizer.restart_after - 1):
    _, variables = _step(quantizer, variables, _latents(seed=seed))
    state = variables['codebook']
    assert state['unused_steps'][-1] == seed + 1
    np.testing.assert_array_equal(state['codebook'][-1], 50.0)
  latents = _latents(seed=9)
  _, variables = _step(quantizer, variables, latents)
  state = variables['codebook']
  # It is a latent of this batch now, and starts anew.
  assert np.any(np.all(latents == state['codebook'][-1], axis=-1))
  assert state['unused_steps'][-1] == 0
  assert state['ema_counts'][-1] == 0
  np.testing.assert_array_equal(state['ema_sums'][-1], 0)


def test_a_restarted_code_survives_its_next_use():
  # With decay 0.99 old sums, were they kept, would throw it back far away.
  quantizer = QUANTIZERS['ema_restart']
  start = _variables(quantizer, _latents())['codebook']['codebook']
  variables = _variables(
    quantizer,
    _latents(),
    codebook=start.at[-1].set(50.0),
    ema_counts=jnp.ones(_K),
    ema_sums=start.at[-1].set(50.0),
  )
  for seed in range(quantizer.restart_after):
    latents = _latents(seed=seed)
    _, variables = _step(quantizer, variables, latents)
  restarted = variables['codebook']['codebook'][-1]
  assert np.abs(restarted).max() < 10
  out, variables = _step(quantizer, variables, latents)
  mine = out.codes == _K - 1
  assert mine.any()
  np.testing.assert_allclose(
    variables['codebook']['codebook'][-1],
    latents[mine].mean(0),
    rtol=1e-5,
    atol=1e-6,
  )


def test_used_codes_never_restart():
  quantizer = QUANTIZERS['ema_restart']
  places = jnp.float32(10 * np.arange(_K)[:, None] * np.ones(_D))
  latents = jnp.tile(places.reshape(1, 2, 3, _D), (4, 1, 1, 1))
  variables = _variables(quantizer, latents, codebook=places + 0.1)
  for _ in range(2 * quantizer.restart_after):
    _, variables = _step(quantizer, variables, latents)
    np.testing.assert_allclose(
      variables['codebook']['codebook'], places, rtol=1e-4
    )
  np.testing.assert_array_equal(variables['codebook']['unused_steps'], 0)


def test_restarts_differ_between_steps_and_codes():
  quantizer = QUANTIZERS['ema_restart']
  far = jnp.full((_K, _D), 50.0).at[0].set(0.0)  # All but one restart.
  due = jnp.full((_K,), quantizer.restart_after - 1)
  variables = _variables(quantizer, _latents(), codebook=far, unused_steps=due)
  first, second = (
    _step(quantizer, variables, _latents(), seed)[1]['codebook']['codebook'][1:]
    for seed in range(2)
  )
  assert len(np.unique(first, axis=0)) > 2
  assert np.any(first != second)


def _epoch_perplexity(restart_after, start, steps=40, codebook_size=32):
  """Perplexity after training on latents far from a small random codebook."""
  quantizer = quantizers.EmaQuantizer(
    codebook_size, _D, restart_after=restart_after
  )

  def draw(seed):
    return 10 + _latents(32, seed=seed)  # 192 latents

  variables = quantizer.init(jax.random.key(0), draw(0), train=False)
  if start:
    _, variables = quantizer.apply(
      variables,
      draw(0).reshape(-1, _D),
      method='start',
      mutable=['codebook'],
      rngs={'codebook': jax.random.key(1)},
    )
  for seed in range(steps):
    _, variables = _step(quantizer, variables, draw(seed), seed)
  codes = _encode(
    quantizer, variables, jnp.concatenate(list(map(draw, range(steps))))
  )
  p = np.bincount(codes.ravel(), minlength=codebook_size) / codes.size
  return np.exp(-np.sum(p * np.log(np.maximum(p, 1e-12))))


def test_without_start_and_restart_the_codebook_collapses():
  assert _epoch_perplexity(restart_after=0, start=False) < 8


@pytest.mark.parametrize(
  'restart_after, start', [(10, True), (10, False), (0, True)]
)
def test_with_start_or_restart_it_does_not(restart_after, start):
  assert _epoch_perplexity(restart_after, start) > 0.7 * 32


def test_without_rng_for_restarts_it_says_so():
  quantizer = QUANTIZERS['ema_restart']
  variables = _variables(quantizer, _latents())
  with pytest.raises(Exception, match='codebook'):
    quantizer.apply(variables, _latents(), train=True, mutable=['codebook'])
