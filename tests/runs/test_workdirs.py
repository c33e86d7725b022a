import json
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from dermvq_jax import config_files, errors
from dermvq_jax.runs import workdirs

FACTS = {'dataset': 'toy/4', 'num_train': 9, 'grid': [4, 4], 'variance': 0.1}


def smoke(*overrides):
  return config_files.load('vqvae:smoke', overrides)


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'run' / 'vqvae'
  workdirs.save_config(folder, smoke(), FACTS)
  return folder


def test_places():
  home = pathlib.Path.home()
  assert workdirs.phase_dir('a', 'prior') == pathlib.Path('a/prior')
  assert workdirs.phase_dir('~/a', 'vqvae') == home / 'a' / 'vqvae'
  assert workdirs.data_dir('a') == pathlib.Path('a/data')
  assert workdirs.data_dir('~/a') == home / 'a' / 'data'
  assert workdirs.data_dir('a', '~/data') == home / 'data'
  assert str(workdirs.phase_dir('gs://bucket/a', 'prior')) == (
    'gs://bucket/a/prior'
  )


def test_config_comes_back(folder):
  config, facts = workdirs.load_config(folder)
  assert isinstance(config, ml_collections.ConfigDict)
  assert config.to_dict() == smoke().to_dict()
  assert facts == FACTS
  assert [p.name for p in folder.iterdir()] == ['config.json']


def test_nothing_started(tmp_path):
  assert not workdirs.exists(tmp_path / 'prior')
  with pytest.raises(
    errors.UserError, match='no run.*train --config=prior --workdir='
  ):
    workdirs.load_config(tmp_path / 'prior')


def test_workdir_that_is_a_file(tmp_path):
  file = tmp_path / 'file'
  file.write_text('')
  assert not workdirs.exists(file / 'vqvae')
  with pytest.raises(errors.UserError, match='no run'):
    workdirs.load_config(file / 'vqvae')


@pytest.mark.parametrize(
  'text',
  ['', '{"config": {"a"', '[]', '3', '{"model": 3}', '{"config": 3}', '\0\xff'],
)
def test_config_file_of_another_kind(folder, text):
  (folder / 'config.json').write_text(text)
  for use in (
    lambda: workdirs.load_config(folder),
    lambda: workdirs.save_config(folder, smoke(), FACTS),
  ):
    with pytest.raises(errors.UserError, match='config.json is damaged'):
      use()
  assert (folder / 'config.json').read_text() == text


def test_same_again(folder):
  workdirs.save_config(folder, smoke(), FACTS)
  # JSON has no tuples.
  workdirs.save_config(folder, smoke(), FACTS | {'grid': (4, 4)})


@pytest.mark.parametrize(
  ('override', 'field'),
  [
    ('seed=1', 'config.seed was 0, is 1'),
    ('quantizer.codebook_size=64', 'config.quantizer.codebook_size was 32'),
    ('dataset=x/64', 'config.dataset'),
    ('num_train_steps=11', 'config.num_train_steps'),
    ('num_epochs=3.0', 'config.num_epochs'),
  ],
)
def test_refuses_what_changes_the_result(folder, override, field):
  before = (folder / 'config.json').read_bytes()
  with pytest.raises(errors.UserError, match=field) as e:
    workdirs.save_config(folder, smoke(f'--config.{override}'), FACTS)
  assert '\n' not in str(e.value)
  assert (folder / 'config.json').read_bytes() == before


def test_names_every_field(folder):
  config = smoke('--config.seed=1', '--config.optim.b2=0.5')
  with pytest.raises(errors.UserError, match='optim.b2.*; config.seed'):
    workdirs.save_config(folder, config, FACTS)


def test_refuses_another_dataset(folder):
  with pytest.raises(errors.UserError, match='num_train 9, have 8; .*variance'):
    workdirs.save_config(
      folder, smoke(), FACTS | {'num_train': 8, 'variance': 0.2}
    )
  with pytest.raises(errors.UserError, match='had new None, have 1'):
    workdirs.save_config(folder, smoke(), FACTS | {'new': 1})


@pytest.mark.parametrize(
  'override',
  [
    'parallel=pmap',
    'num_workers=3',
    'data_dir=/elsewhere',
    'log_every_steps=1',
    'eval_every_steps=1',
    'checkpoint_every_steps=1',
  ],
)
def test_free_fields(folder, override):
  config = smoke(f'--config.{override}')
  workdirs.save_config(folder, config, FACTS)
  assert workdirs.load_config(folder)[0].to_dict() == config.to_dict()


def test_steps_may_grow_if_the_schedule_does_not_depend_on_them(tmp_path):
  constant = '--config.optim.schedule=constant'
  workdirs.save_config(tmp_path, smoke(constant), FACTS)
  workdirs.save_config(
    tmp_path, smoke(constant, '--config.num_train_steps=20'), FACTS
  )
  stored = json.loads((tmp_path / 'config.json').read_text())
  assert stored['config']['num_train_steps'] == 20


def test_switching_to_a_constant_schedule_is_refused(folder):
  config = smoke(
    '--config.optim.schedule=constant', '--config.num_train_steps=20'
  )
  with pytest.raises(errors.UserError, match='config.optim.schedule'):
    workdirs.save_config(folder, config, FACTS)


# Two trainings at once.

_HOLD = """
import sys, time
from dermvq_jax import workdirs
with workdirs.locked(sys.argv[1]):
  print('locked', flush=True)
  time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, '-c', _HOLD, tmp_path], stdout=subprocess.PIPE, text=True
  )
  try:
    assert holder.stdout.readline() == 'locked\n'
    refused = pytest.raises(errors.UserError, match='another dermvq train is')
    with refused, workdirs.locked(tmp_path):
      pass
  finally:
    holder.kill()
    holder.wait()
  for _ in range(2):
    with workdirs.locked(tmp_path):
      pass
  assert not list(tmp_path.iterdir())


def test_a_bucket_has_no_locks():
  with workdirs.locked('gs://bucket/run'):
    pass
