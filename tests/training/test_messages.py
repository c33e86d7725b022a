"""Tests of what a training says."""

import numpy as np
import pytest
from etils import epath

from dermvq_jax import config_files
from dermvq_jax.training import messages, trainer
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


_PARAMS = {'a': np.zeros((100, 20)), 'b': np.zeros(5)}


def _plan(facts, *overrides):
  given = config_files.load('vqvae:mse', overrides)
  return messages.plan(given, trainer.resolve(given, facts), facts, _PARAMS)


def test_plan():
  for facts in ({'num_train': 4000}, {'num_train': 32000, 'copies': 8}):
    assert _plan(facts, '--config.num_epochs=11') == (
      'vqvae: 2,005 parameters\n'
      'Plan: 2,750 steps of 16 images, 11 times the 4,000 training images. '
      'The learning rate warms up until step 100; validation every 250 steps.'
    )


def test_the_plan_says_why_a_training_is_so_long():
  assert _plan({'num_train': 240}).splitlines()[1:] == [
    'Plan: 2,500 steps of 16 images, 167 times the 240 training images. '
    'The learning rate warms up until step 100; validation every 135 steps.',
    'There are few images: 10 epochs would be fewer steps than '
    'config.min_train_steps=2500.',
  ]


def test_enough_images_are_not_called_few():
  """10 epochs are exactly `min_train_steps`."""
  assert len(_plan({'num_train': 4001}).splitlines()) == 2


def test_the_plan_says_that_a_warm_up_is_shorter():
  lines = _plan({'num_train': 240}, '--config.num_train_steps=150').splitlines()
  assert lines[1].startswith('Plan: 150 steps') and 'until step 15;' in lines[1]
  assert lines[2:] == [
    'A warm-up of 100 steps would be more than a tenth of the training, so it '
    'is shorter.'
  ]


@pytest.mark.parametrize(
  ('seconds', 'said'),
  [(0.45, 'about 26 min, plus'), (4.5, 'about 4 h 19 min, plus'), (0.01, '')],
)
def test_time_left(seconds, said):
  text = messages.time_left(50, 3500, seconds)
  assert said in text if said else text == ''


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
