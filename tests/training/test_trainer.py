"""The setup of a training."""

import image_references
import jax
import numpy as np
import pytest
import two_players
from absl import flags

from dermvq_jax import config_files
from dermvq_jax.data import pipeline
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import trainer as trainer_lib

PHASES = ('vqvae', 'prior', 'classifier')


def make(smoke_run, phase, *overrides):
  run = run_lib.Run(smoke_run)
  config = config_files.load(f'{phase}:smoke', overrides)
  dataset = run.dataset(config)
  config = trainer_lib.resolve(config, dataset.facts)
  sources = {name: dataset.split(name) for name in ('train', 'val')}
  return trainer_lib.Trainer(config, dataset.facts, sources)


@pytest.mark.parametrize(
  ('phase', 'overrides'),
  [*((phase, ()) for phase in PHASES), ('vqvae', two_players.OPTIONS)],
)
def test_the_structure_is_that_of_the_start(
  phase, overrides, smoke_run, monkeypatch
):
  """A resumed run needs no initialisation, and reads a single batch."""
  trainer = make(smoke_run, phase, *overrides)
  started = trainer.start()
  numbers = []
  real = trainer.train_batches

  def count(*args, **kwargs):
    for number, batch in enumerate(real(*args, **kwargs)):
      numbers.append(number)
      yield batch

  monkeypatch.setattr(trainer, 'train_batches', count)
  shapes = trainer.structure()
  assert numbers == [0]
  assert jax.tree.structure(shapes) == jax.tree.structure(started)
  for shape, array in zip(jax.tree.leaves(shapes), jax.tree.leaves(started)):
    assert isinstance(shape, jax.ShapeDtypeStruct)
    assert (shape.shape, shape.dtype) == (np.shape(array), array.dtype)


def _resolve(name, num_train, *overrides):
  config = config_files.load(name, [f'--config.{text}' for text in overrides])
  before = config.to_dict()
  resolved = trainer_lib.resolve(config, {'num_train': num_train})
  assert config.to_dict() == before
  return resolved


@pytest.mark.parametrize(
  ('name', 'num_train', 'overrides', 'steps', 'validates'),
  [
    # As measured in RESULTS.md: whole epochs.
    ('vqvae', 4001, [], 3500, 250),
    ('vqvae:mse', 4001, [], 2500, 250),
    ('vqvae:sharpen', 4001, [], 1000, 250),
    ('prior', 4001, [], 9000, 500),
    ('classifier', 4001, [], 1250, 125),
    # More images take more steps.
    ('vqvae', 20000, [], 12500, 1250),
    # Few images take as many as a model needs, and few validations.
    ('vqvae', 240, [], 3500, 180),
    ('vqvae:128', 240, [], 3500, 175),
    ('prior', 240, [], 3000, 150),
    ('classifier', 240, [], 1000, 56),
    # Fewer images than a batch are an epoch of one step.
    ('prior', 3, [], 3000, 150),
    # What is given counts.
    ('vqvae', 240, ['num_epochs=2.5'], 38, 15),
    ('vqvae', 240, ['num_epochs=2.5', 'min_train_steps=70'], 70, 15),
    ('vqvae', 240, ['min_train_steps=70'], 150, 15),
    ('vqvae', 240, ['num_train_steps=70'], 70, 15),
    ('vqvae', 240, ['eval_every_steps=7'], 3500, 7),
  ],
)
def test_the_number_of_images_decides_how_long(
  name, num_train, overrides, steps, validates
):
  config = _resolve(name, num_train, *overrides)
  assert (config.num_train_steps, config.eval_every_steps) == (steps, validates)


def test_a_warm_up_takes_at_most_a_tenth():
  def warmups(*overrides):
    config = _resolve('vqvae', 240, 'num_train_steps=150', *overrides)
    return config.optim.warmup_steps, config.discriminator_optim.warmup_steps

  assert warmups() == (15, 0)
  assert warmups('optim.warmup_steps=7') == (7, 0)
  both = [
    f'discriminator_optim.{x}' for x in ('schedule=cosine', 'warmup_steps=90')
  ]
  assert warmups(*both) == (15, 15)
  # A training at a constant rate can become longer, with the same first steps.
  assert warmups('optim.schedule=constant') == (100, 0)


@pytest.mark.parametrize('size', ['demo', 'smoke'])
@pytest.mark.parametrize('phase', PHASES)
def test_the_short_configs_have_short_warm_ups(phase, size):
  config = config_files.load(f'{phase}:{size}')
  resolved = trainer_lib.resolve(config, {'num_train': 100})
  assert resolved.optim.warmup_steps == config.optim.warmup_steps > 0


def test_norms_and_learning_rates(smoke_run):
  trainer = make(smoke_run, 'vqvae')
  old = trainer.start()['state'].params
  new = jax.tree.map(lambda x: x + 0.5, old)
  found = trainer.parameter_norms(trainer.copy(old), new)
  size = sum(x.size for x in jax.tree.leaves(old))
  assert found['update_norm'] == pytest.approx(0.5 * size**0.5, rel=1e-3)
  squares = sum(np.sum(np.square(x)) for x in jax.tree.leaves(new))
  assert found['param_norm'] == pytest.approx(float(squares) ** 0.5, rel=1e-3)
  # Warm-up over one step, then a cosine to zero.
  rates = [trainer.learning_rates(n)['learning_rate'] for n in (1, 2, 10)]
  peak = trainer.config.optim.learning_rate
  assert rates[0] == 0 and rates[1] == pytest.approx(peak)
  assert 0 < rates[2] < 0.1 * peak


def test_the_discriminator_has_its_own_norms_and_learning_rate(smoke_run):
  rate = '--config.discriminator_optim.learning_rate=0.25'
  trainer = make(smoke_run, 'vqvae', *two_players.OPTIONS, rate)
  rates = trainer.learning_rates(3)
  assert rates.keys() == {'learning_rate', 'learning_rate/discriminator'}
  assert rates['learning_rate/discriminator'] == 0.25
  old = trainer.start()['state'].params
  new = dict(old) | {
    'discriminator': jax.tree.map(lambda x: x + 0.5, old['discriminator'])
  }
  found = trainer.parameter_norms(trainer.copy(old), new)
  size = sum(x.size for x in jax.tree.leaves(old['discriminator']))
  assert found['update_norm'] == 0
  assert found['update_norm/discriminator'] == pytest.approx(
    0.5 * size**0.5, rel=1e-3
  )
  assert {'param_norm', 'param_norm/discriminator'} <= found.keys()
  weights = trainer.kept_weights(trainer.start()['state'])
  assert weights['params'].keys() == {'encoder', 'decoder'}


def test_only_what_is_kept_goes_to_best(smoke_run):
  trainer = make(smoke_run, 'vqvae')
  start = trainer.start()['state']
  task = trainer.task
  object.__setattr__(
    task, 'kept', lambda params: {'decoder': params['decoder']}
  )
  kept = trainer.kept_weights(start)
  assert list(kept['params']) == ['decoder']
  assert kept['model_state'] is start.model_state


def test_workers_in_a_script(smoke_run, monkeypatch):
  """grain's workers read absl's flags, which a script does not parse."""
  trainer = make(smoke_run, 'vqvae')
  asked = []
  monkeypatch.setattr(
    pipeline, 'train_batches', lambda *_, **kwargs: asked.append(kwargs)
  )
  flags.FLAGS.unparse_flags()
  try:
    trainer.train_batches()
    assert not flags.FLAGS.is_parsed()
    trainer.train_batches(num_workers=2)
    assert flags.FLAGS.is_parsed()
  finally:
    flags.FLAGS.mark_as_parsed()
  assert [kwargs['num_workers'] for kwargs in asked] == [0, 2]


def _network(seed):
  arrays = image_references.random_weights([3, 2, 3, 4, 2], [3] * 4)
  return {name: x + seed for name, x in arrays.items()}


def test_paths_mean_the_same_in_another_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  np.savez('w.npz', **_network(0))
  config = _resolve('vqvae', 100, 'data_dir=data', 'perceptual_weights=w.npz')
  assert config.data_dir == str(tmp_path / 'data')
  assert config.perceptual_weights == str(tmp_path / 'w.npz')
  remote = _resolve('vqvae', 100, 'data_dir=gs://bucket/data')
  assert remote.data_dir == 'gs://bucket/data'
  config = _resolve('vqvae', 100)
  assert not config.data_dir and not config.perceptual_weights


def test_the_content_of_a_network_counts_and_not_its_place(tmp_path):
  for name, seed in (('a', 0), ('b', 0), ('c', 1)):
    np.savez(tmp_path / f'{name}.npz', **_network(seed))
  first, moved, other = (
    _resolve('vqvae', 100, f'perceptual_weights={tmp_path}/{name}.npz')
    for name in 'abc'
  )
  assert first.perceptual_digest == moved.perceptual_digest
  assert first.perceptual_digest != other.perceptual_digest
  assert 'perceptual_digest' not in _resolve('vqvae', 100)
