import json
import pathlib
import shutil
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from dermvq_jax import config_files, errors
from dermvq_jax.runs import checkpoints, shapes
from dermvq_jax.runs import run as run_lib
from dermvq_jax.runs.run import Run

FACTS = {'dataset': 'toy/4', 'num_train': 9, 'grid': [4, 4], 'variance': 0.1}


def smoke(*overrides):
  return config_files.load('vqvae:smoke', overrides)


def vqvae(workdir):
  """The phase as another process would find it."""
  return Run(workdir).vqvae


@pytest.fixture
def workdir(tmp_path):
  vqvae(tmp_path).start(smoke(), FACTS)
  return tmp_path


def test_places():
  home = pathlib.Path.home()
  assert Run('a').prior.folder == pathlib.Path('a/prior')
  assert Run('~/a').vqvae.folder == home / 'a' / 'vqvae'
  assert Run('a').data_dir() == pathlib.Path('a/data')
  assert Run('~/a').data_dir() == home / 'a' / 'data'
  assert Run('a').data_dir('~/data') == home / 'data'
  assert Run('a', '~/given').data_dir('~/data') == home / 'given'
  assert Run('a').report_dir == pathlib.Path('a/report')
  assert str(Run('gs://bucket/a').prior.folder) == 'gs://bucket/a/prior'


def test_the_model_that_comes_with_the_package(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(run_lib, '_DEMO_FOLDER', tmp_path / 'shipped')
  with pytest.raises(errors.UserError, match='without a demo model; train one'):
    run_lib.find('demo')
  (tmp_path / 'shipped').mkdir()
  assert run_lib.find('demo').workdir == tmp_path / 'shipped'
  assert run_lib.find('./demo').workdir == pathlib.Path('demo')
  (tmp_path / 'demo').mkdir()
  assert run_lib.find('demo').workdir == pathlib.Path('demo')
  assert run_lib.find('a').workdir == Run('a').workdir


def test_data_of_a_bucket_are_refused():
  with pytest.raises(errors.UserError, match='give a local folder'):
    Run('a', 'gs://bucket/data').data_dir()
  with pytest.raises(errors.UserError, match='give a local folder'):
    Run('a').data_dir('gs://bucket/data')


def test_config_comes_back(workdir):
  phase = vqvae(workdir)
  assert isinstance(phase.config, ml_collections.ConfigDict)
  assert phase.config.to_dict() == smoke().to_dict()
  assert phase.facts == FACTS
  assert [p.name for p in phase.folder.iterdir()] == ['config.json']


def test_a_phase_knows_what_it_was_started_with(tmp_path):
  phase = vqvae(tmp_path)
  phase.start(smoke(), FACTS)
  assert phase.facts == FACTS
  phase.start(smoke('--config.num_workers=3'), FACTS)
  assert phase.config.num_workers == 3


@pytest.mark.parametrize('name', ['vqvae', 'vqvae/config.json'])
def test_starting_writes_through_no_link(tmp_path, name):
  outside, link = tmp_path / 'outside', tmp_path / 'run' / name
  outside.mkdir()
  link.parent.mkdir(parents=True)
  link.symlink_to(outside)
  with pytest.raises(errors.UserError, match='is a link to .*outside'):
    vqvae(tmp_path / 'run').start(smoke(), FACTS)
  assert not list(outside.iterdir())


def test_weights_are_read_again_after_a_start(tmp_path, monkeypatch):
  """One object may train, use and train a phase again."""
  monkeypatch.setattr(shapes, 'of_weights', lambda *args: None)  # of a toy
  run, digests = Run(tmp_path), []
  for step in (1, 2):
    run.vqvae.start(smoke(), FACTS)
    params = {'encoder': {'kernel': np.full(3, step, np.float32)}}
    codebook = {'quantizer': {'codebook': np.zeros(3, np.float32)}}
    store = checkpoints.Checkpoints(run.vqvae.folder)
    store.save_best(
      step, {'params': params, 'model_state': {'codebook': codebook}}
    )
    store.close()
    kernel = run.vqvae.weights['params']['encoder']['kernel']
    np.testing.assert_array_equal(kernel, step)
    assert run.vqvae.weights is run.vqvae.weights
    digests.append(run.vqvae_digest)
  assert digests[0] != digests[1]


def test_a_prior_stays_with_the_codes_it_was_started_with(run_copy):
  config = config_files.load('prior:smoke')
  run = Run(run_copy)
  name = run.prior.facts['dataset']
  folder = run_copy / 'data' / name
  shutil.copytree(folder, folder.with_name(f'{folder.name}_x2'))
  assert run.dataset(config).name == name
  shutil.rmtree(folder)
  with pytest.raises(errors.UserError, match=f'{name} is not prepared.*encode'):
    run.dataset(config).check()
  shutil.rmtree(run.prior.folder)
  assert Run(run_copy).dataset(config).name == f'{name}_x2'


@pytest.mark.parametrize('place', ['class_names', 'conditions'])
def test_a_prior_of_other_classes_is_refused(run_copy, place):
  """Its samples would have wrong labels."""
  Run(run_copy).check_codes()
  file = run_copy / 'prior' / 'config.json'
  stored = json.loads(file.read_text())
  facts = stored['facts']
  names = facts[place] if place == 'class_names' else facts[place]['label']
  names[:2] = names[1::-1]
  file.write_text(json.dumps(stored))
  match = 'classes of the prior in .* are not those of the VQ-VAE'
  with pytest.raises(errors.UserError, match=match):
    Run(run_copy).check_codes()


def test_phases_are_those_that_were_started(workdir):
  assert [phase.name for phase in Run(workdir).phases] == ['vqvae']
  assert Run(workdir).phase('prior') is not None
  assert not Run(workdir).prior.started


def test_nothing_started(tmp_path):
  phase = Run(tmp_path).prior
  assert not phase.started and not phase.has_weights and not phase.weights_id
  with pytest.raises(
    errors.UserError, match='no run.*train --config=prior --workdir='
  ):
    _ = phase.config
  with pytest.raises(errors.UserError, match='no trained weights'):
    _ = phase.weights


def test_workdir_that_is_a_file(tmp_path):
  file = tmp_path / 'file'
  file.write_text('')
  assert not vqvae(file).started
  with pytest.raises(errors.UserError, match='no run'):
    _ = vqvae(file).config


def test_a_run_of_an_earlier_version_is_refused_in_one_line(workdir):
  path = workdir / 'vqvae' / 'config.json'
  stored = json.loads(path.read_text())
  del stored['format']
  stored['made_by']['versions']['dermvq_jax'] = '0.1.0'
  path.write_text(json.dumps(stored))
  for use in (
    lambda: vqvae(workdir).config,
    lambda: vqvae(workdir).start(smoke(), FACTS),
  ):
    with pytest.raises(errors.UserError, match='made by dermvq_jax 0.1.0') as e:
      use()
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  'text',
  ['', '{"config": {"a"', '[]', '3', '{"model": 3}', '{"config": 3}', '\0\xff'],
)
def test_config_file_of_another_kind(workdir, text):
  (workdir / 'vqvae' / 'config.json').write_text(text)
  for use in (
    lambda: vqvae(workdir).config,
    lambda: vqvae(workdir).start(smoke(), FACTS),
  ):
    with pytest.raises(errors.UserError, match='config.json is damaged'):
      use()
  assert (workdir / 'vqvae' / 'config.json').read_text() == text


def test_same_again(workdir):
  vqvae(workdir).start(smoke(), FACTS)
  # JSON has no tuples.
  vqvae(workdir).start(smoke(), FACTS | {'grid': (4, 4)})


@pytest.mark.parametrize(
  ('override', 'field'),
  [
    ('seed=1', 'config.seed was 0, now it is 1'),
    ('quantizer.codebook_size=64', 'config.quantizer.codebook_size was 32'),
    ('dataset=x/64', 'config.dataset'),
    ('num_train_steps=11', 'config.num_train_steps'),
    ('num_train_steps=0 --config.num_epochs=3.0', 'config.num_epochs was'),
  ],
)
def test_refuses_what_changes_the_result(workdir, override, field):
  before = (workdir / 'vqvae' / 'config.json').read_bytes()
  with pytest.raises(errors.UserError, match=field) as e:
    vqvae(workdir).start(smoke(*f'--config.{override}'.split()), FACTS)
  assert '\n' not in str(e.value)
  assert (workdir / 'vqvae' / 'config.json').read_bytes() == before


def test_names_every_field(workdir):
  config = smoke('--config.seed=1', '--config.optim.b2=0.5')
  with pytest.raises(errors.UserError, match='optim.b2.*; config.seed'):
    vqvae(workdir).start(config, FACTS)


def test_refuses_another_dataset(workdir):
  changed = 'num_train of the data was 9, now it is 8; .*variance'
  with pytest.raises(errors.UserError, match=changed):
    vqvae(workdir).start(smoke(), FACTS | {'num_train': 8, 'variance': 0.2})
  added = 'new of the data was None, now it is 1'
  with pytest.raises(errors.UserError, match=added):
    vqvae(workdir).start(smoke(), FACTS | {'new': 1})


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
def test_free_fields(workdir, override):
  config = smoke(f'--config.{override}')
  vqvae(workdir).start(config, FACTS)
  assert vqvae(workdir).config.to_dict() == config.to_dict()


def test_steps_may_grow_if_the_schedule_does_not_depend_on_them(tmp_path):
  constant = '--config.optim.schedule=constant'
  vqvae(tmp_path).start(smoke(constant), FACTS)
  vqvae(tmp_path).start(smoke(constant, '--config.num_train_steps=20'), FACTS)
  stored = json.loads((tmp_path / 'vqvae' / 'config.json').read_text())
  assert stored['config']['num_train_steps'] == 20


def test_steps_may_not_grow_if_any_schedule_depends_on_them(tmp_path):
  """A sub-tree of the parameters may have another optimizer."""

  def config(num_train_steps):
    made = smoke(
      '--config.optim.schedule=constant',
      f'--config.num_train_steps={num_train_steps}',
    )
    with made.unlocked():
      made.critic_optim = made.optim.to_dict() | {'schedule': 'cosine'}
    return made

  vqvae(tmp_path).start(config(10), FACTS)
  with pytest.raises(errors.UserError, match='num_train_steps was 10'):
    vqvae(tmp_path).start(config(20), FACTS)


def test_switching_to_a_constant_schedule_is_refused(workdir):
  config = smoke(
    '--config.optim.schedule=constant', '--config.num_train_steps=20'
  )
  with pytest.raises(errors.UserError, match='config.optim.schedule'):
    vqvae(workdir).start(config, FACTS)


# Two trainings at the same time.

_HOLD = """
import sys, time
from dermvq_jax.runs import run
with run.Run(sys.argv[1]).locked():
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
    with refused, Run(tmp_path).locked():
      pass
  finally:
    holder.kill()
    holder.wait()
  for _ in range(2):
    with Run(tmp_path).locked():
      pass
  assert not list(tmp_path.iterdir())


def test_a_bucket_has_no_locks():
  with Run('gs://bucket/run').locked():
    pass


def _edit(workdir, part, **values):
  path = workdir / 'vqvae' / 'config.json'
  stored = json.loads(path.read_text())
  for name, value in values.items():
    *parents, last = name.split('__')
    place = stored[part]
    for parent in parents:
      place = place[parent]
    place[last] = value
  path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
  ('part', 'values'),
  [
    ('config', {'task': 'os'}),
    ('config', {'data_dir': 5}),
    ('config', {'model__features': 'x'}),
    ('config', {'model__features': -1}),
    ('config', {'model__features': 10**30}),
    ('config', {'model__features': float('nan')}),
    ('config', {'model__num_residual_blocks': 200_000}),
    ('config', {'quantizer__codebook_size': 2**40}),
    ('facts', {'dataset': []}),
    ('facts', {'class_names': 7}),
    ('facts', {'class_names': [{}]}),
    ('facts', {'class_names': ['a', 'a']}),
    ('facts', {'image_size': '16'}),
    ('facts', {'image_size': 0}),
    ('facts', {'image_size': 10**5}),
    ('facts', {'image_size': 16}),  # Without train_variance.
    ('facts', {'grid': [4, 4, 4]}),
    ('facts', {'train_variance': float('nan')}),
    ('facts', {'num_train': -1}),
    ('facts', {'conditions': {'label': 3}}),
  ],
)
def test_values_that_cannot_be_are_refused(workdir, part, values):
  _edit(workdir, part, **values)
  match = 'vqvae/config.json is damaged, .*; restore it'
  with pytest.raises(errors.UserError, match=match) as e:
    _ = vqvae(workdir).facts
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  'values',
  [
    {'model': 'x'},
    {'quantizer': {}},
    {'model__downsampling': 3},
    {'model__activation': 'os.system'},
    {'model__nonsense': 1},
    {'quantizer__name': '__import__'},
    {'dtype': 'float8'},
  ],
)
def test_a_config_that_gives_no_model_is_refused(workdir, values):
  facts = {'class_names': ['a'], 'image_size': 16, 'train_variance': 0.1}
  _edit(workdir, 'facts', **facts)
  assert vqvae(workdir).shapes['params']
  _edit(workdir, 'config', **values)
  with pytest.raises(errors.UserError, match='config.json is damaged') as e:
    _ = vqvae(workdir).weights
  assert '\n' not in str(e.value) and str(e.value).count('is damaged') == 1


def test_what_only_the_training_needed_may_be_gone(workdir):
  facts = {'class_names': ['a'], 'image_size': 64, 'train_variance': 0.1}
  _edit(workdir, 'facts', **facts)
  gone = str(workdir / 'gone.npz')
  _edit(workdir, 'config', loss__lpips=1.0, perceptual_weights=gone)
  assert vqvae(workdir).shapes['params']


def test_a_config_nested_too_deep(workdir):
  text = '{"config": ' * 100_000 + '1' + '}' * 100_000
  (workdir / 'vqvae' / 'config.json').write_text(text)
  with pytest.raises(errors.UserError, match='config.json is damaged'):
    _ = vqvae(workdir).config
