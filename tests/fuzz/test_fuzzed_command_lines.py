"""Command lines: known and unknown flags, with awkward values."""

import contextlib
import io
import re
import shutil
import signal

import fuzzing
import hypothesis
import jax
import pytest
from hypothesis import strategies as st
from PIL import Image

from dermvq_jax import demo, errors, inference, main
from dermvq_jax.evaluation import evaluate
from dermvq_jax.reporting import report
from dermvq_jax.training import trainer

# What a command answers here instead of working long: it accepts its flags.
ACCEPTED = 75
_COMMANDS = (
  *('prepare', 'train', 'encode', 'sample', 'reconstruct'),
  *('evaluate', 'report', 'check', 'demo'),
)
_PLACES = (
  *('run', 'new', 'new', 'new/deep', 'a b', 'é', '[x]', 'empty', 'text'),
  *('text/x', 'image.png', 'damaged', 'run/vqvae', 'run/data', 'missing.png'),
)
_USUAL = {'--workdir': 'run', '--out': 'new', '--data_dir': 'run/data'}
_LIKELY = {
  '--dataset': (
    *('synthetic_dermoscopy/smoke', 'image_folder/smoke', 'ham10000/smoke'),
    *('isic2018/64', 'dermamnist/28', 'codes/x', 'image_folder', 'builder/64'),
  ),
  '--config': (
    *('vqvae:smoke', 'prior:smoke', 'classifier:smoke', 'vqvae', 'prior:rnn'),
    *('vqvae:smoke+sharp', 'vqvae:smoke+smoke', 'common', 'run', 'text'),
  ),
  '--split': ('train', 'val', 'test'),
  '--counts': ('1', 'mel=1', 'mel=1,nv=0', '=1', 'mel=1,mel=2', 'mel=-1'),
  '--mask': ('left', 'center', 'border', 'image.png'),
  '--label': ('mel', 'nv', '0'),
  '--size': ('smoke',),
  '--num_samples': ('0', '10', '1'),
  '--copies': ('1', '2'),
}
_PATHS = {
  *('--workdir', '--out', '--data_dir', '--manual_dir', '--complete'),
  *('--inception', 'IMAGE'),
}


def _is_inside(text):
  """Whether a path stays in the current folder."""
  return not text.startswith(('/', '~')) and '..' not in text


def _flags(command):
  """The flags of a command, with whether they take a value."""
  out = io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
    main.main([command, '--help'])
  usage = out.getvalue().partition('\n\n')[0]
  found = dict(re.findall(r'(--\w+)( [A-Z{]?)?', usage))
  return sorted((name, bool(value)) for name, value in found.items())


@st.composite
def _command_lines(draw):
  rng = draw(fuzzing.dice())
  command = rng.choice(_COMMANDS)
  flags = [f for f in _flags(command) if f[0] != '--help']
  chosen = rng.choices(flags, k=rng.randrange(4))
  chosen += [
    (name, True)
    for name in ('--workdir', '--out', '--config', '--dataset')
    if (name, True) in flags and rng.random() < 0.9
  ]
  argv = [command if rng.random() < 0.95 else draw(fuzzing.words())]
  for name, has_value in chosen:
    is_odd = rng.random() < 0.1
    if not has_value and not is_odd:
      argv.append(name)
      continue
    if is_odd:
      value = draw(fuzzing.words().filter(_is_inside))
    elif name in _USUAL and rng.random() < 0.7:
      value = _USUAL[name]
    elif name in _PATHS:
      value = rng.choice(_PLACES)
    else:
      value = rng.choice(_LIKELY.get(name, ('0', '1', '0.5', '2')))
    argv += [f'{name}={value}'] if rng.random() < 0.5 else [name, value]
  if rng.random() < 0.05:
    argv.append(draw(fuzzing.words().filter(_is_inside)))
  if command == 'reconstruct' and rng.random() < 0.5:
    argv.append(rng.choice(_PLACES))
  return argv


@pytest.fixture
def sandbox(smoke_run, tmp_path, monkeypatch):
  """Fills the current folder anew; returns the function that does it."""
  folder = tmp_path / 'here'

  def fill():
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(smoke_run, folder / 'run')
    for name in ('empty', 'damaged/vqvae'):
      (folder / name).mkdir(parents=True)
    (folder / 'damaged' / 'vqvae' / 'config.json').write_text('{"config')
    (folder / 'text').write_text('no image')
    Image.new('RGB', (30, 20)).save(folder / 'image.png')
    monkeypatch.chdir(folder)
    return fuzzing.files_in(folder)

  def accept(*args, **kwargs):
    raise errors.StoppedError(signal.SIGTERM)

  # No network, and nothing that takes long. Flags were checked before.
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *args: None)
  for owner, name in (
    (demo, 'demo'),
    (report, 'report'),
    (evaluate, '_measure_codes'),
    (inference.Model, 'sample_codes'),
    (trainer.Trainer, 'start'),
  ):
    monkeypatch.setattr(owner, name, accept)
  return folder, fill


@fuzzing.inputs(few=20, share=0.15)
@hypothesis.given(argv=_command_lines())
def test_command_lines(tally, sandbox, argv):
  folder, fill = sandbox
  before = fuzzing.files_in(folder) or fill()
  done = tally.command(*argv, codes=(1, ACCEPTED))
  after = fuzzing.files_in(folder)
  if done.code == 2:
    assert after == before, done
  assert not [name for name in after if 'incomplete' in name], done
  if after != before:
    fill()
