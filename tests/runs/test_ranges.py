"""The ranges of the numbers in a config."""

import pytest

from dermvq_jax import config_files, errors
from dermvq_jax.runs import ranges
from dermvq_jax.training import trainer


@pytest.mark.parametrize(
  ('phase', 'override'),
  [
    ('vqvae', 'optim.learning_rate=0.0'),
    ('vqvae', 'optim.learning_rate=-1.0'),
    ('vqvae', 'optim.learning_rate=inf'),
    ('vqvae', 'optim.learning_rate=nan'),
    ('vqvae', 'optim.learning_rate=1e39'),  # infinite as float32
    ('vqvae', 'optim.b2=2.0'),
    ('vqvae', 'optim.b2=1.0'),
    ('vqvae', 'optim.b2=0.999999999'),  # 1 as float32
    ('vqvae', 'optim.weight_decay=-1.0'),
    ('vqvae', 'optim.weight_decay=inf'),
    ('vqvae', 'optim.warmup_steps=-3'),
    ('vqvae', 'optim.max_grad_norm=-1.0'),
    ('vqvae', 'optim.max_grad_norm=nan'),
    ('vqvae', 'params_ema_decay=1.0'),
    ('vqvae', 'params_ema_decay=nan'),
    ('vqvae', 'seed=-1'),
    ('vqvae', 'seed=4294967296'),
    ('vqvae', 'seed=99999999999999999999'),
    ('vqvae', 'num_workers=-1'),
    ('vqvae', 'num_workers=257'),
    ('vqvae', 'num_microbatches=0'),
    ('prior', 'num_epochs=0.0'),
    ('prior', 'num_epochs=inf'),
    ('vqvae', 'num_train_steps=4294967296'),
    ('vqvae', 'model.num_residual_blocks=-1'),
    ('vqvae', 'perceptual_crop=-1'),
    ('vqvae', 'quantizer.commitment_weight=inf'),
    ('vqvae', 'quantizer.codebook_ema_decay=nan'),
    ('prior', 'conditions.label=2.0'),
    ('prior', 'conditions.label=-0.1'),
    ('prior', 'conditions.label=nan'),
    ('prior', 'prior.dropout_rate=1.5'),
    ('prior', 'prior.dropout_rate=1.0'),
    ('prior', 'prior.num_layers=0'),
    ('prior', 'label_smoothing=nan'),
    ('prior', 'class_balance=1.5'),
    ('prior:align', 'alignment.beta=0.0'),
    ('prior:align', 'alignment.negative_weight=-1.0'),
    ('prior:transformer', 'prior.num_heads=0'),
    ('classifier', 'classifier.num_stages=2000000000'),
    ('classifier', 'data_dir=a\udcff'),
  ],
)
def test_values_out_of_range(phase, override):
  config = config_files.load(phase, [f'--config.{override}'])
  name, _, value = override.partition('=')
  with pytest.raises(errors.UserError) as e:
    trainer.resolve(config, {'num_train': 100})
  message = str(e.value)
  assert message.startswith(f'config.{name} is ') and '; give a ' in message


def test_epochs_that_are_too_many_steps():
  config = config_files.load('vqvae:mse', ['--config.num_epochs=1e30'])
  with pytest.raises(errors.UserError, match='config.num_train_steps is 6'):
    trainer.resolve(config, {'num_train': 100})


@pytest.mark.parametrize('value', [True, None, '1', 1.5, [1]])
def test_values_of_odd_types(value):
  """A config file of the user may hold anything."""
  config = config_files.load('vqvae')
  with config.ignore_type():
    config.batch_size = value
  with pytest.raises(errors.UserError, match='batch_size is .*; give a whole'):
    ranges.check_ranges(config)


@pytest.mark.parametrize('name', config_files.shipped())
def test_no_number_of_the_shipped_configs_is_forgotten(name):
  """Those of the augmentation and the loss are checked elsewhere."""

  def numbers(config, prefix=''):
    for key, value in config.items():
      if hasattr(value, 'items'):
        yield from numbers(value, f'{prefix}{key}.')
      elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix + key

  config = config_files.load(name)
  ranges.check_ranges(config)
  for field in numbers(config):
    if not field.startswith(('augment.', 'loss.')):
      before = config.copy_and_resolve_references()
      *parents, last = field.split('.')
      part = before
      for parent in parents:
        part = part[parent]
      with part.ignore_type():
        part[last] = 'x'
      with pytest.raises(errors.UserError, match=f'config.{field} is'):
        ranges.check_ranges(before)


@pytest.mark.parametrize('task', ['vqvae', 'prior', 'classifier'])
@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'optim': None}, 'config.optim describes no optimiser'),
    ({'optim': {}}, 'config.optim describes no optimiser'),
    ({'optim': [1]}, 'config.optim describes no optimiser'),
    ({'a_optim': 3}, 'config.a_optim describes no optimiser'),
    ({'task': 'x'}, "config.task is 'x'"),
  ],
)
def test_a_damaged_config(task, changes, message):
  config = config_files.load(task).to_dict()
  ranges.check_stored(config, task)
  with pytest.raises(errors.UserError, match=message):
    ranges.check_stored(config | changes, task)


@pytest.mark.parametrize('name', ['data_dir', 'optim'])
def test_a_config_without_a_field(name):
  config = config_files.load('prior').to_dict()
  del config[name]
  with pytest.raises(errors.UserError, match=f'config.{name} is missing'):
    ranges.check_stored(config, 'prior')
