import os

import pytest

from dermvq_jax import config_files, configs, errors


def test_a_whole_part_after_its_fields():
  overrides = ['--config.optim.weight_decay=1', '--config.optim=x']
  with pytest.raises(errors.UserError, match='optim') as e:
    config_files.load('vqvae:smoke', overrides)
  assert '\n' not in str(e.value)


def test_shipped_configs():
  names = {f[:-3] for f in os.listdir(os.path.dirname(configs.__file__))}
  assert {'vqvae', 'prior'} <= names
  for name in ('vqvae', 'prior'):
    assert config_files.load(name).task == name
    assert config_files.load(f'{name}:smoke').batch_size == 8


def test_overrides():
  config = config_files.load(
    'vqvae:smoke',
    [
      '--config.seed=7',
      '--config.optim.learning_rate=2e-3',
      '--config.optim.weight_decay=1',  # an integer for a number
      '--config.augment.flips=False',
      '--config.parallel=pmap',
      '--config.data_dir=/some/where',
      '--config.data_dir=/the/last=one counts',
    ],
  )
  assert config.seed == 7
  assert config.optim.learning_rate == 2e-3
  assert config.optim.weight_decay == 1.0
  assert config.augment.flips is False
  assert config.parallel == 'pmap'
  assert config.data_dir == '/the/last=one counts'
  assert config_files.load('vqvae:smoke').seed == 0  # not changed


def test_own_file(tmp_path, monkeypatch):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from dermvq_jax.configs import vqvae\n'
    'def get_config(arg):\n'
    '  config = vqvae.get_config(arg)\n'
    '  config.seed = 5\n'
    '  return config\n'
  )
  config = config_files.load(f'{file}:smoke', ['--config.batch_size=16'])
  assert (config.seed, config.batch_size) == (5, 16)
  monkeypatch.chdir(tmp_path)
  assert config_files.load('mine.py:smoke').seed == 5


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ('vqvea', "no config 'vqvea'; give one of classifier, prior, vqvae"),
    ('', "no config ''"),
    ('/nowhere/config.py', 'no config .*path of a .py file'),
    ('../vqvae', 'no config'),
    ('vqvae:tiny', "vqvae has no config 'tiny'"),
    ('prior:128', "prior has no config '128'"),
  ],
)
def test_unknown_configs(config, message):
  with pytest.raises(errors.UserError, match=message) as e:
    config_files.load(config)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  'override',
  [
    'sed=1',
    'optim.learningrate=1',
    'optim.x.y=1',
    'seed=many',
    'seed=1.5',
    'optim.learning_rate=fast',
    'augment.flips=perhaps',
    'num-train-steps=3',
    'seed',
  ],
)
def test_wrong_overrides(override):
  with pytest.raises(errors.UserError) as e:
    config_files.load('vqvae:smoke', [f'--config.{override}'])
  assert override.partition('=')[0].split('.')[-1] in str(e.value)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('override', 'meant'),
  [
    ('optim.learning_rat', 'did you mean config.optim.learning_rate?'),
    ('optim.codebook_size', 'did you mean config.quantizer.codebook_size?'),
    ('learning_rate', 'did you mean config.optim.learning_rate?'),
    ('sed', 'did you mean config.seed?'),
    ('quantizer.xyz', 'there are '),
  ],
)
def test_the_field_that_was_meant(override, meant):
  """First where it was written, then anywhere."""
  with pytest.raises(errors.UserError) as e:
    config_files.load('vqvae:smoke', [f'--config.{override}=1'])
  assert meant in str(e.value)


@pytest.mark.parametrize('field', ['num_epochs', 'min_train_steps'])
def test_a_length_is_not_ignored(field):
  override = f'--config.{field}=5'
  for config in (
    ('prior:smoke', []),
    ('prior', ['--config.num_train_steps=9']),
  ):
    with pytest.raises(errors.UserError, match=f'{field} has no effect, bec'):
      config_files.load(config[0], [override, *config[1]])
  config = config_files.load(
    'prior:smoke', [override, '--config.num_train_steps=0']
  )
  assert (config[field], config.num_train_steps) == (5, 0)


@pytest.mark.parametrize(
  'config, field, value',
  [
    ('prior:align', 'prior.features', 32),
    ('prior:align', 'conditions.age', 0.3),
    ('prior', 'loss', 'bce'),
    ('vqvae:sharpen', 'quantizer.codebook_size', 64),
    ('vqvae:sharpen', 'dataset', 'ham10000/64'),
  ],
)
def test_what_the_run_that_is_trained_on_decides(config, field, value):
  start = '--config.start_from=RUN'
  config_files.load(config, [start])
  for overrides in ([start], [f'{start}2', '--config.seed=3']):
    with pytest.raises(errors.UserError, match=f'{field} has no effect, bec'):
      config_files.load(config, [*overrides, f'--config.{field}={value}'])


def test_a_number_of_epochs_alone_decides():
  epochs, steps = '--config.num_epochs=5', '--config.min_train_steps=70'
  for name in ('vqvae', 'prior', 'classifier'):
    assert config_files.load(name).min_train_steps >= 1000
    config = config_files.load(name, [epochs])
    assert (config.num_epochs, config.min_train_steps) == (5, 0)
    assert config_files.load(name, [epochs, steps]).min_train_steps == 70


@pytest.mark.parametrize(
  'text',
  [
    'this is no Python',
    'x = 1',
    'import a_module_that_is_missing',
    'def get_config(arg):\n  return undefined',
    'def get_config():\n  return None',
  ],
)
def test_own_file_that_does_not_work(tmp_path, text):
  file = tmp_path / 'mine.py'
  file.write_text(text)
  with pytest.raises(errors.UserError, match='mine.py') as e:
    config_files.load(str(file))
  assert '\n' not in str(e.value)


def test_own_file_that_is_a_folder(tmp_path):
  with pytest.raises(errors.UserError):
    config_files.load(str(tmp_path))


def test_conditions_that_no_config_names():
  config = config_files.load('prior:smoke', ['--config.conditions.site=0.3'])
  assert config.conditions.to_dict() == {'label': 0.1, 'site': 0.3}
  for override in ('conditions.site=x', 'conditions.a.b=1', 'conditions=0.5'):
    with pytest.raises(errors.UserError):
      config_files.load('prior:smoke', [f'--config.{override}'])
  with pytest.raises(errors.UserError, match='no field config.conditions'):
    config_files.load('vqvae:smoke', ['--config.conditions.site=0.3'])


def test_words_of_a_config():
  assert {'demo', 'smoke', 'rnn'} <= set(config_files.words('prior'))
  for word in config_files.words('classifier'):
    config_files.load(f'classifier:{word}')


def test_a_mistyped_word():
  with pytest.raises(errors.UserError, match='did you mean smoke[?]'):
    config_files.load('prior:smokey')


def test_fields_have_full_names():
  fields = config_files.fields(config_files.load('prior:smoke'))
  assert fields['optim.warmup_steps'] == 1 and 'optim' not in fields
