"""The package as a user installs it: a wheel, away from the clone."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run(*command, **kwargs):
  done = subprocess.run(
    [str(part) for part in command], capture_output=True, text=True, **kwargs
  )
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
  return done.stdout


@pytest.mark.slow
def test_demo_from_a_wheel(tmp_path):
  # Built from a copy, because setuptools leaves files in the source folder.
  source = tmp_path / 'source'
  ignored = shutil.ignore_patterns('__pycache__')
  for name in ('dermvq_jax', 'configs'):
    shutil.copytree(ROOT / name, source / name, ignore=ignored)
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  pip = [sys.executable, '-m', 'pip', '--quiet']
  run(*pip, 'wheel', '--no-deps', f'--wheel-dir={tmp_path}', source)
  shutil.rmtree(source)
  [wheel] = tmp_path.glob('*.whl')
  venv = tmp_path / 'venv'
  run(sys.executable, '-m', 'venv', '--without-pip', venv)
  python = venv / 'bin' / 'python'
  run(*pip, '--python', python, 'install', '--no-deps', wheel)
  # The dependencies of this environment. On PYTHONPATH its .pth files have no
  # effect; one of them would make the clone importable.
  env = {
    **os.environ,
    'PYTHONPATH': sysconfig.get_path('purelib'),
    'XLA_FLAGS': '',
  }
  where = 'import dermvq_jax.configs as c; print(c.__file__)'
  away = tmp_path / 'away'
  away.mkdir()
  assert run(python, '-c', where, cwd=away, env=env).startswith(str(venv))
  dermvq = venv / 'bin' / 'dermvq'
  out = run(dermvq, 'demo', '--size=smoke', cwd=away, env=env)
  assert 'Open runs/demo/report/index.html' in out
  assert (away / 'runs' / 'demo' / 'report' / 'index.html').exists()
