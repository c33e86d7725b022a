import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.experimental.compilation_cache.compilation_cache
import pytest

import dermvq_jax
from dermvq_jax import errors
from dermvq_jax.training import compile_cache

_COUNT = """
import json, os, sys
from dermvq_jax.training import compile_cache
compile_cache.enable()
import jax
counts = {'hits': 0, 'misses': 0}
def count(event, **_):
  for name in counts:
    counts[name] += event == f'/jax/compilation_cache/cache_{name}'
jax.monitoring.register_event_listener(count)
"""
_SMALL = """
jax.jit(lambda x: x * 3 + 1)(1.0).block_until_ready()
print(json.dumps(counts))
"""
_TRAIN = """
from dermvq_jax import config_files
from dermvq_jax.runs import logs, run
from dermvq_jax.training import loop
logs.open_log = lambda *_: logs.NoLog()  # TensorFlow takes its time
config = config_files.load('vqvae:smoke', sys.argv[2:])
loop.train(config, run.Run(sys.argv[1]))
print(json.dumps(counts))
"""
_SETTINGS = (
  'JAX_COMPILATION_CACHE_DIR',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
)


def run(script, *args, env):
  done = subprocess.run(
    [sys.executable, '-c', script, *map(str, args)],
    capture_output=True,
    text=True,
    env=env,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture
def env(tmp_path):
  """The environment of a user who has set nothing."""
  kept = {k: v for k, v in os.environ.items() if k not in _SETTINGS}
  return kept | {'XDG_CACHE_HOME': str(tmp_path / 'caches')}


def test_a_second_process_compiles_nothing(env, tmp_path):
  first, _ = run(_COUNT + _SMALL, env=env)
  assert first['misses'] > 0
  folder = tmp_path / 'caches' / 'dermvq_jax' / 'xla'
  kept = sorted(folder.iterdir())
  assert kept
  second, warnings = run(_COUNT + _SMALL, env=env)
  # The same number of programs, all found; misses count what is written.
  assert second == {'hits': first['hits'] + first['misses'], 'misses': 0}
  assert sorted(folder.iterdir()) == kept
  assert not warnings


@pytest.mark.slow
def test_a_second_training_compiles_no_step(smoke_run, tmp_path):
  """The tests' own cache has what the shared run compiled."""
  folder = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])

  def steps():
    return sorted(p.name for p in folder.iterdir() if '_step-' in p.name)

  before = steps()
  assert {name.partition('-')[0] for name in before} >= {
    'jit_train_step',
    'jit_eval_step',
  }
  data = f'--config.data_dir={smoke_run}/data'
  counts, _ = run(_COUNT + _TRAIN, tmp_path / 'run', data, env=os.environ)
  assert counts['hits'] >= 2
  assert steps() == before


def test_no_place_to_write_is_no_mistake(env, tmp_path):
  (tmp_path / 'caches').write_text('a file, not a folder')
  counts, _ = run(_COUNT + _SMALL, env=env)
  assert counts == {'hits': 0, 'misses': 0}
  # An unknown home folder does not matter either.
  del env['XDG_CACHE_HOME']
  run(_COUNT + _SMALL, env=env | {'HOME': '/proc/nowhere'})


@pytest.mark.parametrize('named', ['mine', ''])
def test_the_users_own_setting_stands(env, tmp_path, named):
  value = str(tmp_path / named) if named else ''
  run(_COUNT + _SMALL, env=env | {'JAX_COMPILATION_CACHE_DIR': value})
  assert not (tmp_path / 'caches').exists()
  assert (tmp_path / 'mine').exists() == bool(named)


@pytest.mark.parametrize('which', ['dermvq_jax', 'dermvq_jax/xla'])
@pytest.mark.parametrize('mode', [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_is_not_used(
  tmp_path, monkeypatch, which, mode
):
  """Compiled programs are native code."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert used(monkeypatch) == str(tmp_path / 'dermvq_jax' / 'xla')
  assert (tmp_path / 'dermvq_jax' / 'xla').stat().st_mode & 0o777 == 0o700
  (tmp_path / which).chmod(mode)
  assert used(monkeypatch) is None


def test_a_folder_of_another_user_is_not_used(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(os, 'geteuid', lambda: os.getuid() + 1)
  assert used(monkeypatch) is None
  assert not (tmp_path / 'dermvq_jax' / 'xla').exists()


_LOAD = """
import json
import jax
jax.jit(lambda x: x + 1)(1.0).block_until_ready()
import dermvq_jax
assert jax.config.jax_compilation_cache_dir is None
try:
  dermvq_jax.load('nowhere')
except FileNotFoundError:
  pass
jax.jit(lambda x: x * 3 + 1)(1.0).block_until_ready()
print(json.dumps(jax.config.jax_compilation_cache_dir))
"""


def test_from_python_the_folder_is_the_same(env, tmp_path):
  """`load` turns it on, also if JAX has compiled something already."""
  folder = tmp_path / 'caches' / 'dermvq_jax' / 'xla'
  assert run(_LOAD, env=env)[0] == str(folder)
  assert list(folder.iterdir())


@pytest.mark.parametrize(
  ('configured', 'named', 'is_default'),
  [(None, None, True), ('mine', None, False), (None, '', False)],
)
def test_from_python_the_users_own_setting_stands(
  tmp_path, monkeypatch, configured, named, is_default
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.delenv(_SETTINGS[0], raising=False)
  if named is not None:
    monkeypatch.setenv(_SETTINGS[0], named)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', configured)
  try:
    with pytest.raises(errors.MissingError):
      dermvq_jax.load(tmp_path / 'nowhere')
    default = str(tmp_path / 'dermvq_jax' / 'xla')
    used = jax.config.jax_compilation_cache_dir
    assert used == (default if is_default else configured)
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


def used(monkeypatch):
  """The folder that `enable` chooses."""
  for name in _SETTINGS:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.delitem(sys.modules, 'jax', raising=False)
  compile_cache.enable()
  return os.environ.get(_SETTINGS[0])
