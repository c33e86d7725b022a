"""Tests of the training loop, with both phases' tasks."""

import itertools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
import test_configs
import two_players

from dermvq_jax import config_files, errors, inference
from dermvq_jax.data import pipeline, prepared
from dermvq_jax.models import quantizers
from dermvq_jax.runs import logs
from dermvq_jax.runs import run as run_lib
from dermvq_jax.runs import steps as steps_lib
from dermvq_jax.training import loop, trainer

PHASES = ('vqvae', 'prior')
# `test_jit_and_pmap_agree` shows that testing the fast one is enough.
every_kind = pytest.mark.parametrize(
  'kind', ['jit', pytest.param('pmap', marks=pytest.mark.slow)]
)
IMAGES = 'synthetic_dermoscopy/smoke'


def new_workdir(first_run, tmp_path, phase):
  """A workdir where `phase` can start, and the option that finds the data."""
  workdir = tmp_path / 'run'
  workdir.mkdir()
  if phase != 'vqvae':
    shutil.copytree(first_run / 'vqvae', workdir / 'vqvae')
  return workdir, f'--config.data_dir={first_run.parent}/data'


def train_smoke(phase, workdir, *overrides):
  loop.train(
    config_files.load(f'{phase}:smoke', overrides), run_lib.Run(workdir)
  )


def spoil_batches(monkeypatch, after, spoil):
  """Changes the training batches after the first `after` ones."""
  real = pipeline.train_batches

  def batches(*args, **kwargs):
    for i, batch in enumerate(real(*args, **kwargs)):
      yield batch if i < after else spoil(batch)

  monkeypatch.setattr(pipeline, 'train_batches', batches)


def interrupt(monkeypatch, after):
  def stop(_):
    raise KeyboardInterrupt

  spoil_batches(monkeypatch, after, stop)


def steps_in(folder):
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def read_tree(folder, step=None):
  """All arrays of a checkpoint, as they are on disk."""
  step = max(steps_in(folder)) if step is None else step
  tree = steps_lib.read(folder / str(step))
  paths = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}


def rows_in(folder):
  rows = logs.read(folder)
  for row in rows:
    row.pop('step/steps_per_second', None)
  return rows


def assert_same_run(folder, expected):
  """Checkpoints, best weights and metrics are equal, bit for bit."""
  for name in ('checkpoints', 'best'):
    assert steps_in(folder / name) == steps_in(expected / name)
    a, b = read_tree(folder / name), read_tree(expected / name)
    assert a.keys() == b.keys() and len(a) > 10
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)
  assert rows_in(folder) == rows_in(expected)


# Resume.


@pytest.mark.parametrize('phase', PHASES)
def test_resumed_is_uninterrupted(phase, first_run, tmp_path, monkeypatch):
  workdir, data = new_workdir(first_run, tmp_path, phase)
  # Step 6 is in the middle of an epoch (14 steps), between log steps (5, 10)
  # and checkpoints (4, 8); best/ has the weights of step 5 by then.
  with monkeypatch.context() as patch:
    interrupt(patch, after=6)
    with pytest.raises(KeyboardInterrupt):
      train_smoke(phase, workdir, data)
  folder = workdir / phase
  assert steps_in(folder / 'checkpoints') == [4]
  assert steps_in(folder / 'best') == [5]
  assert rows_in(folder)[-1]['step'] == 5  # later than what is restored
  train_smoke(phase, workdir, data)
  assert_same_run(folder, first_run / phase)
  saved = read_tree(folder / 'checkpoints')
  parts = ['params', 'model_state', 'opt_state', 'epoch', 'window']
  parts += [] if phase == 'vqvae' else ['ema_params']
  for part in parts:
    assert any(f"['{part}']" in key for key in saved), part


def test_resumed_is_uninterrupted_with_two_players(
  first_run, tmp_path, monkeypatch
):
  """The discriminator is resumed too, but it is not in best/."""
  # It starts between the checkpoint and the interruption.
  overrides = (
    *two_players.OPTIONS,
    '--config.discriminator.start=0.5',
    '--config.discriminator.ramp_steps=2',
    f'--config.data_dir={first_run.parent}/data',
  )
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  train_smoke('vqvae', whole, *overrides)
  with monkeypatch.context() as patch:
    interrupt(patch, after=7)
    with pytest.raises(KeyboardInterrupt):
      train_smoke('vqvae', parts, *overrides)
  train_smoke('vqvae', parts, *overrides)
  assert_same_run(parts / 'vqvae', whole / 'vqvae')
  saved = read_tree(whole / 'vqvae' / 'checkpoints')
  best = read_tree(whole / 'vqvae' / 'best')
  assert any('discriminator' in key for key in saved)
  assert not any('discriminator' in key for key in best)
  # Steps 1 to 5 are those before it plays; step 5 is in the first rows.
  first, _, last, _ = rows_in(whole / 'vqvae')
  assert 'step/adversarial_loss' not in first
  assert np.isfinite(last['step/adversarial_loss'])
  assert first['step/grad_norm/discriminator'] == 0
  assert first['step/update_norm/discriminator'] == 0
  assert last['step/grad_norm/discriminator'] > 0
  rates = [last[f'step/learning_rate{name}'] for name in ('', '/discriminator')]
  assert rates[0] != rates[1] == pytest.approx(3e-4)
  model = inference.load(whole)
  image = np.zeros((1, 16, 16, 3), np.uint8)
  assert model.decode(model.encode(image)).shape == image.shape


def test_resumes_after_a_kill_in_the_middle_of_a_line(first_copy):
  """Nothing later than the checkpoint counts, not even half a row."""
  folder = first_copy / 'prior'
  expected = rows_in(folder)
  shutil.rmtree(folder / 'checkpoints' / '10')
  with (folder / 'metrics.jsonl').open('a') as f:
    f.write(json.dumps({'step': 12, 'val/nll': 0}) + '\n{"step": 15, "va')
  train_smoke('prior', first_copy)
  assert rows_in(folder) == expected
  assert steps_in(folder / 'checkpoints') == [8, 10]


def test_finished_run_says_so_and_does_nothing(
  smoke_run, first_copy, caplog, monkeypatch
):
  def files():
    every = [p for p in first_copy.rglob('*') if p.is_file()]
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in every}

  def never(*args):
    raise AssertionError

  monkeypatch.setattr(trainer.Trainer, 'compile_train_step', never)
  monkeypatch.setattr(trainer.Trainer, 'start', never)
  before = files()
  caplog.set_level('INFO')
  data = {'vqvae': [f'--config.data_dir={smoke_run}/data'], 'prior': []}
  for phase in PHASES:
    train_smoke(phase, first_copy, *data[phase])
    assert f'{first_copy}/{phase} is already trained' in caplog.text
  after = files()
  assert before.keys() == after.keys()
  assert all(before[p][0] == after[p][0] for p in before)


@pytest.mark.parametrize(
  ('phase', 'override', 'field'),
  [
    ('vqvae', 'seed=1', 'config.seed was 0, now it is 1'),
    ('vqvae', 'model.features=8', 'config.model.features was 16, now it is 8'),
    ('vqvae', 'augment.flips=False', 'config.augment.flips'),
    ('vqvae', 'num_train_steps=20', 'config.num_train_steps'),
    ('prior', 'optim.b2=0.9', 'config.optim.b2'),
    ('prior', 'batch_size=16', 'config.batch_size'),
    ('prior', 'num_train_steps=20', 'config.num_train_steps'),
  ],
)
def test_refuses_another_config(first_copy, phase, override, field):
  file = first_copy / phase / 'config.json'
  before = file.read_bytes()
  with pytest.raises(errors.UserError, match=field) as e:
    train_smoke(phase, first_copy, f'--config.{override}')
  assert '--workdir' in str(e.value)
  assert file.read_bytes() == before


def test_free_fields_may_change(first_copy, monkeypatch):
  monkeypatch.setattr(trainer.Trainer, 'compile_train_step', None)  # not used
  train_smoke(
    'vqvae',
    first_copy,
    '--config.parallel=pmap',
    '--config.num_workers=2',
    f'--config.data_dir={first_copy}/data',
    '--config.log_every_steps=1',
    '--config.eval_every_steps=3',
    '--config.checkpoint_every_steps=2',
  )


@pytest.mark.slow
def test_constant_schedule_goes_on_longer(first_run, tmp_path):
  workdir, data = new_workdir(first_run, tmp_path, 'prior')
  options = (
    data,
    '--config.optim.schedule=constant',
    '--config.prior.num_layers=1',  # Two programs are compiled.
    '--config.weak_share=0',  # It is a share of all steps.
  )
  train_smoke('prior', workdir, *options, '--config.num_train_steps=5')
  assert steps_in(workdir / 'prior' / 'checkpoints') == [4, 5]
  train_smoke('prior', workdir, *options, '--config.num_train_steps=7')
  steps = [row['step'] for row in rows_in(workdir / 'prior')]
  assert steps == [5, 5, 7, 7]
  assert steps_in(workdir / 'prior' / 'checkpoints') == [5, 7]


def test_patience(first_run, tmp_path, monkeypatch, caplog):
  """The value is best at step 3: a training ends so many validations later."""
  workdir, data = new_workdir(first_run, tmp_path, 'prior')
  folder = workdir / 'prior'
  real = trainer.Trainer.evaluate

  def evaluate(self, train_state):
    step = int(train_state.step)
    return real(self, train_state) | {'val/nll': 1.0 + abs(step - 3)}

  monkeypatch.setattr(trainer.Trainer, 'evaluate', evaluate)

  def train(patience, every=1):
    caplog.clear()
    options = (
      f'--config.patience={patience}',
      f'--config.eval_every_steps={every}',
    )
    train_smoke('prior', workdir, data, *options)
    assert steps_in(folder / 'best') == [3]
    return max(steps_in(folder / 'checkpoints')), rows_in(folder)[-1]['step']

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    interrupt(patch, after=4)  # The wait goes on after it.
    train(2)
  assert train(2) == (5, 5)
  told = 'The last 2 validations were not better, so the training ends after'
  assert f'{told} step 5 of 10.' in caplog.text
  assert f'{folder / "best"} has the weights of step 3' in caplog.text
  assert train(2) == (5, 5)
  assert 'is already trained' in caplog.text
  # It ends after a validation, also where these come at other steps now.
  assert train(1, every=4) == (8, 8)
  # At the last step there is nothing to say.
  assert train(7) == (10, 10)
  assert 'not better' not in caplog.text


# Mistakes and failures.


@every_kind
def test_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
  kind, first_run, tmp_path, monkeypatch
):
  """The step is named; no row and no weights come from it or after it."""
  workdir, data = new_workdir(first_run, tmp_path, 'prior')
  # There is no such code: its logit, and so the loss of step 7, is NaN.
  spoil_batches(
    monkeypatch, 6, lambda batch: batch | {'codes': batch['codes'] + 10**6}
  )
  with pytest.raises(errors.UserError, match='the loss .* at step 7;') as e:
    train_smoke('prior', workdir, data, f'--config.parallel={kind}')
  assert 'learning_rate' in str(e.value)
  folder = workdir / 'prior'
  assert f'step 4 in {folder}' in str(e.value)
  assert steps_in(folder / 'checkpoints') == [4]
  assert {row['step'] for row in rows_in(folder)} == {5}
  assert all(np.isfinite(x).all() for x in read_tree(folder / 'best').values())


@every_kind
def test_skipped_steps_are_counted(kind, first_run, tmp_path, monkeypatch):
  workdir, data = new_workdir(first_run, tmp_path, 'prior')
  numbers = itertools.count(7)  # of the step that a batch is for

  def spoil(batch):
    return batch | {'codes': batch['codes'] + 10**6 * (next(numbers) == 7)}

  spoil_batches(monkeypatch, 6, spoil)
  train_smoke(
    'prior',
    workdir,
    data,
    '--config.optim.skip_nonfinite=True',
    f'--config.parallel={kind}',
  )
  folder = workdir / 'prior'
  rows = rows_in(folder)
  skipped = [row.get('step/skipped_steps') for row in rows]
  assert skipped == [0, None, 1, None]
  assert [row.get('train/skipped_steps') for row in rows][3] == 1
  assert all(np.isfinite(list(row.values())).all() for row in rows)
  saved = read_tree(folder / 'checkpoints')
  assert saved["['tree']['state']['step']"] == 10
  assert saved["['tree']['state']['opt_state']['1']['0']['count']"] == 9
  assert all(np.isfinite(x).all() for x in saved.values())


def test_skipping_everything_ends(first_run, tmp_path, monkeypatch):
  workdir, data = new_workdir(first_run, tmp_path, 'prior')
  spoil_batches(
    monkeypatch, 5, lambda batch: batch | {'codes': batch['codes'] + 10**6}
  )
  with pytest.raises(errors.UserError, match='in all 5 steps up to step 10;'):
    train_smoke('prior', workdir, data, '--config.optim.skip_nonfinite=True')


# Stopping, damage, and a second training.


@pytest.mark.parametrize(
  'number',
  [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_stops(number, first_run, tmp_path, monkeypatch):
  workdir, data = new_workdir(first_run, tmp_path, 'prior')
  folder = workdir / 'prior'
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  handler = signal.getsignal(number)

  sent = []

  def stop(batch):
    if not sent:
      sent.append(number)
      os.kill(os.getpid(), number)
    return batch

  with monkeypatch.context() as patch:
    spoil_batches(patch, 6, stop)
    with pytest.raises(errors.StoppedError) as e:
      train_smoke('prior', workdir, data)
  assert e.value.signal == number
  assert signal.getsignal(number) == handler
  signal.signal(signal.SIGINT, before)
  assert steps_in(folder / 'checkpoints') == [4, 7]
  train_smoke('prior', workdir, data)
  assert_same_run(folder, first_run / 'prior')


def test_damaged_checkpoints(first_copy, first_run, caplog):
  """Last checkpoint and best weights are lost; the run ends the same."""
  folder = first_copy / 'prior'
  for broken in ('checkpoints/10', 'best/10'):
    (folder / broken / 'default' / 'manifest.ocdbt').write_bytes(b'')
  train_smoke('prior', first_copy)
  assert f'{folder}/checkpoints/10 is damaged' in caplog.text
  assert f'{folder}/best/10 are damaged' in caplog.text
  assert_same_run(folder, first_run / 'prior')


@pytest.mark.parametrize('phase', PHASES)
def test_best_weights_are_rebuilt_after_the_end(
  phase, first_copy, first_run, caplog
):
  folder = first_copy / phase
  shutil.rmtree(folder / 'best')
  train_smoke(phase, first_copy)
  assert f'rebuilt from {folder}/checkpoints/10' in caplog.text
  assert 'is already trained' in caplog.text
  assert_same_run(folder, first_run / phase)


def test_best_weights_that_are_lost_after_the_end(first_copy):
  folder = first_copy / 'vqvae'
  shutil.rmtree(folder / 'best')
  (folder / 'metrics.jsonl').write_text('')
  with pytest.raises(errors.UserError, match='vqvae/best are lost'):
    train_smoke('vqvae', first_copy)


def test_checkpoints_of_an_unknown_training_are_refused(first_copy):
  """A folder that is removed while its training ends can get one more."""
  (first_copy / 'prior' / 'config.json').unlink()
  before = sorted(first_copy.rglob('*'))
  with pytest.raises(
    errors.UserError, match=r'checkpoints but no config\.json'
  ):
    train_smoke('prior', first_copy)
  assert sorted(first_copy.rglob('*')) == before


def test_a_second_training_is_refused(first_copy):
  before = sorted(first_copy.rglob('*'))
  refused = pytest.raises(errors.UserError, match='another dermvq train is')
  with run_lib.Run(first_copy).locked(), refused:
    train_smoke('prior', first_copy)
  assert sorted(first_copy.rglob('*')) == before


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('batch_size=12', '12 is not divisible by the 8 devices'),
    ('batch_size=0', 'config.batch_size is 0'),
    ('batch_size=8000', '8000, but there are .*; give at most 4096'),
    ('log_every_steps=0', 'config.log_every_steps is 0'),
    ('checkpoint_every_steps=-1', 'config.checkpoint_every_steps is -1'),
    ('num_train_steps=-1', 'config.num_train_steps is -1'),
    ('eval_every_steps=-5', 'config.eval_every_steps is -5'),
    ('optim.learning_rate=nan', 'config.optim.learning_rate is nan; give'),
    ('seed=-1', 'config.seed is -1; give a whole number from 0 to 4294967295'),
    ('loss.mse=inf', 'config.loss are'),
    ('parallel=both', "'both'; it must be 'jit' or 'pmap'"),
    ('optim.schedule=linear', "'constant' or 'cosine'"),
    ('task=tokens', "'tokens'; it must be one of"),
    ('dtype=bf16', "'bf16'; it must be 'float32' or 'bfloat16'"),
    ('quantizer.name=none', "no quantizer named 'none'"),
    ('quantizer.name=../x', 'no quantizer named'),
    ('model.downsampling=3', 'power of 2'),
    ('model.downsampling=32', '16 px are not divisible'),
    ('dataset=ham10000/64', 'not prepared.*dermvq prepare'),
    ('dataset=synthetic_dermoscopy', 'form name/size'),
    ('dataset=codes', 'form name/size'),
    ('quantizer.codebook_size=0', 'config.quantizer.codebook_size is 0'),
    ('quantizer.codebook_init=x', "config.quantizer.codebook_init is 'x'"),
    ('quantizer.name=fsq', "'fsq' has no code_dim,.*--config=vqvae:fsq"),
    ('loss.mse=0.0', 'at least one above 0'),
    ('loss.l1=-1.0', 'config.loss are'),
    ('model.attention_heads=5', 'a divisor of config.model.features=16'),
    ('model.norm_groups=16', 'config.model.residual_features=8'),
    ('model.features=0', 'config.model.features is 0'),
    ('loss.lpips=1.0', '16 px are smaller than the 31 px'),
    ('augment.cutout_max_holes=0', 'config.augment.cutout_max_holes is 0'),
    ('data_dir=gs://bucket/data', 'gs:/.*give a local folder'),
    ('data_dir=/nowhere', 'not prepared in /nowhere'),
  ],
)
def test_mistakes_in_a_config_write_nothing(
  first_run, tmp_path, override, message
):
  workdir, data = new_workdir(first_run, tmp_path, 'vqvae')
  with pytest.raises(errors.UserError, match=message):
    train_smoke('vqvae', workdir, data, f'--config.{override}')
  assert not list(workdir.iterdir())


def test_dataset_of_the_other_phase(first_run, tmp_path):
  codes = run_lib.Run(first_run).prior.facts['dataset']
  config = config_files.load(
    'vqvae:smoke',
    [f'--config.dataset={codes}', f'--config.data_dir={first_run.parent}/data'],
  )
  with pytest.raises(errors.UserError, match='cannot train'):
    loop.train(config, run_lib.Run(tmp_path / 'run'))
  for dataset in (IMAGES, 'codes/0123456789abcdef'):
    with pytest.raises(
      errors.UserError, match=f'is not a dataset of codes.*{codes}'
    ):
      train_smoke('prior', first_run, f'--config.dataset={dataset}')
  with pytest.raises(errors.UserError, match="no prior named 'levels'"):
    train_smoke('prior', first_run, '--config.prior.name=levels')


def test_prior_before_the_vqvae_or_encode(first_run, tmp_path):
  with pytest.raises(errors.UserError, match='train --config=vqvae'):
    train_smoke('prior', tmp_path)
  shutil.copytree(first_run / 'vqvae', tmp_path / 'vqvae')
  with pytest.raises(errors.UserError, match='dermvq encode'):
    train_smoke('prior', tmp_path, f'--config.data_dir={tmp_path}/data')


def test_a_wrong_architecture_does_not_block_the_workdir(first_run, tmp_path):
  workdir, data = new_workdir(first_run, tmp_path, 'prior')
  before = sorted(workdir.rglob('*'))
  with pytest.raises(errors.UserError, match='kernel_size is 4; .* odd'):
    train_smoke('prior', workdir, data, '--config.prior.kernel_size=4')
  assert sorted(workdir.rglob('*')) == before


def test_data_dir_is_stored_so_that_any_folder_finds_it(
  first_run, tmp_path, monkeypatch
):
  monkeypatch.chdir(first_run.parent)
  train_smoke('vqvae', tmp_path, '--config.data_dir=data')
  config = run_lib.Run(tmp_path).vqvae.config
  assert config.data_dir == str(first_run.parent / 'data')


# jit and pmap.


@pytest.mark.parametrize(
  ('phase', 'first', 'second'),
  [
    ('vqvae', 'pmap', 'jit'),
    pytest.param('prior', 'jit', 'pmap', marks=pytest.mark.slow),
  ],
)
def test_checkpoints_interchange(
  phase, first, second, first_run, tmp_path, monkeypatch
):
  """Both phases train and evaluate under pmap, on 8 devices."""
  workdir, data = new_workdir(first_run, tmp_path, phase)
  with monkeypatch.context() as patch:
    interrupt(patch, after=6)
    with pytest.raises(KeyboardInterrupt):
      train_smoke(phase, workdir, data, f'--config.parallel={first}')
  train_smoke(phase, workdir, data, f'--config.parallel={second}')
  rows, expected = rows_in(workdir / phase), rows_in(first_run / phase)
  assert [row.keys() for row in rows] == [row.keys() for row in expected]
  # The noise differs between the two; in so few steps it changes little.
  metric = {'vqvae': 'val/nmse', 'prior': 'val/nll'}[phase]
  assert rows[-1][metric] == pytest.approx(expected[-1][metric], rel=0.05)


def test_validation_counts_every_example_once(first_run):
  """13 images in batches of 8."""
  phase = run_lib.Run(first_run).vqvae
  config, facts = phase.config, phase.facts
  assert facts['num_val'] % config.batch_size
  [step] = steps_in(first_run / 'vqvae' / 'best')
  [row] = [
    row
    for row in rows_in(first_run / 'vqvae')
    if row['step'] == step and 'val/mse' in row
  ]
  model = inference.load(first_run)
  source = prepared.Dataset(IMAGES, first_run.parent / 'data').split('val')
  images = np.stack([source[i]['image'] for i in range(len(source))])
  assert len(images) == facts['num_val']
  counts = np.bincount(model.encode(images).ravel(), minlength=32)
  p = counts[counts > 0] / counts.sum()
  assert row['val/perplexity'] == pytest.approx(
    np.exp(-np.sum(p * np.log(p))), rel=1e-4
  )
  assert row['val/codebook_usage'] == pytest.approx((counts > 0).mean())
  mse = np.mean((model.reconstruct(images) / 255 - images / 255) ** 2)
  assert row['val/mse'] == pytest.approx(mse, rel=2e-3)  # rounded to uint8
  assert row['val/nmse'] == pytest.approx(
    mse / facts['train_variance'], rel=2e-3
  )


# Every shipped config.


def shrink(config):
  """A config made as small as smoke, but otherwise unchanged."""
  config.num_train_steps = 1
  config.batch_size = 8
  config.num_workers = 0
  config.optim.warmup_steps = 0
  if config.task == 'vqvae':
    config.dataset = IMAGES
    config.model.features = 16
    config.model.residual_features = 8
    config.loss.lpips = 0.0  # The images are too small.
    config.discriminator.features = 8
    config.quantizer.codebook_size = 32
  elif config.task == 'classifier':
    config.classifier = {'features': 16, 'num_stages': 2}
  else:
    small = {'num_layers': 2, 'features': 8, 'head_features': 8}
    config.prior.update({k: small[k] for k in small if k in config.prior})
  return config


def every_config():
  """All shipped configs; the small ones are fast enough."""
  for name, argument in test_configs.GOLDEN:
    if argument == 'align':
      continue  # tests/training/test_alignment.py trains it.
    if name == 'vqvae' and quantizers.QUANTIZERS.keys() & argument.split('+'):
      continue  # tests/test_every_quantizer.py trains them.
    fast = argument == 'smoke'
    yield pytest.param(
      f'{name}:{argument}' if argument else name,
      marks=() if fast else pytest.mark.slow,
    )


@pytest.mark.parametrize('name', every_config())
def test_every_config_trains_and_evaluates(
  name, smoke_run, first_run, tmp_path
):
  phase, _, argument = name.partition(':')
  if argument == 'smoke':
    run = smoke_run if phase == 'classifier' else first_run
    folder, end = run / phase, 10
  else:
    workdir, _ = new_workdir(first_run, tmp_path, phase)
    config = shrink(config_files.load(name))
    config.data_dir = f'{first_run.parent}/data'
    loop.train(config, run_lib.Run(workdir))
    folder, end = workdir / phase, 1
  rows = rows_in(folder)[-2:]
  assert [row['step'] for row in rows] == [end, end]
  assert np.isfinite(rows[0]['step/loss'])
  best = {'vqvae': 'mse', 'prior': 'nll', 'classifier': 'balanced_nll'}[phase]
  assert np.isfinite(rows[1][f'val/{best}'])
  assert len(steps_in(folder / 'best')) == 1
  assert steps_in(folder / 'checkpoints')[-1] == end
