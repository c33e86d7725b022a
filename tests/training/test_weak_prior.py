"""The weak prior of autoguidance is the prior of an early step."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dermvq_jax
from dermvq_jax import config_files, errors
from dermvq_jax.models.priors import base, sampler
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop, state, weak_prior


def _config(share, decay):
  return config_files.load(
    'prior:smoke',
    [f'--config.weak_share={share}', f'--config.params_ema_decay={decay}'],
  )


@pytest.mark.parametrize('decay', [0.9, 0.2, 0.0])
def test_is_the_average_at_that_step(decay):
  """The average that the training itself has then."""
  weak = weak_prior.make(_config(0.4, decay))  # of 10 steps
  params = [{'w': x} for x in jnp.arange(11.0) ** 2]
  tx = optax.sgd(1.0)
  train = state.TrainState.create(params[0], {}, tx, ema=bool(decay))
  found = weak.init(params[0])
  for step in range(10):
    found = weak.update_state(params[step], found, (), None, step=step)
    if step < 4:
      grads = {'w': params[step]['w'] - params[step + 1]['w']}
      train = train.update(grads, {}, tx, decay)
  expected = train.ema_params if decay else train.params
  assert found.keys() == {base.WEAK}
  np.testing.assert_allclose(found[base.WEAK]['w'], expected['w'], rtol=1e-6)


def test_none_is_kept():
  weak = weak_prior.make(_config(0, 0.9))
  assert weak.init({'w': 1.0}) == {} == weak.update_state({}, {}, (), None)


def test_autoguidance_by_a_trained_run(smoke_run):
  model = dermvq_jax.load(smoke_run)
  weights = run_lib.Run(smoke_run).prior.weights
  weak, params = weights['model_state'][base.WEAK], weights['params']
  assert weak.keys() == params.keys()
  labels = ['mel'] * 8
  plain = model.sample_codes(labels)
  guided = model.sample_codes(labels, autoguidance_scale=3)
  assert (guided != plain).any()
  images = model.sample(labels, autoguidance_scale=3)
  np.testing.assert_array_equal(images, model.decode(guided))


def test_a_prior_that_is_trained_on_keeps_its_weak_prior(smoke_run, tmp_path):
  start = f'--config.start_from={smoke_run}'
  config = config_files.load('prior:smoke+align', [start])
  run = run_lib.Run(tmp_path / 'run')
  loop.train(config, run)
  before, after = (
    run_lib.Run(folder).prior.weights['model_state'][base.WEAK]
    for folder in (smoke_run, run.workdir)
  )
  np.testing.assert_equal(after, before)


def test_the_model_in_the_package_has_one():
  demo = dermvq_jax.load('demo')
  guided = demo.sample('mel', autoguidance_scale=2)
  assert (guided != demo.sample('mel')).any()


@pytest.mark.parametrize('steps', [1, 3])
def test_a_short_training_has_none_to_guide_by(smoke_run, tmp_path, steps):
  """Its weights can be read; those of step 3 of 10 are the weak ones."""
  run = run_lib.Run(tmp_path / 'run')
  shutil.copytree(smoke_run / 'vqvae', run.vqvae.folder)
  data = f'--config.data_dir={smoke_run}/data'
  config = config_files.load(
    'prior:smoke',
    [data, f'--config.num_train_steps={steps}', '--config.weak_share=0.99'],
  )
  loop.train(config, run)
  model = dermvq_jax.load(run.workdir)
  model.sample('mel')
  with pytest.raises(errors.UserError, match='its best step is later'):
    model.sample('mel', autoguidance_scale=2)


def test_a_run_of_before(smoke_run, tmp_path):
  """Nothing in its config.json says that there is no weak prior."""
  run = run_lib.Run(tmp_path / 'run')
  shutil.copytree(smoke_run / 'vqvae', run.vqvae.folder)
  overrides = [
    f'--config.data_dir={smoke_run}/data',
    '--config.num_train_steps=2',
    '--config.weak_share=0',
  ]
  config = config_files.load('prior:smoke', overrides)
  loop.train(config, run)
  file = run.prior.folder / 'config.json'
  stored = json.loads(file.read_text())
  del stored['config']['weak_share']
  file.write_text(json.dumps(stored))
  loop.train(config, run_lib.Run(run.workdir))
  model = dermvq_jax.load(run.workdir)
  model.sample('mel')
  with pytest.raises(errors.UserError, match='config.weak_share above 0') as e:
    model.sample('mel', autoguidance_scale=2)
  assert '\n' not in str(e.value)


def test_an_export_keeps_it(smoke_run, exported_run):
  images = dermvq_jax.load(smoke_run).sample('mel', 4, autoguidance_scale=3)
  exported = dermvq_jax.load(exported_run)
  np.testing.assert_array_equal(
    exported.sample('mel', 4, autoguidance_scale=3), images
  )


def test_no_class_and_autoguidance():
  with pytest.raises(errors.UserError, match='leave one out'):
    sampler.Controls(guidance_scale=0, autoguidance_scale=2)
