"""experiments/tpu_vm.sh, against a stand-in for gcloud and its machines."""

import os
import pathlib
import re
import signal

import pytest
from stand_ins import AWKWARD, ROOT, wait_for


@pytest.fixture
def ready(cloud):
  """Returns a cloud after `setup`."""
  cloud.ok('setup')
  return cloud


# Creating and deleting machines.


@pytest.mark.parametrize(
  ('machine', 'runtime'),
  [
    ('v6e-8', 'v2-alpha-tpuv6e'),
    ('v5p-128', 'v2-alpha-tpuv5'),
    ('v5litepod-16', 'v2-alpha-tpuv5-lite'),
    ('v4-8', 'tpu-ubuntu2204-base'),
    ('v2-8', 'tpu-ubuntu2204-base'),
  ],
)
def test_create(cloud, machine, runtime):
  cloud.ok('create', f'--accelerator_type={machine}')
  assert cloud.gcloud == [
    [
      'queued-resources',
      'create',
      'mole',
      '--node-id=mole',
      f'--accelerator-type={machine}',
      f'--runtime-version={runtime}',
    ]
  ]


def test_create_with_everything(cloud):
  cloud.ok(
    'create',
    '--name=other',
    '--zone=europe-west4-a',
    '--project=my-project',
    '--accelerator-type=v6e-8',
    '--runtime-version=my own',
    '--spot',
    '--valid-until-duration=6h',
    '--',
    '--network=a b',
  )
  assert cloud.calls == [
    [
      *('gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'other'),
      '--node-id=other',
      '--accelerator-type=v6e-8',
      '--runtime-version=my own',
      '--spot',
      '--valid-until-duration=6h',
      '--network=a b',
      '--zone=europe-west4-a',
      '--project=my-project',
    ]
  ]


def test_settings_from_the_environment(cloud):
  cloud.env |= {
    'ACCELERATOR_TYPE': 'v6e-8',
    'RUNTIME_VERSION': 'r',
    'PROJECT_ID': 'p',
  }
  cloud.ok('create')
  (call,) = cloud.calls
  assert call[5] == 'mole'
  assert {
    '--accelerator-type=v6e-8',
    '--runtime-version=r',
    '--project=p',
    '--zone=us-east5-b',
  } < set(call)


def test_create_waits_until_the_machine_is_there(cloud):
  cloud.states = 'WAITING_FOR_RESOURCES PROVISIONING ACTIVE'
  printed = cloud.ok('create', '--accelerator_type=v6e-8', '--wait')
  assert printed.splitlines() == [
    'mole: WAITING_FOR_RESOURCES',
    'mole: PROVISIONING',
    'mole: ACTIVE',
  ]
  describe = 'queued-resources describe mole --format=value(state.state)'
  assert cloud.gcloud[1:] == [describe.split()] * 3
  assert cloud.calls.count(['sleep', '30']) == 2


def test_create_reports_a_failed_request(cloud):
  cloud.states = 'WAITING_FOR_RESOURCES FAILED'
  done = cloud.tpu_vm('create', '--accelerator_type=v6e-8', '--wait')
  assert done.returncode == 2
  assert done.stderr == (
    'tpu_vm.sh: error: mole is FAILED: delete it, and create it again\n'
  )


def test_delete_lets_gcloud_ask(cloud):
  call = ['queued-resources', 'delete', 'mole', '--force']
  cloud.ok('delete')
  assert cloud.gcloud == [call]
  cloud.ok('delete', '--yes')
  assert cloud.gcloud == [[*call, '--quiet']]


def test_status_of_a_suspended_machine_asks_no_worker(cloud):
  cloud.states = 'SUSPENDED'
  assert cloud.ok('status') == 'mole: SUSPENDED\n'
  assert [call[1] for call in cloud.gcloud] == ['describe']


# Installing and staging.


def test_setup_installs_the_clone_on_all_workers(cloud):
  (cloud.workers[1] / 'crontab').write_text('@daily mine\n')
  for _ in range(2):  # The second time is as after a change.
    printed = cloud.ok('setup')
  assert printed.startswith('worker0: dermvq')
  assert cloud.gcloud[0][:4] == [
    'tpu-vm',
    'scp',
    f'{cloud.folder}/.cache/dermvq/mole.tar.gz',
    'mole:dermvq.tar.gz',
  ]
  installs = [call for call in cloud.calls if call[:2] == ['uv', 'pip']]
  assert len(installs) == 4
  requirements, package = installs[:2]
  build = '--build-constraint=src/requirements/build.txt'
  assert build in requirements and build in package
  assert requirements[-2:] == [
    '--require-hashes',
    '--requirement=src/requirements/tpu.txt',
  ]
  assert package[-3:] == [
    '--no-deps',
    '--reinstall-package=dermvq_jax',
    './src',
  ]
  for worker in cloud.workers:
    source = worker / 'dermvq' / 'src'
    for name in (
      'setup.py',
      'README.md',
      'requirements/tpu.txt',
      'configs/vqvae.py',
      'dermvq_jax/data/pipeline.py',
      'experiments/keep_running.sh',
    ):
      assert (source / name).read_text() == (ROOT / name).read_text()
    assert not list(source.rglob('__pycache__'))
  before, line = (cloud.workers[1] / 'crontab').read_text().splitlines()
  assert before == '@daily mine'
  assert line.startswith('@reboot test -f dermvq/run.sh && tmux new-session')


def test_setup_brings_uv_with_its_digest(cloud):
  """A machine's image need not have it; nothing is piped into a shell."""
  (cloud.folder / 'bin' / 'uv').rename(cloud.folder / 'uv')
  cloud.add('python3', 'record python3 "$@"\ncp "$FAKE/uv" "$FAKE/bin"')
  # Without a uv of this machine.
  cloud.env['PATH'] = f'{cloud.folder}/bin:/usr/bin:/bin'
  cloud.ok('setup')
  [call] = [call for call in cloud.calls if call[0] == 'python3']
  assert call[1:4] == ['-m', 'pip', 'install']
  assert call[-2:] == [
    '--require-hashes',
    '--requirement=src/requirements/uv.txt',
  ]


def test_setup_installs_a_wheel(cloud):
  wheel = cloud.folder / 'dist here' / 'dermvq_jax-1-py3-none-any.whl'
  wheel.parent.mkdir()
  wheel.write_text('wheel')
  cloud.ok('setup', f'--wheel=dist here/{wheel.name}')
  calls = [call for call in cloud.calls if call[:2] == ['uv', 'pip']]
  assert calls[1][-1] == f'./src/{wheel.name}'
  source = cloud.workers[1] / 'dermvq/src'
  files = {str(p.relative_to(source)) for p in source.rglob('*.*')}
  locks = {f'requirements/{p.name}' for p in (ROOT / 'requirements').iterdir()}
  assert files == {wheel.name, 'experiments/keep_running.sh', *locks}


def test_setup_ships_all_files_that_setup_py_reads(ready):
  source = ready.workers[0] / 'dermvq' / 'src'
  text = (source / 'setup.py').read_text()
  for name in re.findall(r"_HERE / '([^']+)'", text):
    assert (source / name).exists(), name


def test_stage_from_a_bucket(ready):
  ready.ok('stage', '--from=gs://my bucket/data')
  (ssh, *copies) = ready.gcloud
  assert ssh[:4] == ['tpu-vm', 'ssh', 'mole', '--worker=all']
  assert (
    copies
    == [
      ['storage', 'rsync', '--recursive', 'gs://my bucket/data', 'dermvq/data']
    ]
    * 2
  )


def test_stage_from_this_machine(ready):
  record = ready.folder / 'my data' / 'a b' / '64' / 'record'
  record.parent.mkdir(parents=True)
  record.write_text('images')
  (ready.folder / 'my data' / 'c').mkdir()
  ready.ok('stage', '--from=my data')
  for worker in ready.workers:
    data = worker / 'dermvq' / 'data'
    assert (data / 'a b' / '64' / 'record').read_text() == 'images'
    assert (data / 'c').is_dir()


# Running.


def test_run_passes_on_every_word(ready):
  printed = ready.ok('run', '--', 'dermvq', 'train', '--a=b', *AWKWARD)
  assert printed == 'worker0: started\nworker1: started\n'
  for number in (0, 1):
    wait_for(lambda n=number: 'ended with exit code 0' in ready.log(n))
    wait_for(lambda n=number: not ready.is_on(n))
    assert ready.runs(number)[-1] == ['train', '--a=b', *AWKWARD]
    assert not (ready.workers[number] / 'dermvq/run.sh').exists()


def test_run_on_one_worker(ready):
  assert ready.ok('run', '--worker=1', 'dermvq', 'report') == (
    'worker1: started\n'
  )
  wait_for(lambda: not ready.is_on(1))
  assert ready.runs(1)[-1] == ['report']
  assert ready.runs(0) == [['--version']]  # From setup.


def test_run_restarts_until_it_succeeds(ready):
  ready.behave(
    'case $(tr -dc "\\1" <~/runs | wc -c) in\n'
    '  2) echo one; exit 75 ;; 3) kill -KILL $$ ;; 4) exit 0 ;;\nesac\n'
  )
  ready.ok('run', '--max_failures=3', 'dermvq', 'train')
  for number in (0, 1):
    wait_for(lambda n=number: not ready.is_on(n))
    assert ready.runs(number)[1:] == [['train']] * 3
    log = ready.log(number)
    assert log.count('one\n') == 1
    assert 'exit code 75; starts again in 5 s (1 of 3)' in log
    assert 'exit code 137; starts again in 10 s (2 of 3)' in log
  last = ready.log(0).splitlines()[-1]  # the machines end at different times
  assert ready.ok('logs', '--lines=1') == last + '\n'
  printed = ready.ok('logs', '--worker=all', '--lines=1')
  assert printed.count('ended with exit code 0') == 2
  printed = ready.ok('status').splitlines()
  assert printed[:2] == ['mole: ACTIVE', 'worker0: no run is on']
  assert 'ended with exit code 0' in printed[2]


def test_status_and_stop_of_a_run(ready):
  ready.behave(
    "trap 'echo saved; exit 75' TERM\necho up\n"
    'while :; do /bin/sleep 0.02; done\n'
  )
  ready.ok('run', 'dermvq', 'train')
  wait_for(lambda: 'up' in ready.log(0) and 'up' in ready.log(1))
  assert ready.ok('status').splitlines() == [
    'mole: ACTIVE',
    'worker0: a run is on',
    'up',
    'worker1: a run is on',
    'up',
  ]
  for command in (['run', 'dermvq', 'train'], ['setup']):
    done = ready.tpu_vm(*command)
    assert done.returncode == 1
    assert done.stderr.startswith('worker0: a run is on; ')
    assert done.stderr.count('\n') == 1
  assert ready.ok('stop') == 'worker0: stopped\nworker1: stopped\n'
  for number in (0, 1):
    assert not ready.is_on(number)
    assert not (ready.workers[number] / 'dermvq/run.sh').exists()
    assert len(ready.runs(number)) == 2  # `dermvq --version`, and this run.
    wait_for(lambda n=number: 'ended with exit code 75' in ready.log(n))
    assert ready.log(number).count('saved\n') == 1
  assert ready.ok('stop') == 'worker0: no run is on\nworker1: no run is on\n'


def test_a_run_that_does_not_stop_is_killed(ready):
  ready.behave(
    "trap '' TERM\necho $$ >~/number\nwhile :; do /bin/sleep 0.02; done\n"
  )
  ready.ok('run', '--worker=0', 'dermvq', 'train')
  number = ready.workers[0] / 'number'
  wait_for(lambda: number.exists() and number.read_text())
  printed = ready.ok('stop', '--grace=2')
  assert printed.startswith('worker0: killed after 2 s')
  assert ready.calls.count(['sleep', '1']) == 2
  # Otherwise a reboot would start it again.
  assert not (ready.workers[0] / 'dermvq/run.sh').exists()
  stat = pathlib.Path('/proc', number.read_text().strip(), 'stat')
  wait_for(lambda: not stat.exists() or ') Z ' in stat.read_text())


def test_a_rebooted_machine_resumes_its_run(ready):
  """The test does what cron does after a reboot during a run."""
  ready.behave('while ! test -e ~/free; do /bin/sleep 0.02; done\n')
  ready.ok('run', '--worker=0', 'dermvq', 'train', 'a b')
  worker = ready.workers[0]
  wait_for(lambda: len(ready.runs(0)) == 2)
  os.killpg(
    int((worker / 'dermvq/run.pid').read_text().split()[0]), signal.SIGKILL
  )
  wait_for(lambda: not ready.is_on(0))
  (worker / 'free').touch()
  (line,) = (worker / 'crontab').read_text().splitlines()
  command = line.removeprefix('@reboot ')
  done = ready.do('sh', '-c', f'cd && {command}', env={'HOME': str(worker)})
  assert done.returncode == 0, done.stderr
  wait_for(lambda: not ready.is_on(0))
  assert ready.runs(0)[1:] == [['train', 'a b']] * 2
  # The run has ended, so the next reboot starts nothing.
  assert not (worker / 'dermvq/run.sh').exists()


def test_run_before_setup(cloud):
  done = cloud.tpu_vm('run', 'dermvq', 'train')
  assert done.returncode == 1
  assert done.stderr == 'worker0: dermvq is not installed; run setup first\n'
