"""Processes of several hosts: here two processes with two devices each."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from dermvq_jax import config_files, errors
from dermvq_jax.runs import hosts, logs
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop

_TWO_DEVICES = ' '.join(
  [
    '--xla_force_host_platform_device_count=2',
    '--xla_backend_optimization_level=0',  # as in conftest.py
  ]
)
_FIELDS = (
  '--config.optim.schedule=constant',
  '--config.eval_every_steps=2',
  '--config.log_every_steps=2',
  '--config.checkpoint_every_steps=1',
  '--config.model.num_residual_blocks=0',  # quick to compile
)


def _free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _start(workdir, smoke_run, num_steps, *flags):
  """Starts `dermvq train` in a separate process, with two devices."""
  env = {**os.environ, 'XLA_FLAGS': _TWO_DEVICES}
  return subprocess.Popen(
    [
      sys.executable,
      *('-m', 'dermvq_jax.main', 'train', '--config=vqvae:smoke'),
      f'--workdir={workdir}',
      f'--config.data_dir={smoke_run}/data',
      f'--config.num_train_steps={num_steps}',
      *_FIELDS,
      *flags,
    ],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _start_two(workdir, smoke_run, num_steps, *flags):
  port = _free_port()
  return [
    _start(
      workdir,
      smoke_run,
      num_steps,
      f'--coordinator=localhost:{port}',
      '--num_processes=2',
      f'--process_id={i}',
      *flags,
    )
    for i in range(2)
  ]


def _finish(processes):
  outputs = [p.communicate(timeout=300)[0] for p in processes]
  for process, output in zip(processes, outputs):
    assert process.returncode == 0, output
  return outputs


def _values(folder):
  """Rows of metrics, without what depends on the clock."""
  return [
    {k: v for k, v in row.items() if not k.endswith('steps_per_second')}
    for row in logs.read(folder)
  ]


@pytest.mark.parametrize(
  'kind', ['jit', pytest.param('pmap', marks=pytest.mark.slow)]
)
def test_two_hosts_train_as_one(kind, smoke_run, tmp_path):
  """The same numbers, written once; one host resumes from their checkpoint."""

  def train_here(name):
    config = config_files.load(
      'vqvae:smoke',
      [
        f'--config.data_dir={smoke_run}/data',
        '--config.num_train_steps=2',
        *_FIELDS,
      ],
    )
    loop.train(config, run_lib.Run(tmp_path / name))

  two = _start_two(tmp_path / 'two', smoke_run, 2, f'--config.parallel={kind}')
  first, second = _finish(two)
  assert ' parameters' in first and ' parameters' not in second
  assert 'Trained. ' in first and 'Trained. ' not in second
  train_here('one')
  rows, expected = (_values(tmp_path / n / 'vqvae') for n in ('two', 'one'))
  assert len(rows) == len(expected) == 2
  for row, right in zip(rows, expected):
    assert row == pytest.approx(right, rel=1e-4)
  assert rows[-1]['val/psnr'] > 0
  # The second step again, now by one host: a program that is compiled already.
  shutil.rmtree(tmp_path / 'two' / 'vqvae' / 'checkpoints' / '2')
  train_here('two')
  rows = _values(tmp_path / 'two' / 'vqvae')
  assert [row['step'] for row in rows] == [2, 2]
  for row, right in zip(rows, expected):
    assert row == pytest.approx(right, rel=1e-4)


@pytest.mark.slow
def test_hosts_that_differ_stop_before_the_first_step(smoke_run, tmp_path):
  address = f'--coordinator=localhost:{_free_port()}'
  two = [
    _start(
      tmp_path / 'two',
      smoke_run,
      2,
      address,
      '--num_processes=2',
      f'--process_id={i}',
      f'--config.seed={i}',
    )
    for i in range(2)
  ]
  for process in two:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert 'the hosts differ in their config;' in output
  assert not (tmp_path / 'two' / 'vqvae').exists()


@pytest.mark.slow
def test_a_killed_host_ends_the_run_and_it_resumes(smoke_run, tmp_path):
  steps = 5000
  two = _start_two(tmp_path / 'run', smoke_run, steps)
  checkpoints = tmp_path / 'run' / 'vqvae' / 'checkpoints'
  while not any(p.name.isdigit() for p in checkpoints.glob('*')):
    assert two[0].poll() is None, two[0].communicate()[0]
  two[1].send_signal(signal.SIGKILL)
  two[0].communicate(timeout=300)
  two[1].communicate()
  assert two[0].returncode not in (0, 2)
  reached = max(int(p.name) for p in checkpoints.glob('*') if p.name.isdigit())
  assert reached < steps
  _finish(_start_two(tmp_path / 'run', smoke_run, reached + 2))
  rows = logs.read(tmp_path / 'run' / 'vqvae')
  assert rows[-1]['step'] == reached + 2
  steps_logged = [row['step'] for row in rows if 'step/loss' in row]
  assert steps_logged == sorted(set(steps_logged))


@pytest.mark.slow
def test_sigterm_to_one_host_stops_both(smoke_run, tmp_path):
  two = _start_two(tmp_path / 'run', smoke_run, 5000)
  checkpoints = tmp_path / 'run' / 'vqvae' / 'checkpoints'
  while not any(p.name.isdigit() for p in checkpoints.glob('*')):
    assert two[0].poll() is None, two[0].communicate()[0]
  two[1].send_signal(signal.SIGTERM)
  outputs = [p.communicate(timeout=120)[0] for p in two]
  assert [p.returncode for p in two] == [75, 75], outputs


@pytest.mark.parametrize(
  ('arguments', 'text'),
  [
    (('host:1', None, None), '--num_processes'),
    (('', 2, 0), '--coordinator'),
    (('host:1', 2, 2), 'from 0 to 1'),
    (('host:1', 2, -1), 'from 0 to 1'),
  ],
)
def test_flags_that_do_not_fit(arguments, text):
  with pytest.raises(errors.UserError, match=text):
    hosts.initialize(*arguments)


def test_alone_without_flags():
  hosts.initialize()
  assert hosts.is_primary()
  hosts.wait_for_all('nothing to wait for')


def test_provenance_counts_all_devices(smoke_run):
  config = json.loads((smoke_run / 'vqvae' / 'config.json').read_text())
  assert config['made_by']['devices'].startswith('8 ')
