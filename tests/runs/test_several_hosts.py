"""Processes of several hosts: here two processes with two devices each."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from dermvq_jax import config_files, errors
from dermvq_jax.data import prepared
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
  return _command(
    *('train', '--config=vqvae:smoke'),
    f'--workdir={workdir}',
    f'--config.data_dir={smoke_run}/data',
    f'--config.num_train_steps={num_steps}',
    *_FIELDS,
    *flags,
  )


def _command(*argv):
  """Starts a command in a separate process, with two devices."""
  env = {**os.environ, 'XLA_FLAGS': _TWO_DEVICES}
  return subprocess.Popen(
    [sys.executable, '-m', 'dermvq_jax.main', *argv],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _hosts_flags():
  """The flags by which two processes find each other, for each of them."""
  port = _free_port()
  return [
    (
      f'--coordinator=localhost:{port}',
      '--num_processes=2',
      f'--process_id={i}',
    )
    for i in range(2)
  ]


def _start_two(workdir, smoke_run, num_steps, *flags):
  return [
    _start(workdir, smoke_run, num_steps, *mine, *flags)
    for mine in _hosts_flags()
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


def _contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def _codes(disk):
  """All records; the bytes of ArrayRecord differ each time."""
  [name] = [path.name for path in (disk / 'codes').iterdir()]
  dataset = prepared.Dataset(f'codes/{name}', disk)
  return name, {
    split: [
      {key: np.asarray(value).tolist() for key, value in record.items()}
      for record in dataset.split(split)
    ]
    for split in ('train', 'val', 'test')
  }


@pytest.mark.slow
@pytest.mark.parametrize('shared_disk', [True, False])
def test_two_hosts_encode_as_one(shared_disk, smoke_run, run_copy, tmp_path):
  """Each has all codes on its disk; on a disk that both share, once."""
  shutil.rmtree(run_copy / 'prior')
  disks = (
    [tmp_path / 'disk'] * 2 if shared_disk else [tmp_path / n for n in 'ab']
  )
  for disk in {*disks}:
    images = smoke_run / 'data' / 'synthetic_dermoscopy'
    shutil.copytree(images, disk / 'synthetic_dermoscopy')
  argv = ['encode', f'--workdir={run_copy}', '--copies=2']
  both = [
    _command(*argv, f'--data_dir={disk}', *mine)
    for disk, mine in zip(disks, _hosts_flags())
  ]
  first, second = _finish(both)
  assert 'Next: dermvq train' in first and 'Next' not in second
  one = tmp_path / 'one'
  shutil.copytree(
    disks[0] / 'synthetic_dermoscopy', one / 'synthetic_dermoscopy'
  )
  _finish([_command(*argv, f'--data_dir={one}')])
  expected = _codes(one)
  assert len(expected[1]['train']) > 100
  for disk in disks:
    assert _codes(disk) == expected


@pytest.mark.slow
def test_two_hosts_sample_as_one(smoke_run, tmp_path):
  """The same folder, also with what is chosen and replaced; and on a kill."""
  argv = ['sample', f'--workdir={smoke_run}', '--counts=mel=9,nv=3', '--seed=1']
  argv += ['--choose=2', '--reject_memorised=0.7', '--shards=4']
  two, one = tmp_path / 'two', tmp_path / 'one'
  both = [_command(*argv, f'--out={two}', *mine) for mine in _hosts_flags()]
  blocks = two.with_name('two.unfinished') / 'blocks'
  while not [*blocks.glob('*.json')] and not two.exists():
    assert both[0].poll() is None, both[0].communicate()[0]
  for process in both:
    process.kill()
    process.communicate()
  if two.exists():  # It was ready before the kill.
    shutil.rmtree(two)
  both = [_command(*argv, f'--out={two}', *mine) for mine in _hosts_flags()]
  first, second = _finish(both)
  assert 'Wrote' in first and 'Wrote' not in second
  _finish([_command(*argv, f'--out={one}')])
  expected = _contents(one)
  assert {'metadata.csv', 'samples.json', 'sheet.png'} < expected.keys()
  assert _contents(two) == expected


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
