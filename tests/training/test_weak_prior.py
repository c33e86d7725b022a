"""The weak prior of autoguidance is the prior of an early step."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dermvq_jax
from dermvq_jax import config_files, errors
from dermvq_jax.models.priors import base
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop, pretrained, state, weak_prior


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
  assert weak.keys() == params.keys() and model.has_weak_prior
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


def test_earlier_runs_have_none(smoke_run):
  demo = dermvq_jax.load('demo')
  assert not demo.has_weak_prior
  with pytest.raises(errors.UserError, match='config.weak_share above 0') as e:
    demo.sample('mel', autoguidance_scale=2)
  assert '\n' not in str(e.value)
  demo.sample('mel')
  old = run_lib.Run(smoke_run).prior.config
  with old.unlocked():
    del old.weak_share
  fields = pretrained._fields_of_start(_config(0.4, 0), old)
  assert fields['weak_share'] == 0
