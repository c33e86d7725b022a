"""Overrides of configs: any field, any value."""

import shutil
import signal

import fuzzing
import hypothesis
import jax
import pytest
from hypothesis import strategies as st

from dermvq_jax import config_files, errors
from dermvq_jax.training import trainer

ACCEPTED = 75  # the exit code of a training that was stopped
_CONFIGS = (
  *(f'vqvae:smoke+{q}' for q in ('ema', 'vq', 'l2_norm', 'fsq', 'residual')),
  'vqvae:smoke+sharp',
  *(f'prior:smoke+{p}' for p in ('gated_pixelcnn', 'pixelcnn', 'rnn')),
  'prior:smoke+transformer',
  'classifier:smoke',
)
_NAMES = (
  *('float32', 'bfloat16', 'jit', 'pmap', 'cosine', 'constant', 'gelu', 'relu'),
  *('ema', 'vq', 'l2_norm', 'fsq', 'residual', 'latents', 'random', 'clean'),
  *('augmented', 'lstm', 'gru', 'rnn', 'pixelcnn', 'gated_pixelcnn', 'base'),
  *('cross_entropy', 'bce', 'mse', 'codes', 'vqvae', 'prior', 'classifier'),
  *('synthetic_dermoscopy/smoke', 'codes/x', 'true', 'false', 'run/data'),
)


def _fields(config, prefix=''):
  """The fields of a config, by names like 'optim.b2'."""
  for name, value in config.items():
    if hasattr(value, 'items'):
      yield from _fields(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


_NUM_LAYERS = ('num_residual_blocks', 'stage_blocks', 'num_layers')
_FIELDS = {c: dict(_fields(config_files.load(c))) for c in _CONFIGS}


@st.composite
def _overrides(draw):
  """A config's name, and some of its fields with values."""
  rng = draw(fuzzing.dice())
  config = rng.choice(_CONFIGS)
  words = []
  for _ in range(rng.randint(1, 3)):
    name = rng.choice(sorted(_FIELDS[config]))
    old = _FIELDS[config][name]
    kind = rng.random()
    if kind < 0.25:
      value = draw(fuzzing.words())
    elif isinstance(old, bool):
      value = rng.choice(('true', 'false'))
    elif isinstance(old, str):
      value = rng.choice(_NAMES)
    elif isinstance(old, float):
      value = str(rng.choice((0, 1, rng.random(), rng.uniform(0, 20))))
    else:
      value = rng.randrange(9)
      # Each layer takes time, which is no fault.
      if rng.random() < 0.5 and not name.endswith(_NUM_LAYERS):
        value *= 8
      value = str(value)
    if rng.random() < 0.03:
      name = rng.choice((f'{name}.x', f'{name}x', '', '.', 'optim'))
    equals = '=' if rng.random() < 0.97 else ''
    words.append(f'--config.{name}{equals}{value}')
  return config, words


@pytest.fixture
def places(smoke_run, tmp_path, monkeypatch):
  """A new workdir, and one whose prior and classifier are not trained yet."""
  places = tmp_path / 'new', tmp_path / 'run'
  shutil.copytree(smoke_run / 'vqvae', places[1] / 'vqvae')
  shutil.copytree(smoke_run / 'data', places[1] / 'data')

  def accept(self):
    """Derives the shapes of a step instead of training."""
    batch = next(self.train_batches(num_workers=0))
    jax.eval_shape(self.compile_train_step(), self.structure(), batch)
    self.learning_rates(1)
    raise errors.StoppedError(signal.SIGTERM)

  monkeypatch.setattr(trainer.Trainer, 'start', accept)
  monkeypatch.chdir(tmp_path)
  return places


@fuzzing.inputs(few=8, share=0.1)
@hypothesis.given(overrides=_overrides())
def test_overrides(tally, places, overrides):
  config, words = overrides
  new, run = places
  workdir = new if config.startswith('vqvae') else run
  before = fuzzing.files_in(workdir)
  argv = ['train', f'--config={config}', f'--workdir={workdir}']
  argv.append(f'--config.data_dir={run / "data"}')
  done = tally.command(*argv, *words, codes=(ACCEPTED,))
  if done.code == 2:
    assert fuzzing.files_in(workdir) == before
  for folder in (new, run / 'prior', run / 'classifier'):
    shutil.rmtree(folder, ignore_errors=True)
