"""A decoder is trained on: codes and prior of the run stay what they are."""

import shutil

import jax
import numpy as np
import pytest

from dermvq_jax import config_files, errors, inference
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop


def _config(start, *overrides):
  return config_files.load(
    'vqvae:smoke+sharpen',
    [
      f'--config.start_from={start}',
      '--config.num_train_steps=3',
      *(f'--config.{o}' for o in overrides),
    ],
  )


@pytest.fixture(scope='module')
def sharpened(smoke_run, tmp_path_factory):
  run = run_lib.Run(tmp_path_factory.mktemp('sharpened') / 'run')
  loop.train(_config(smoke_run), run)
  return run


def test_the_decoder_alone_is_trained(smoke_run, sharpened):
  old = run_lib.Run(smoke_run)
  before, after = old.vqvae.weights, sharpened.vqvae.weights
  assert before['params'].keys() == after['params'].keys()
  for part, tree in before['params'].items():
    same = [
      np.array_equal(a, b)
      for a, b in zip(
        jax.tree.leaves(tree), jax.tree.leaves(after['params'][part])
      )
    ]
    assert not any(same) if part == 'decoder' else all(same)
  jax.tree.map(
    np.testing.assert_array_equal, before['model_state'], after['model_state']
  )
  assert sharpened.vqvae_digest == old.vqvae_digest
  assert sharpened.vqvae.config.quantizer == old.vqvae.config.quantizer


def test_the_prior_comes_along(smoke_run, sharpened):
  old, new = inference.load(smoke_run), inference.Model(sharpened)
  codes = old.sample_codes(['mel', 'nv'], seed=3)
  np.testing.assert_array_equal(new.sample_codes(['mel', 'nv'], seed=3), codes)
  assert np.any(new.decode(codes) != old.decode(codes))


def test_resumes_only_with_the_same_run(smoke_run, sharpened, tmp_path):
  loop.train(_config(smoke_run), sharpened)  # Nothing is left to do.
  other = tmp_path / 'other'
  shutil.copytree(smoke_run / 'vqvae', other / 'vqvae')
  with pytest.raises(errors.UserError, match=r'config\.start_from was'):
    loop.train(_config(other, f'data_dir={smoke_run}/data'), sharpened)


@pytest.mark.parametrize(
  ('start', 'message'),
  [
    ('', 'give --config.start_from=RUN'),
    ('nowhere', 'dermvq train --config=vqvae'),
  ],
)
def test_mistakes(start, message, tmp_path):
  config = config_files.load('vqvae:smoke+sharpen')
  if start:
    config.start_from = str(tmp_path / start)
  with pytest.raises(errors.UserError, match=message):
    loop.train(config, run_lib.Run(tmp_path / 'new'))
  assert not (tmp_path / 'new').exists()
