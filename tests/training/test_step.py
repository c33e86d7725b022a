"""Tests of one training step: formulas, devices, microbatches, precision."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_players

from dermvq_jax import config_files
from dermvq_jax.data import pipeline, prepared
from dermvq_jax.models import build, discriminator
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import metrics, optim, parallel, state, tasks
from dermvq_jax.training import step as step_lib

PHASES = ('vqvae', 'prior')
# Both at the same cost; one is enough before each commit.
ONE_FAST = ('vqvae', pytest.param('prior', marks=pytest.mark.slow))
IMAGES = 'synthetic_dermoscopy/smoke'
every_kind = pytest.mark.parametrize(
  'kind', ['jit', pytest.param('pmap', marks=pytest.mark.slow)]
)


# The second also trains a discriminator.
TASKS = (
  'vqvae',
  pytest.param('adversarial', marks=pytest.mark.slow),
  'prior',
)


def batches_and_task(smoke_run, phase, batch_size=8):
  """Three batches, the task without noise, and its start.

  The discriminator's views are noise; see `no_views`.
  """
  overrides = two_players.OPTIONS if phase == 'adversarial' else ()
  phase = 'vqvae' if phase == 'adversarial' else phase
  config = config_files.load(f'{phase}:smoke', overrides)
  config.data_dir = f'{smoke_run}/data'
  if phase == 'prior':
    config.prior.dropout_rate = 0.0
    config.conditions.label = 0.0
  dataset = run_lib.Run(smoke_run).dataset(config)
  task = tasks.make(config, dataset.facts)
  source = dataset.split('train')

  def stream():
    return pipeline.train_batches(
      source, batch_size=batch_size, seed=0, keys=task.keys
    )

  start = task.init(jax.random.key(0), stream())
  return config, task, list(itertools.islice(stream(), 3)), start


@pytest.fixture
def no_views(monkeypatch):
  """The discriminator sees images as they are."""
  monkeypatch.setattr(discriminator, 'augment', lambda rng, images: images)


def plain(tx):
  """An optimiser of all parameters, without a schedule."""
  return optim.Optimizer(tx, {'': optax.constant_schedule(1.0)})


def start_tree(task, optimizer, start, batch):
  """The tree that a step maps, before the first step."""
  train_state = state.TrainState.create(*start, optimizer.tx, ema=True)
  sums = step_lib.zero_sums(task, optimizer, train_state, batch)
  return {'state': train_state, 'window': sums, 'epoch': sums}


@pytest.mark.parametrize('phase', TASKS)
def test_jit_and_pmap_agree(phase, smoke_run, no_views):
  _, task, batches, start = batches_and_task(smoke_run, phase)
  # Steps of plain gradients: their differences are the parameters'.
  optimizer = plain(optax.sgd(0.1))
  step = step_lib.make_train_step(
    task, optimizer, jax.random.key(1), ema_decay=0.9
  )
  results = {}
  for kind in ('jit', 'pmap'):
    par = parallel.Parallel(kind)
    tree = par.put_tree(start_tree(task, optimizer, start, batches[0]))
    compiled = par.compile(step)
    for batch in batches:
      tree = compiled(tree, par.put_batch(batch))
    for leaf in jax.tree.leaves(tree):
      shards = [np.asarray(s.data) for s in leaf.addressable_shards]
      assert len(shards) == jax.device_count()
      for shard in shards:  # every device holds the same
        np.testing.assert_array_equal(shard, shards[0])
    results[kind] = jax.device_get(tree)
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), results['jit']['state'].params, start[0]
  )
  assert min(jax.tree.leaves(moved)) > 0
  for a, b in zip(
    jax.tree.leaves(results['jit']['state']),
    jax.tree.leaves(results['pmap']['state']),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  values = {k: metrics.compute(v['epoch']) for k, v in results.items()}
  assert values['jit'] == pytest.approx(values['pmap'], rel=1e-4)
  assert values['jit']['loss'] > 0
  # The sums too: a run may go on with other devices between two log steps.
  for name, part in results['jit']['epoch'].items():
    np.testing.assert_allclose(
      *(jax.tree.leaves(x) for x in (part, results['pmap']['epoch'][name])),
      rtol=1e-3,
      err_msg=name,
    )


def test_vqvae_loss_is_the_formula(smoke_run):
  config, task, batches, (params, model_state) = batches_and_task(
    smoke_run, 'vqvae'
  )
  batch = batches[0]
  loss, (parts, _) = jax.jit(
    lambda: task.loss_fn(
      params, model_state, batch, jax.random.key(0), train=True, axis_name=None
    )
  )()
  model = build.vqvae(config)
  variables = {'params': params, **model_state}
  images = batch['image'] / np.float32(255)
  apply = jax.jit(model.apply, static_argnames='method')
  z = np.asarray(apply(variables, images, method='latents'), np.float64)
  codebook = np.asarray(model_state['codebook']['quantizer']['codebook'])
  codes = np.square(z[..., None, :] - codebook).sum(-1).argmin(-1)
  reconstruction = np.asarray(
    apply(variables, codebook[codes], method=lambda m, q: m.decoder(q))
  )
  facts = run_lib.Run(smoke_run).vqvae.facts
  mse = np.mean((reconstruction - images) ** 2)
  commitment = np.mean((z - codebook[codes]) ** 2)
  weight = config.quantizer.commitment_weight
  expected = mse / facts['train_variance'] + weight * commitment
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  values = metrics.compute(parts)
  clipped = np.mean((np.clip(reconstruction, 0, 1) - images) ** 2)
  np.testing.assert_allclose(values['mse'], clipped, rtol=1e-5)
  np.testing.assert_allclose(
    values['nmse'], clipped / facts['train_variance'], rtol=1e-5
  )
  np.testing.assert_allclose(values['psnr'], -10 * np.log10(clipped), rtol=1e-5)
  np.testing.assert_allclose(values['commitment_loss'], commitment, rtol=1e-4)


def test_train_variance_is_that_of_the_training_images(smoke_run):
  source = prepared.Dataset(IMAGES, smoke_run / 'data').split('train')
  pixels = np.stack([source[i]['image'] for i in range(len(source))]) / 255
  facts = run_lib.Run(smoke_run).vqvae.facts
  assert facts['train_variance'] == pytest.approx(pixels.var(), rel=1e-9)
  assert facts['num_train'] == len(source)


@pytest.mark.parametrize('phase', PHASES)
def test_first_step_is_optax_adamw(phase, smoke_run):
  """One update of the loop's step against the gradient of the task."""
  config, task, batches, start = batches_and_task(smoke_run, phase)
  optimizer = plain(optax.adamw(1e-2))
  key = jax.random.key(1)
  step = step_lib.make_train_step(task, optimizer, key, ema_decay=0.9)
  tree = start_tree(task, optimizer, start, batches[0])
  new = jax.jit(lambda t: step(t, batches[0], axis_name=None))(tree)['state']
  grads = jax.jit(
    lambda p: jax.grad(
      lambda p: task.loss_fn(
        p,
        start[1],
        batches[0],
        jax.random.fold_in(key, 0),
        train=True,
        axis_name=None,
      )[0]
    )(p)
  )(start[0])
  # The first step of Adam, without weight decay, is g / (|g| + eps).
  expected = jax.tree.map(
    lambda p, g: p - 1e-2 * (g / (np.abs(g) + 1e-8) + 1e-4 * p),
    *(
      jax.device_get(start[0]),
      jax.device_get(grads),
    ),
  )
  sure = jax.tree.map(lambda g: np.abs(g) > 1e-5, jax.device_get(grads))
  jax.tree.map(
    lambda a, b, s: np.testing.assert_allclose(
      np.asarray(a)[s], b[s], rtol=1e-3, atol=1e-5
    ),
    new.params,
    expected,
    sure,
  )
  # The average starts with decay (1 + 0) / (10 + 0).
  jax.tree.map(
    lambda e, old, p: np.testing.assert_allclose(
      e, 0.1 * np.asarray(old) + 0.9 * np.asarray(p), rtol=1e-4, atol=1e-6
    ),
    new.ema_params,
    start[0],
    new.params,
  )
  assert new.step == 1


@pytest.mark.parametrize('phase', ONE_FAST)
def test_bfloat16_computes_nearly_the_same(phase, smoke_run):
  """Parameters, gradients and codebook stay float32."""
  config, task, batches, start = batches_and_task(smoke_run, phase)
  config.dtype = 'bfloat16'
  half = tasks.make(config, run_lib.Run(smoke_run).dataset(config).facts)

  def run(task):
    (loss, (parts, observed)), grads = jax.jit(
      lambda params, state: jax.value_and_grad(task.loss_fn, has_aux=True)(
        params, state, batches[0], jax.random.key(0), train=True
      )
    )(*start)
    state = task.update_state(*start, observed, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves((grads, loss))} == {
      jnp.float32.dtype
    }
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(start[1])):
      assert a.dtype == b.dtype
    return metrics.compute(parts) | {'loss': float(loss)}

  found, expected = run(half), run(task)
  assert found['loss'] == pytest.approx(expected['loss'], rel=0.02)
  assert found != expected


@every_kind
@pytest.mark.parametrize('phase', ONE_FAST)
def test_microbatches_do_what_the_batch_does(phase, kind, smoke_run):
  """Parameters, codebook with its restarts, and metrics."""
  _, task, batches, start = batches_and_task(smoke_run, phase, 16)
  if phase == 'vqvae':  # Codes that are not used now restart.
    statistics = start[1]['codebook']['quantizer']
    statistics['unused_steps'] = np.full_like(statistics['unused_steps'], 3)
  # Steps of plain gradients: their differences are the parameters'.
  optimizer = plain(optax.sgd(0.1))
  results = []
  for num_microbatches in (1, 2):
    par = parallel.Parallel(kind)
    step = par.compile(
      step_lib.make_train_step(
        task,
        optimizer,
        jax.random.key(1),
        ema_decay=0.9,
        num_microbatches=num_microbatches,
      )
    )
    tree = par.put_tree(start_tree(task, optimizer, start, batches[0]))
    tree = jax.device_get(step(tree, par.put_batch(batches[0])))
    results.append((tree['state'], metrics.compute(tree['epoch'])))
  (whole, values), (parts, values_of_parts) = results
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), whole.params, jax.device_get(start[0])
  )
  assert min(jax.tree.leaves(moved)) > 0
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  assert values_of_parts == pytest.approx(values, rel=1e-4)


@pytest.mark.slow
def test_microbatches_train_a_discriminator(smoke_run):
  """Each part has its own views and balance, so results differ a little."""
  _, task, batches, start = batches_and_task(smoke_run, 'adversarial', 16)
  optimizer = plain(optax.sgd(0.1))
  results = []
  for num_microbatches in (1, 2):
    step = step_lib.make_train_step(
      task, optimizer, jax.random.key(1), num_microbatches=num_microbatches
    )
    tree = start_tree(task, optimizer, start, batches[0])
    new = jax.jit(functools.partial(step, axis_name=None))(tree, batches[0])
    moved = jax.tree.map(
      lambda a, b: np.abs(a - b).max(), new['state'].params, start[0]
    )
    assert min(jax.tree.leaves(moved)) > 0
    results.append(metrics.compute(new['epoch']))
  whole, parts = results
  assert parts.keys() == whole.keys()
  for name in ('mse', 'discriminator_loss', 'reconstruction_loss'):
    assert parts[name] == pytest.approx(whole[name], rel=0.05), name


_COLLECTIVE = re.compile(
  r'^.* = (.*) (all-reduce|all-gather|all-to-all|collective-permute|'
  r'reduce-scatter|collective-broadcast|ragged-all-to-all)(-start)?\(',
  re.MULTILINE,
)


_BYTES = {'f32': 4, 's32': 4, 'u32': 4, 'pred': 1}


def _bytes(shapes):
  """Bytes of '(f32[2,3]{1,0}, s32[])', for example."""
  return sum(
    _BYTES[dtype] * int(np.prod([int(n) for n in dims.split(',') if n]))
    for dtype, dims in re.findall(r'(\w+)\[([\d,]*)\]', shapes)
  )


def _size(tree):
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('phase', TASKS)
def test_devices_exchange_reductions_only(phase, smoke_run):
  """Only gradients, codebook statistics and metrics; no activations."""
  _, task, batches, start = batches_and_task(smoke_run, phase)
  optimizer = plain(optax.sgd(0.1))
  step = step_lib.make_train_step(
    task, optimizer, jax.random.key(1), ema_decay=0.9
  )
  par = parallel.Parallel('jit')
  start_sums = start_tree(task, optimizer, start, batches[0])
  tree = par.put_tree(start_sums)
  program = (
    par.compile(step, donate=True)
    .lower(tree, par.put_batch(batches[0]))
    .compile()
    .as_text()
  )
  found = [
    (kind, _bytes(shapes)) for shapes, kind, _ in _COLLECTIVE.findall(program)
  ]
  assert {kind for kind, _ in found} == {'all-reduce'}
  exchanged = sum(size for _, size in found)
  params, model_state = start
  needed = _size(params) + _size(start_sums['epoch'])
  # Its gradients of real and of made images are added up apart.
  needed += _size(params.get('discriminator', {}))
  if phase != 'prior':
    quantizer = model_state['codebook']['quantizer']
    # The sums and counts of latents, and as much for restart candidates.
    needed += _size([quantizer['ema_counts'], quantizer['ema_sums']])
    needed += _size(quantizer['codebook'])
  assert 0.9 * _size(params) < exchanged <= 1.1 * needed


def test_norms_against_numpy(smoke_run):
  """The norm of the gradients is a metric of the step."""
  _, task, batches, start = batches_and_task(smoke_run, 'vqvae')
  optimizer = plain(optax.sgd(0.1))
  step = step_lib.make_train_step(task, optimizer, jax.random.key(1))
  tree = start_tree(task, optimizer, start, batches[0])
  new = jax.jit(lambda tree: step(tree, batches[0], axis_name=None))(tree)
  update = jax.tree.map(
    lambda a, b: np.float64(a) - np.float64(b), new['state'].params, start[0]
  )
  norm = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(update)))
  for name in ('window', 'epoch'):
    found = metrics.compute(new[name])['grad_norm']
    assert found == pytest.approx(10 * norm, rel=1e-3)


def test_norms_of_subtrees():
  rate = optax.constant_schedule(1.0)
  optimizer = optim.Optimizer(optax.identity(), {'': rate, 'b': rate})
  tree = {
    'a': jnp.array([3.0]),
    'b': {'c': jnp.ones((2, 2))},
    'd': -4 * jnp.ones(1),
  }
  found = step_lib.norms(optimizer, tree, 'n')
  assert {k: float(v) for k, v in found.items()} == {'n': 5.0, 'n/b': 2.0}
