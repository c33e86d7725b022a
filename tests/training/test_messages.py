"""Tests of what a training says."""

import ml_collections
import numpy as np
import pytest
from etils import epath

from dermvq_jax import config_files
from dermvq_jax.training import messages
from dermvq_jax.training import task as task_lib

_TASK = task_lib.Task(
  keys=(), best_metric='mse', shown=('psnr',), init=None, loss_fn=None
)
_ROWS = [
  {'step': 5, 'step/loss': 1.0},
  {'step': 250, 'val/mse': 0.0015, 'val/psnr': 28.2391},
  {'step': 1000, 'val/mse': 0.0006, 'val/psnr': 32.2185},
  {'step': 1250, 'val/mse': 0.0007, 'val/psnr': 31.5},
]


def test_plan():
  config = ml_collections.ConfigDict(
    {'task': 'vqvae', 'num_train_steps': 2500, 'batch_size': 16}
  )
  params = {'a': np.zeros((100, 20)), 'b': np.zeros(5)}
  for facts in ({'num_train': 4000}, {'num_train': 32000, 'copies': 8}):
    assert messages.plan(config, facts, params) == (
      'vqvae: 2,005 parameters, 2,500 steps of 16 images (10 times the 4,000 '
      'training images)'
    )


def test_evaluation():
  said = messages.evaluation(_TASK, 1000, _ROWS[2], best=0.0015)
  assert said == ('step 1,000: val/mse 0.0006, val/psnr 32.22, the best so far')
  assert 'best' not in messages.evaluation(_TASK, 1250, _ROWS[3], best=0.0006)


def test_outcome():
  said = messages.outcome(_TASK, epath.Path('RUN/vqvae'), _ROWS)
  assert said == (
    'Trained. RUN/vqvae/best has the weights of step 1,000: val/mse 0.0006, '
    'val/psnr 32.22'
  )


@pytest.mark.parametrize(
  ('steps', 'is_short'), [(150, True), (499, True), (500, False), (2500, False)]
)
def test_a_training_that_is_mostly_warm_up_is_told(steps, is_short):
  config = config_files.load('vqvae', [f'--config.num_train_steps={steps}'])
  said = messages.short_training(config)
  assert bool(said) == is_short
  if is_short:
    assert f'100 of only {steps} steps' in said and 'num_train_steps' in said


@pytest.mark.parametrize('name', ['vqvae', 'prior', 'classifier'])
def test_the_demo_is_long_enough(name):
  assert not messages.short_training(config_files.load(f'{name}:demo'))
