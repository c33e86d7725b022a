import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dermvq_jax import config_files, errors
from dermvq_jax.models import codebooks, quantizers

_K, _D = 6, 3

# Every quantizer has a row here.
QUANTIZERS = {
  'ema': quantizers.EmaQuantizer(_K, _D, codebook_ema_decay=0.8),
  'ema_restart': quantizers.EmaQuantizer(_K, _D, restart_after=3),
  'vq': quantizers.VqQuantizer(_K, _D),
  'vq_restart': quantizers.VqQuantizer(_K, _D, restart_after=3),
  'l2_norm': quantizers.L2NormQuantizer(_K, _D, restart_after=3),
  'fsq': quantizers.FsqQuantizer((3, 5, 4)),
  'residual': quantizers.ResidualQuantizer(_K, _D, num_levels=3),
  'residual_restart': quantizers.ResidualQuantizer(
    _K, _D, num_levels=2, restart_after=3
  ),
}
every_quantizer = pytest.mark.parametrize(
  'quantizer', QUANTIZERS.values(), ids=QUANTIZERS
)
_TRAINED = {k: q for k, q in QUANTIZERS.items() if k != 'fsq'}
every_trained_codebook = pytest.mark.parametrize(
  'quantizer', _TRAINED.values(), ids=_TRAINED
)


def _latents(batch=4, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  return jnp.float32(rng.normal(size=(batch, 2, 3, _D)) * scale)


def _variables(quantizer, latents, **collection):
  """Variables before the first step, with codes as large as the latents."""
  variables = jax.eval_shape(lambda: quantizer.init(jax.random.key(1), latents))
  rng = np.random.default_rng(7)

  def draw(path, leaf):
    if path[-1] == 'values_per_dim':
      return jnp.asarray(quantizer.values_per_dim)
    if path[-1] == 'scale':
      return jnp.ones(leaf.shape)
    values = rng.normal(size=leaf.shape) * (path[-1] in ('codebook', 'origin'))
    return jnp.asarray(values, leaf.dtype)

  flat = flax.traverse_util.flatten_dict(variables)
  variables = flax.traverse_util.unflatten_dict(
    {path: draw(path, leaf) for path, leaf in flat.items()}
  )
  return {**variables, 'codebook': variables['codebook'] | collection}


def _vectors(quantizer, variables):
  return np.asarray(quantizer.apply(variables, method='vectors'))


def _moved_far(quantizer, variables):
  """Moves the second half of each codebook far away from all latents."""
  flat = flax.traverse_util.flatten_dict(variables)
  for path, leaf in flat.items():
    if path[-1] in ('codebook', 'origin'):
      # In the direction of the first code, which wins the tie on the sphere.
      flat[path] = leaf.at[3:].set(128 * leaf[0])
  return flax.traverse_util.unflatten_dict(flat)


@functools.partial(jax.jit, static_argnums=0, static_argnames='axis_name')
def _step(quantizer, variables, latents, seed=0, axis_name=None):
  """One training step: the output, and the variables afterwards."""
  out = quantizer.apply(variables, latents)
  _, updated = quantizer.apply(
    variables,
    out.observed,
    axis_name=axis_name,
    method='update',
    mutable=['codebook'],
    rngs={'codebook': jax.random.key(seed)},
  )
  return out, {**variables, **updated}


@functools.partial(jax.jit, static_argnums=0)
def _encode(quantizer, variables, latents):
  return quantizer.apply(variables, latents, method='encode')


def _nearest(latents, codebook):
  """The nearest codes by their definition."""
  distances = np.square(latents[..., None, :] - codebook).sum(-1)
  return distances.argmin(-1)


# The contract of every quantizer.


@every_quantizer
def test_output(quantizer):
  latents = _latents()
  variables = _variables(quantizer, latents)
  out = quantizer.apply(variables, latents)
  assert all(len(x) == len(latents) for x in jax.tree.leaves(out.observed))
  levels = quantizer.num_levels
  assert quantizer.num_codes == levels * quantizer.codebook_size
  assert quantizer.code_dim == _D
  assert out.quantized.shape == latents.shape
  assert (out.codes.shape, out.codes.dtype) == ((4, 2, 3 * levels), jnp.int32)
  level = np.asarray(out.codes) // quantizer.codebook_size
  np.testing.assert_array_equal(
    level, np.broadcast_to(np.tile(np.arange(levels), 3), level.shape)
  )
  assert out.loss.shape == ()
  assert {'quantization_error', 'latent_norm'} <= out.metrics.keys()
  assert {value.shape for value in out.metrics.values()} == {(4,)}
  codes = _encode(quantizer, variables, latents)
  np.testing.assert_array_equal(out.codes, codes)
  looked_up = quantizer.apply(variables, codes, method='lookup')
  np.testing.assert_allclose(out.quantized, looked_up, atol=1e-6)
  # lookup is the sum of the levels' rows of the table.
  vectors = _vectors(quantizer, variables)
  assert vectors.shape == (quantizer.num_codes, _D)
  rows = vectors[np.asarray(codes)].reshape(4, 2, 3, levels, _D)
  np.testing.assert_allclose(looked_up, rows.sum(-2), atol=1e-6)


@every_quantizer
def test_codes_of_code_vectors_are_themselves(quantizer):
  variables = _variables(quantizer, _latents())
  vectors = _vectors(quantizer, variables)[: quantizer.codebook_size]
  if isinstance(quantizer, quantizers.FsqQuantizer):
    vectors = _fsq_inverse(vectors, quantizer.values_per_dim)
  codes = _encode(quantizer, variables, jnp.float32(vectors)[:, None, None])
  np.testing.assert_array_equal(
    codes[:, 0, 0], np.arange(quantizer.codebook_size)
  )


@every_trained_codebook
def test_codes_are_the_nearest(quantizer):
  latents = _latents()
  variables = _variables(quantizer, latents)
  vectors = _vectors(quantizer, variables).reshape(-1, _K, _D)
  codes = np.asarray(_encode(quantizer, variables, latents))
  left = np.float64(latents)
  if isinstance(quantizer, quantizers.L2NormQuantizer):
    left = left / np.linalg.norm(left, axis=-1, keepdims=True)
  for level, codebook in enumerate(vectors):
    mine = codes[:, :, level :: len(vectors)] - level * _K
    np.testing.assert_array_equal(mine, _nearest(left, codebook))
    left = left - codebook[mine]


@every_quantizer
def test_the_decoder_trains_the_encoder_alone(quantizer):
  latents = _latents()
  variables = _variables(quantizer, latents)
  side = _latents(seed=3)  # the decoder's gradient

  def decoder_side(latents, variables):
    out, _ = _step(quantizer, variables, latents)
    return jnp.sum(out.quantized * side)

  to_latents, to_variables = jax.grad(decoder_side, (0, 1), allow_int=True)(
    latents, variables
  )
  z, g = np.float64(latents), np.float64(side)
  np.testing.assert_allclose(
    to_latents, _expected_gradient(quantizer, z, g), rtol=1e-4, atol=1e-5
  )
  for leaf in jax.tree.leaves(to_variables):
    if leaf.dtype != jax.dtypes.float0:
      np.testing.assert_array_equal(leaf, 0)


def _expected_gradient(quantizer, z, g):
  """The decoder's gradient g after the quantizer, at latents z."""
  if isinstance(quantizer, quantizers.FsqQuantizer):
    half = (np.array(quantizer.values_per_dim) - 1) * 1.001 / 2
    offset = np.where(np.array(quantizer.values_per_dim) % 2 == 0, 0.5, 0)
    slope = half / np.cosh(z + np.arctanh(offset / half)) ** 2
    return g * slope / (np.array(quantizer.values_per_dim) // 2)
  if isinstance(quantizer, quantizers.L2NormQuantizer):
    length = np.linalg.norm(z, axis=-1, keepdims=True)
    unit = z / length
    return (g - unit * np.sum(unit * g, -1, keepdims=True)) / length
  return g


@every_trained_codebook
def test_every_term_of_the_loss_is_a_metric(quantizer):
  latents = _latents()
  out = quantizer.apply(_variables(quantizer, latents), latents)
  terms = {k: v for k, v in out.metrics.items() if k.endswith('_loss')}
  expected = quantizer.commitment_weight * terms.pop('commitment_loss').mean()
  if 'codebook_loss' in terms:
    expected += terms.pop('codebook_loss').mean()
  assert not terms
  np.testing.assert_allclose(out.loss, expected, rtol=1e-6)


@every_quantizer
def test_evaluation_changes_nothing(quantizer):
  latents = _latents()
  variables = _variables(quantizer, latents)
  _, updated = quantizer.apply(variables, latents, mutable=['codebook'])
  jax.tree.map(
    np.testing.assert_array_equal, updated['codebook'], variables['codebook']
  )
  # Encoding and decoding need nothing mutable or random either.
  codes = _encode(quantizer, variables, latents)
  quantizer.apply(variables, codes, method='lookup')


@every_quantizer
def test_init_counts_nothing(quantizer):
  rngs = {'params': jax.random.key(0), 'codebook': jax.random.key(1)}
  variables = quantizer.init(rngs, _latents())
  flat = flax.traverse_util.flatten_dict(variables['codebook'])
  for path, leaf in flat.items():
    if path[-1] in quantizers.STATISTICS:
      np.testing.assert_array_equal(leaf, 0)


@every_quantizer
def test_bfloat16_latents(quantizer):
  latents = _latents().astype(jnp.bfloat16)
  variables = _variables(quantizer, latents)
  out, variables = _step(quantizer, variables, latents)
  assert out.quantized.dtype == jnp.bfloat16
  assert out.loss.dtype == jnp.float32
  flat = flax.traverse_util.flatten_dict(variables['codebook'])
  for path, leaf in flat.items():
    whole = path[-1] in ('unused_steps', 'values_per_dim')
    assert leaf.dtype == (jnp.int32 if whole else jnp.float32)


@pytest.mark.parametrize(
  'name', ['ema', 'ema_restart', 'vq_restart', 'residual_restart']
)
def test_any_number_of_devices(name):
  """pmap and sharded jit give the state and gradients of one device."""
  quantizer = QUANTIZERS[name]
  variables = _moved_far(quantizer, _variables(quantizer, _latents(8)))
  side = _latents(8, seed=99)

  def loss_fn(params, latents, variables, side, seed, axis_name):
    out, new = _step(
      quantizer,
      {**variables, **params},
      latents,
      seed,
      axis_name=axis_name,
    )
    # As in training: a mean over the batch here, over devices later.
    return out.loss + jnp.mean(out.quantized * side), new['codebook']

  def step(variables, latents, side, seed, axis_name=None):
    """The state after it and the gradients of parameters and latents."""
    params = {k: v for k, v in variables.items() if k == 'params'}
    grad_fn = jax.grad(loss_fn, (0, 1), has_aux=True)
    (to_params, to_latents), state = grad_fn(
      params, latents, variables, side, seed, axis_name
    )
    if axis_name is not None:
      to_params = jax.lax.pmean(to_params, axis_name)
      to_latents = to_latents / jax.lax.axis_size(axis_name)
    return state, to_params, to_latents

  jitted = jax.jit(step)
  pmapped = jax.pmap(
    functools.partial(step, axis_name='data'),
    axis_name='data',
    in_axes=(None, 0, 0, None),
  )
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec('data'))
  one = many = sharded = variables
  for i in range(3):
    latents = _latents(8, seed=i)
    results = (
      jitted(one, latents, side, i),
      jitted(sharded, *jax.device_put((latents, side), split), i),
    )
    state, to_params, to_latents = pmapped(
      many, latents[:, None], side[:, None], i
    )
    for device in range(1, 8):
      jax.tree.map(
        lambda x, device=device: np.testing.assert_array_equal(x[device], x[0]),
        (state, to_params),
      )
    state, to_params = jax.tree.map(
      lambda x: np.asarray(x[0]), (state, to_params)
    )
    results += ((state, to_params, to_latents[:, 0]),)
    for other in results[1:]:
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        results[0],
        other,
      )
    one, sharded, many = (
      {**variables, 'codebook': result[0]} for result in results
    )
  moved = one['codebook'].get('origin')  # On the sphere all are near.
  moved = _vectors(quantizer, one) if moved is None else moved
  restarts = quantizer.restart_after > 0
  assert (np.abs(moved[3:_K]).max() < 20) == restarts


# The EMA quantizer.


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


@pytest.mark.parametrize('batch', [1, 2])  # as many as codes; twice as many
def test_init_codebook_picks_distinct_latents(batch):
  quantizer = QUANTIZERS['ema']
  rows = _latents(batch).reshape(-1, _D)
  variables = _variables(quantizer, _latents())

  def init(seed):
    _, updated = quantizer.apply(
      variables,
      rows,
      method='init_codebook',
      mutable=['codebook'],
      rngs={'codebook': jax.random.key(seed)},
    )
    return updated['codebook']

  state = init(0)
  # Each code is exactly one row, and no row is two codes.
  same = np.all(state['codebook'][:, None] == rows, axis=-1)
  assert same.sum(1).tolist() == [1] * _K
  assert same.sum(0).max() == 1
  assert np.any(state['codebook'] != init(1)['codebook'])
  for name in ('ema_counts', 'ema_sums', 'unused_steps'):
    np.testing.assert_array_equal(state[name], variables['codebook'][name])


def test_unused_codes_do_not_move():
  quantizer = QUANTIZERS['ema']
  latents = _latents()
  variables = _variables(quantizer, latents)
  far = variables['codebook']['codebook'].at[-1].set(50.0)
  variables = _variables(quantizer, latents, codebook=far)
  for seed in range(3):
    _, variables = _step(quantizer, variables, _latents(seed=seed))
    np.testing.assert_array_equal(variables['codebook']['codebook'][-1], 50.0)


def test_a_code_used_once_long_ago_does_not_move():
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


def test_restart_after_the_given_number_of_unused_steps():
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
  # It is a latent of this batch now, without statistics.
  assert np.any(np.all(latents == state['codebook'][-1], axis=-1))
  assert state['unused_steps'][-1] == 0
  assert state['ema_counts'][-1] == 0
  np.testing.assert_array_equal(state['ema_sums'][-1], 0)


def test_a_restarted_code_survives_its_next_use():
  # If it kept its old sums, decay 0.99 would move it far away again.
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
  far = jnp.full((_K, _D), 50.0).at[0].set(0.0)  # all but one restart
  due = jnp.full((_K,), quantizer.restart_after - 1)
  variables = _variables(quantizer, _latents(), codebook=far, unused_steps=due)
  first, second = (
    _step(quantizer, variables, _latents(), seed)[1]['codebook']['codebook'][1:]
    for seed in range(2)
  )
  assert len(np.unique(first, axis=0)) > 2
  assert np.any(first != second)


def _epoch_perplexity(init, steps=40, codebook_size=32, **fields):
  """Perplexity after training on latents far from a small random codebook."""
  quantizer = quantizers.EmaQuantizer(codebook_size, _D, **fields)

  def draw(seed):
    return 10 + _latents(32, seed=seed)  # 192 latents

  variables = quantizer.init(jax.random.key(0), draw(0))
  if init:
    rows = jnp.concatenate([draw(0), draw(1)]).reshape(-1, _D)
    variables = _init_codebook(quantizer, variables, rows, 1)
  for seed in range(steps):
    _, variables = _step(quantizer, variables, draw(seed), seed)
  codes = _encode(
    quantizer, variables, jnp.concatenate(list(map(draw, range(steps))))
  )
  p = np.bincount(codes.ravel(), minlength=codebook_size) / codes.size
  return np.exp(-np.sum(p * np.log(np.maximum(p, 1e-12))))


def test_without_init_from_latents_and_restart_the_codebook_collapses():
  assert _epoch_perplexity(init=False) < 8


@pytest.mark.parametrize(
  'init, fields', [(False, {'restart_after': 10}), (True, {})]
)
def test_with_either_of_them_it_does_not(init, fields):
  assert _epoch_perplexity(init, **fields) > 0.7 * 32


def test_the_default_does_not_collapse():
  fields = config_files.load('vqvae').quantizer.to_dict()
  assert fields.pop('name') == 'ema'
  init = fields['codebook_init'] != 'random'
  del fields['codebook_size'], fields['code_dim']
  assert _epoch_perplexity(init, **fields) > 0.7 * 32


def test_without_rng_for_restarts_the_error_names_the_stream():
  quantizer = QUANTIZERS['ema_restart']
  variables = _variables(quantizer, _latents())
  with pytest.raises(Exception, match='codebook'):
    observed = quantizer.apply(variables, _latents()).observed
    quantizer.apply(variables, observed, method='update', mutable=['codebook'])


# Initialisation and restarts of every trained codebook.


@functools.partial(jax.jit, static_argnums=0)
def _init_codebook(quantizer, variables, rows, seed=0):
  _, updated = quantizer.apply(
    variables,
    rows,
    method='init_codebook',
    mutable=['codebook'],
    rngs={'codebook': jax.random.key(seed)},
  )
  return {**variables, **updated}


@every_trained_codebook
def test_init_codebook_puts_the_first_level_on_the_latents(quantizer):
  rows = _latents(16).reshape(-1, _D)
  variables = _moved_far(quantizer, _variables(quantizer, _latents()))
  if 'params' in variables:  # a gradient has moved the codes
    moved = np.random.default_rng(1).normal(size=(_K, _D))
    variables |= {'params': {'moved': jnp.float32(moved)}}
  assert len(rows) >= quantizer.num_init_rows > 0
  initialised = _init_codebook(quantizer, variables, rows)
  vectors = _vectors(quantizer, initialised)[:_K]
  if isinstance(quantizer, quantizers.L2NormQuantizer):
    rows = codebooks.normalize(rows)
  distances = np.square(rows[:, None] - vectors).sum(-1)  # [N, K]
  np.testing.assert_allclose(distances.min(0), 0, atol=1e-9)
  assert len(np.unique(distances.argmin(0))) == _K
  assert len(np.unique(distances.argmin(1))) == _K
  for a, b in zip(
    jax.tree.leaves(initialised),
    jax.tree.leaves(_init_codebook(quantizer, variables, rows)),
  ):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_residual_levels_begin_as_rests_of_the_level_before():
  quantizer = QUANTIZERS['residual']
  rows = _latents(16).reshape(-1, _D)
  variables = _init_codebook(quantizer, _variables(quantizer, _latents()), rows)
  first, second, _ = _vectors(quantizer, variables).reshape(3, _K, _D)
  left = rows - first[_nearest(np.asarray(rows), first)]
  distances = np.square(left[:, None] - second).sum(-1)
  np.testing.assert_allclose(distances.min(0), 0, atol=1e-9)


@pytest.mark.parametrize('name', ['vq_restart', 'l2_norm'])
def test_a_restarted_code_is_a_latent_even_if_a_gradient_moved_it(name):
  quantizer = QUANTIZERS[name]
  variables = _variables(quantizer, _latents())
  moved = np.random.default_rng(1).normal(size=(_K, _D))
  due = jnp.zeros(_K, jnp.int32).at[-1].set(quantizer.restart_after - 1)
  origin = variables['codebook']['origin']
  variables = _variables(
    quantizer,
    _latents(),
    unused_steps=due,
    origin=origin + 30 * np.eye(_K)[-1][:, None] * [1, -1, 1] - moved,
  )
  variables |= {'params': {'moved': jnp.float32(moved)}}
  latents = jnp.abs(_latents()) * jnp.float32([-1, 1, -1])  # the other side
  before = _vectors(quantizer, variables)
  _, variables = _step(quantizer, variables, latents)
  after = _vectors(quantizer, variables)
  np.testing.assert_array_equal(after[:-1], before[:-1])
  if name == 'l2_norm':
    latents = codebooks.normalize(latents)
  np.testing.assert_allclose(
    np.square(latents - after[-1]).sum(-1).min(), 0, atol=1e-9
  )
  assert variables['codebook']['unused_steps'][-1] == 0


# The losses.


@pytest.mark.parametrize('name', ['vq', 'l2_norm'])
def test_codebook_loss_and_commitment_loss_against_numpy(name):
  quantizer = QUANTIZERS[name].clone(commitment_weight=0.7)
  latents = _latents()
  variables = _variables(quantizer, latents)
  norm = name == 'l2_norm'

  def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True) if norm else x

  def through(x, g):
    """The gradient before the scaling to length 1."""
    if not norm:
      return g
    u = unit(x)
    g = g - u * np.sum(u * g, -1, keepdims=True)
    return g / np.linalg.norm(x, axis=-1, keepdims=True)

  raw = np.float64(variables['codebook']['origin'])
  z, e = unit(np.float64(latents)), unit(raw)
  codes = _nearest(z, e)
  difference = z - e[codes]
  mse = np.mean(difference**2)

  def loss(latents, params):
    out, _ = _step(quantizer, variables | {'params': params}, latents)
    return out.loss, out.metrics

  grad_fn = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  (value, metrics), grads = grad_fn(latents, variables['params'])
  np.testing.assert_allclose(value, 1.7 * mse, rtol=1e-5)
  for term in ('commitment_loss', 'codebook_loss'):
    np.testing.assert_allclose(metrics[term].mean(), mse, rtol=1e-5)
  # The commitment weight scales the encoder's gradient, not the codebook's.
  to_latents = through(np.float64(latents), 0.7 * 2 * difference / z.size)
  np.testing.assert_allclose(grads[0], to_latents, rtol=1e-4, atol=1e-7)
  to_codebook = np.zeros((_K, _D))
  np.add.at(
    to_codebook, codes.ravel(), -2 * difference.reshape(-1, _D) / z.size
  )
  np.testing.assert_allclose(
    grads[1]['moved'], through(raw, to_codebook), rtol=1e-4, atol=1e-7
  )


# Finite scalar quantization.


def _fsq_inverse(vectors, levels):
  """Latents that lie on code vectors."""
  levels = np.array(levels)
  half = (levels - 1) * 1.001 / 2
  offset = np.where(levels % 2 == 0, 0.5, 0)
  inside = np.clip((vectors * (levels // 2) + offset) / half, -0.9999, 0.9999)
  return np.arctanh(inside) - np.arctanh(offset / half)


@pytest.mark.parametrize('levels', [(8, 6, 5), (7, 5, 5, 5, 5), (3, 4)])
def test_fsq_against_its_definition(levels):
  d = len(levels)
  quantizer = quantizers.FsqQuantizer(levels)
  z = np.random.default_rng(0).normal(size=(64, 8, 8, d)) * 3

  variables = quantizer.init(jax.random.key(0), jnp.zeros((1, 1, 1, d)))

  @jax.jit
  def run(z):
    bound = quantizer.bind(variables)
    middle = bound.lookup(bound.encode(jnp.zeros((1, 1, 1, d))))
    return bound(z), middle, bound.vectors()

  out, middle, vectors = run(jnp.float32(z))
  expected, codes, place = np.zeros_like(z), 0, 1
  for i, n in enumerate(levels):
    # Section 3.1: as many whole numbers as levels, in equal steps.
    values = np.arange(n) - n // 2
    half, offset = (n - 1) * 1.001 / 2, 0.5 * (n % 2 == 0)
    bounded = half * np.tanh(z[..., i] + np.arctanh(offset / half)) - offset
    digit = np.abs(bounded[..., None] - values).argmin(-1)
    assert set(np.unique(digit)) == set(range(n))  # all are reached
    expected[..., i] = values[digit] / (n // 2)
    codes, place = codes + digit * place, place * n
  assert quantizer.codebook_size == place
  np.testing.assert_allclose(out.quantized, expected, atol=1e-6)
  np.testing.assert_array_equal(out.codes, codes)
  assert out.loss == 0
  np.testing.assert_array_equal(middle, 0)
  assert len(np.unique(vectors, axis=0)) == place
  assert np.abs(vectors).max() == 1


def test_fsq_uses_its_codes_from_the_first_step():
  quantizer = quantizers.FsqQuantizer((4, 3, 3))
  latents = 5 + 0.01 * _latents(256)
  variables = _variables(quantizer, latents)
  assert len(np.unique(_encode(quantizer, variables, latents))) == 1
  rows = latents.reshape(-1, _D)
  assert len(rows) >= quantizer.num_init_rows
  initialised = _init_codebook(quantizer, variables, rows)
  codes = _encode(quantizer, initialised, latents)
  assert len(np.unique(codes)) == 36
  unit = (latents - rows.mean(0)) / rows.std(0)
  expected = _encode(quantizer, variables, unit)
  assert np.mean(codes == expected) > 0.99  # but for rounding


# Residual quantization.


def test_residual_loss_and_error_against_numpy():
  quantizer = QUANTIZERS['residual'].clone(commitment_weight=0.7)
  latents = _latents()
  variables = _variables(quantizer, latents)
  codebook = _vectors(quantizer, variables).reshape(3, _K, _D)
  left, loss, gradient = np.float64(latents), 0, 0
  for level in codebook:
    left = left - level[_nearest(left, level)]
    loss += 0.7 * np.mean(left**2)
    gradient += 0.7 * 2 * left / left.size
  grad_fn = jax.value_and_grad(lambda z: _step(quantizer, variables, z)[0].loss)
  value, to_latents = grad_fn(latents)
  np.testing.assert_allclose(value, loss, rtol=1e-5)
  np.testing.assert_allclose(to_latents, gradient, rtol=1e-4, atol=1e-7)
  out, _ = _step(quantizer, variables, latents)
  np.testing.assert_allclose(
    out.metrics['quantization_error'], (left**2).mean((1, 2, 3)), rtol=1e-4
  )


def test_metrics_against_numpy():
  quantizer = QUANTIZERS['ema']
  latents = _latents()
  variables = _variables(quantizer, latents)
  out, _ = _step(quantizer, variables, latents)
  z = np.float64(latents)
  q = _vectors(quantizer, variables)[np.asarray(out.codes)]
  for name, expected in (
    ('quantization_error', ((z - q) ** 2).mean((1, 2, 3))),
    ('latent_norm', np.linalg.norm(z, axis=-1).mean((1, 2))),
  ):
    np.testing.assert_allclose(out.metrics[name], expected, rtol=1e-5)


# Fields with wrong values.


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: quantizers.EmaQuantizer(0, 3), 'codebook_size is 0; give 1'),
    (lambda: quantizers.VqQuantizer(4, 0), 'code_dim is 0'),
    (
      lambda: quantizers.ResidualQuantizer(4, 3, codebook_init='k_means'),
      "codebook_init is 'k_means'; .*'latents', 'random'",
    ),
    (lambda: quantizers.VqQuantizer(4, 3, restart_after=-1), 'restart_after'),
    (
      lambda: quantizers.L2NormQuantizer(4, 3, commitment_weight=-1),
      'commitment_weight is -1; give 0',
    ),
    (
      lambda: quantizers.EmaQuantizer(4, 3, codebook_ema_decay=1.0),
      'codebook_ema_decay is 1.0',
    ),
    (lambda: quantizers.ResidualQuantizer(4, 3, num_levels=0), 'num_levels'),
    (lambda: quantizers.FsqQuantizer((8, 2)), r'values_per_dim is \(8, 2\)'),
    (lambda: quantizers.FsqQuantizer(()), r'values_per_dim is \(\)'),
  ],
)
def test_wrong_fields_are_refused(make, message):
  with pytest.raises(errors.UserError, match=f'config.quantizer.{message}'):
    make()
