"""experiments/tpu_vm.sh against a stand-in for gcloud and its machines."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sysconfig
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_TPU_VM = _ROOT / 'experiments' / 'tpu_vm.sh'
_KEEP_RUNNING = _ROOT / 'experiments' / 'keep_running.sh'
_COMMANDS = (
  'create',
  'setup',
  'stage',
  'run',
  'logs',
  'status',
  'stop',
  'delete',
)
_SHELLCHECK = shutil.which(
  'shellcheck', path=f'{sysconfig.get_path("scripts")}:{os.environ["PATH"]}'
)
# What a shell could take apart, or take for something else.
_AWKWARD = ['a b', "it's", '"q"', '$HOME', '*', 'x;', 'k=v w', '', 'l\nm', '\\']

# Programs that the scripts call. Calls are kept as words that end in \0, after
# the program's name, and end in \1. `ssh` and `scp` reach two workers, which
# are folders.
_STAND_INS = {
  'gcloud': r"""
record gcloud "$@"
[[ $1 == compute ]] || exit 0
case $4 in
  describe) head -n 1 "$FAKE/states"; sed -i '1{$!d}' "$FAKE/states" ;;
  ssh | scp)
    for number in 0 1; do
      [[ " $* " == *" --worker=all "* || " $* " == *" --worker=$number "* ]] ||
        continue
      (
        if [[ $4 == scp ]]; then
          copied=()
          for word in "${@:5}"; do
            case $word in
              --*) ;;
              *:*) target=$FAKE/worker$number/${word#*:} ;;
              *) copied+=("$word") ;;
            esac
          done
          cp -r "${copied[@]}" "$target"
        else
          for word in "$@"; do
            [[ $word != --command=* ]] || script=${word#--command=}
          done
          export HOME=$FAKE/worker$number
          cd
          bash -c "$script"
        fi
      ) || exit
    done
    ;;
esac
""",
  # One session a worker; it is on while its file is there.
  'tmux': r"""
session=$HOME/session
case $1 in
  has-session) test -e "$session" ;;
  new-session)
    [[ $* == "new-session -d -s dermvq "* ]] || exit 1
    touch "$session"
    (setsid bash -c "$5"; rm "$session") </dev/null >/dev/null 2>&1 &
    ;;
esac
""",
  'uv': r"""
record uv "$@"
[[ $1 == venv ]] || exit 0
mkdir -p venv/bin
cat >venv/bin/dermvq <<'END'
#!/usr/bin/env bash
{ printf '%s\0' "$@"; printf '\1'; } >>~/runs
! test -e ~/behaviour || . ~/behaviour
END
chmod +x venv/bin/dermvq
""",
  'crontab': r"""
case $1 in
  -l) cat "$HOME/crontab" ;;
  -) cat >"$HOME/new"; mv "$HOME/new" "$HOME/crontab" ;;
esac
""",
  'sleep': 'record sleep "$@"; exec /bin/sleep 0.02',
  'hostname': 'basename "$HOME"',
  'sudo': 'echo sudo was called >&2; exit 1',
  'curl': 'echo curl was called >&2; exit 1',
}
_HEAD = """#!/usr/bin/env bash
record() {
  { printf '%s\\0' "$@"; printf '\\1'; } >>"$FAKE/calls"
}
"""


def _words(path):
  """What `record` and the stand-in dermvq wrote, as lists of words."""
  if not path.exists():
    return []
  text = path.read_bytes().decode()
  return [call.split('\0')[:-1] for call in text.split('\1')[:-1]]


def _wait_for(condition, seconds=10.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'waited too long'
    time.sleep(0.02)


class _Cloud:
  """A folder with the stand-ins, their records, and two workers."""

  def __init__(self, folder):
    self.folder = folder
    self.workers = [folder / 'worker0', folder / 'worker1']
    for path in (*self.workers, folder / 'bin'):
      path.mkdir()
    for name, text in _STAND_INS.items():
      path = folder / 'bin' / name
      path.write_text(_HEAD + text)
      path.chmod(0o755)
    self.states = 'ACTIVE'
    self.env = {
      'PATH': f'{folder}/bin:{os.environ["PATH"]}',
      'FAKE': str(folder),
      'HOME': str(folder),
      'TPU_NAME': 'mole',
      'ZONE': 'us-east5-b',
    }

  def do(self, *args, **kwargs):
    """Runs a program to its end; `self.calls` has what it called."""
    (self.folder / 'calls').unlink(missing_ok=True)
    (self.folder / 'states').write_text(self.states.replace(' ', '\n') + '\n')
    return subprocess.run(
      [str(a) for a in args],
      capture_output=True,
      text=True,
      env=self.env | kwargs.pop('env', {}),
      cwd=self.folder,
      timeout=30,
      **kwargs,
    )

  def tpu_vm(self, *args, **kwargs):
    return self.do(_TPU_VM, *args, **kwargs)

  def ok(self, *args):
    done = self.tpu_vm(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout

  @property
  def calls(self):
    return _words(self.folder / 'calls')

  @property
  def gcloud(self):
    """Calls of gcloud, less what is the same in all."""
    calls = [call[1:] for call in self.calls if call[0] == 'gcloud']
    for call in calls:
      if call[0] == 'compute':
        assert call[:2] == ['compute', 'tpus']
        assert call.pop() == '--zone=us-east5-b'
    return [call[2:] if call[0] == 'compute' else call for call in calls]

  def runs(self, worker=0):
    return _words(self.workers[worker] / 'runs')

  def is_on(self, worker=0):
    return (self.workers[worker] / 'session').exists()

  def log(self, worker=0):
    path = self.workers[worker] / 'dermvq/logs/dermvq.log'
    return path.read_text() if path.exists() else ''

  def behave(self, text):
    for worker in self.workers:
      (worker / 'behaviour').write_text(text)


@pytest.fixture
def cloud(tmp_path):
  cloud = _Cloud(tmp_path)
  yield cloud
  for worker in cloud.workers:
    if (worker / 'session').exists():
      group = (worker / 'dermvq/run.pid').read_text().split()[0]
      os.killpg(os.getpgid(int(group)), signal.SIGKILL)


@pytest.fixture
def ready(cloud):
  """After `setup`."""
  cloud.ok('setup')
  return cloud


# Creating, looking, deleting.


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


def test_create_tells_that_there_will_be_no_machine(cloud):
  cloud.states = 'WAITING_FOR_RESOURCES FAILED'
  done = cloud.tpu_vm('create', '--accelerator_type=v6e-8', '--wait')
  assert done.returncode == 2
  assert done.stderr == (
    'tpu_vm.sh: error: mole is FAILED: delete it, and create it again\n'
  )


def test_delete_leaves_the_question_to_gcloud(cloud):
  call = ['queued-resources', 'delete', 'mole', '--force']
  cloud.ok('delete')
  assert cloud.gcloud == [call]
  cloud.ok('delete', '--yes')
  assert cloud.gcloud == [[*call, '--quiet']]


def test_status_asks_no_worker_of_a_machine_that_is_not_there(cloud):
  cloud.states = 'SUSPENDED'
  assert cloud.ok('status') == 'mole: SUSPENDED\n'
  assert [call[1] for call in cloud.gcloud] == ['describe']


# Installing and staging.


def test_setup_installs_the_clone_on_all_workers(cloud):
  (cloud.workers[1] / 'crontab').write_text('@daily mine\n')
  for _ in range(2):  # Again, as after a change.
    printed = cloud.ok('setup')
  assert printed.startswith('worker0: dermvq')
  assert cloud.gcloud[0][:4] == [
    'tpu-vm',
    'scp',
    f'{cloud.folder}/.cache/dermvq/mole.tar.gz',
    'mole:dermvq.tar.gz',
  ]
  installs = [call for call in cloud.calls if call[:2] == ['uv', 'pip']]
  assert len(installs) == 2
  assert installs[0][-3:] == [
    '--constraint=src/constraints.txt',
    '--reinstall-package=dermvq_jax',
    './src[tpu]',
  ]
  for worker in cloud.workers:
    source = worker / 'dermvq' / 'src'
    for name in (
      'setup.py',
      'README.md',
      'constraints.txt',
      'configs/vqvae.py',
      'dermvq_jax/data/pipeline.py',
      'experiments/keep_running.sh',
    ):
      assert (source / name).read_text() == (_ROOT / name).read_text()
    assert not list(source.rglob('__pycache__'))
  before, line = (cloud.workers[1] / 'crontab').read_text().splitlines()
  assert before == '@daily mine'
  assert line.startswith('@reboot test -f dermvq/run.sh && tmux new-session')


def test_setup_installs_a_wheel(cloud):
  wheel = cloud.folder / 'dist here' / 'dermvq_jax-1-py3-none-any.whl'
  wheel.parent.mkdir()
  wheel.write_text('wheel')
  cloud.ok('setup', f'--wheel=dist here/{wheel.name}')
  (install, _) = [call for call in cloud.calls if call[:2] == ['uv', 'pip']]
  assert install[-1] == f'./src/{wheel.name}[tpu]'
  source = cloud.workers[1] / 'dermvq/src'
  files = {str(p.relative_to(source)) for p in source.rglob('*.*')}
  assert files == {
    wheel.name,
    'constraints.txt',
    'experiments/keep_running.sh',
  }


def test_what_setup_ships_is_what_setup_py_needs(ready):
  """The README is read by setup.py, say."""
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


def test_run_hands_every_word_on(ready):
  printed = ready.ok('run', '--', 'dermvq', 'train', '--a=b', *_AWKWARD)
  assert printed == 'worker0: started\nworker1: started\n'
  for number in (0, 1):
    _wait_for(lambda n=number: 'ended with exit code 0' in ready.log(n))
    _wait_for(lambda n=number: not ready.is_on(n))
    assert ready.runs(number)[-1] == ['train', '--a=b', *_AWKWARD]
    assert not (ready.workers[number] / 'dermvq/run.sh').exists()


def test_run_on_one_worker(ready):
  assert ready.ok('run', '--worker=1', 'dermvq', 'report') == (
    'worker1: started\n'
  )
  _wait_for(lambda: not ready.is_on(1))
  assert ready.runs(1)[-1] == ['report']
  assert ready.runs(0) == [['--version']]  # by setup


def test_run_starts_again_until_it_is_done(ready):
  ready.behave(
    'case $(tr -dc "\\1" <~/runs | wc -c) in\n'
    '  2) echo one; exit 75 ;; 3) kill -KILL $$ ;; 4) exit 0 ;;\nesac\n'
  )
  ready.ok('run', '--max_failures=3', 'dermvq', 'train')
  for number in (0, 1):
    _wait_for(lambda n=number: not ready.is_on(n))
    assert ready.runs(number)[1:] == [['train']] * 3
    log = ready.log(number)
    assert log.count('one\n') == 1
    assert 'exit code 75; starts again in 5 s (1 of 3)' in log
    assert 'exit code 137; starts again in 10 s (2 of 3)' in log
  assert ready.ok('logs', '--lines=1') == log.splitlines()[-1] + '\n'
  printed = ready.ok('logs', '--worker=all', '--lines=1')
  assert printed.count('ended with exit code 0') == 2
  printed = ready.ok('status').splitlines()
  assert printed[:2] == ['mole: ACTIVE', 'worker0: no run is on']
  assert 'ended with exit code 0' in printed[2]


def test_a_run_is_seen_and_stopped(ready):
  ready.behave(
    "trap 'echo saved; exit 75' TERM\necho up\n"
    'while :; do /bin/sleep 0.02; done\n'
  )
  ready.ok('run', 'dermvq', 'train')
  _wait_for(lambda: 'up' in ready.log(0) and 'up' in ready.log(1))
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
    assert len(ready.runs(number)) == 2  # `dermvq --version`, and this
    _wait_for(lambda n=number: 'ended with exit code 75' in ready.log(n))
    assert ready.log(number).count('saved\n') == 1
  assert ready.ok('stop') == 'worker0: no run is on\nworker1: no run is on\n'


def test_a_run_that_does_not_stop_is_killed(ready):
  ready.behave(
    "trap '' TERM\necho $$ >~/number\nwhile :; do /bin/sleep 0.02; done\n"
  )
  ready.ok('run', '--worker=0', 'dermvq', 'train')
  number = ready.workers[0] / 'number'
  _wait_for(lambda: number.exists() and number.read_text())
  printed = ready.ok('stop', '--grace=2')
  assert printed.startswith('worker0: killed after 2 s')
  assert ready.calls.count(['sleep', '1']) == 2
  # Else a reboot would start it again.
  assert not (ready.workers[0] / 'dermvq/run.sh').exists()
  stat = pathlib.Path('/proc', number.read_text().strip(), 'stat')
  _wait_for(lambda: not stat.exists() or ') Z ' in stat.read_text())


def test_a_machine_that_starts_again_goes_on_with_its_run(ready):
  """As cron would, after a reboot in the midst of a run."""
  ready.behave('while ! test -e ~/free; do /bin/sleep 0.02; done\n')
  ready.ok('run', '--worker=0', 'dermvq', 'train', 'a b')
  worker = ready.workers[0]
  _wait_for(lambda: len(ready.runs(0)) == 2)
  os.killpg(
    int((worker / 'dermvq/run.pid').read_text().split()[0]), signal.SIGKILL
  )
  _wait_for(lambda: not ready.is_on(0))
  (worker / 'free').touch()
  (line,) = (worker / 'crontab').read_text().splitlines()
  command = line.removeprefix('@reboot ')
  done = ready.do('sh', '-c', f'cd && {command}', env={'HOME': str(worker)})
  assert done.returncode == 0, done.stderr
  _wait_for(lambda: not ready.is_on(0))
  assert ready.runs(0)[1:] == [['train', 'a b']] * 2
  # It is done: the next reboot starts nothing.
  assert not (worker / 'dermvq/run.sh').exists()


def test_run_before_setup(cloud):
  done = cloud.tpu_vm('run', 'dermvq', 'train')
  assert done.returncode == 1
  assert done.stderr == 'worker0: dermvq is not installed; run setup first\n'


# Flags.


@pytest.mark.parametrize(
  'args',
  [
    ['create', '--accelerator_type=v6e-8', '--wait', '--spot', '--', '--a=b c'],
    ['setup'],
    ['stage', '--from=gs://b/x y'],
    ['stage', '--from=bin'],
    ['run', 'dermvq', 'train', *_AWKWARD],
    ['logs', '--lines=3'],
    ['status'],
    ['stop'],
    ['delete', '--yes'],
  ],
  ids=lambda args: ' '.join(args[:2]),
)
def test_dry_run_prints_what_would_be_done(cloud, args):
  """Its output, as a script, makes the same calls."""
  cloud.env['PROJECT_ID'] = 'my-project'
  printed = cloud.ok(args[0], '--dry-run', *args[1:])
  assert not cloud.calls
  # No worker is set up here: what runs there has other tests.
  (cloud.folder / 'bin/gcloud').write_text(
    _HEAD + 'record gcloud "$@"; [[ $4 != describe ]] || echo ACTIVE'
  )
  assert cloud.do('bash', '-c', printed).returncode == 0
  calls = cloud.calls
  cloud.ok(*args)
  assert calls == cloud.calls
  assert calls
  assert all('--project=my-project' in call for call in calls)


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['fly'], "there is no command 'fly'; see --help"),
    (['create'], 'which type? Give --accelerator_type, or set'),
    (['create', '--accelerator_type=tpu7x-8'], 'no runtime version is known'),
    (['status', '--name='], '--name= needs a value: --name=...'),
    (['status', '--name', 'x'], '--name needs a value: --name=...'),
    (['status', '--name=../x'], "--name must be of a-z, 0-9 and -, not '../x'"),
    (['status', '--spot'], 'status has no flag --spot; see status --help'),
    (['create', '--spot=yes'], '--spot takes no value'),
    (['delete', 'mole'], "delete takes no argument 'mole'"),
    (['setup', '--wheel=no.whl'], 'there is no wheel no.whl'),
    (['stage'], 'copy from where? Give --from'),
    (['stage', '--from=nowhere'], 'there is no folder nowhere'),
    (['stage', '--from=worker0'], 'worker0 is empty'),
    (['run'], 'run which command? For example'),
    (['run', '--max_failures=x', 'a'], '--max_failures must be a whole number'),
    (['logs', '--lines=$(id)'], '--lines must be a whole number'),
  ],
)
def test_mistakes_are_told_in_one_line(cloud, args, message):
  done = cloud.tpu_vm(*args)
  assert done.returncode == 2
  assert done.stderr.startswith(f'tpu_vm.sh: error: {message}')
  assert done.stderr.count('\n') == 1
  assert not done.stdout
  assert not cloud.calls


@pytest.mark.parametrize(
  ('variable', 'message'),
  [
    ('TPU_NAME', 'which machine? Give --name, or set TPU_NAME'),
    ('ZONE', 'where? Give --zone, or set ZONE'),
  ],
)
@pytest.mark.parametrize('command', _COMMANDS)
def test_name_and_zone_are_needed(cloud, command, variable, message):
  del cloud.env[variable]
  done = cloud.tpu_vm(command)
  assert done.returncode == 2
  assert done.stderr == f'tpu_vm.sh: error: {message}\n'
  assert not cloud.calls


def test_a_failure_of_gcloud_ends_the_command(cloud):
  (cloud.folder / 'bin/gcloud').write_text(_HEAD + 'record "$@"; exit 7')
  for args in (['setup'], ['create', '--accelerator_type=v6e-8', '--wait']):
    assert cloud.tpu_vm(*args).returncode == 7
    assert len(cloud.calls) == 1


def test_gcloud_is_missed_in_one_line(cloud):
  few = cloud.folder / 'few'
  few.mkdir()
  for name in ('env', 'bash', 'dirname'):
    (few / name).symlink_to(shutil.which(name))
  cloud.env['PATH'] = str(few)
  done = cloud.tpu_vm('status')
  assert done.returncode == 2
  assert done.stderr.startswith('tpu_vm.sh: error: gcloud is not installed: ')
  assert cloud.tpu_vm('status', '--dry-run').returncode == 0


def _examples(text, script):
  """Commands in a text, their continued lines joined."""
  joined = text.replace('\\\n', ' ')
  return re.findall(rf'^ *(experiments/{script} .*)$', joined, re.MULTILINE)


def _try_examples(cloud, text):
  examples = _examples(text, 'tpu_vm.sh')
  (cloud.folder / 'experiments').symlink_to(_ROOT / 'experiments')
  (cloud.folder / 'DATA' / 'ham10000').mkdir(parents=True)
  wheel = cloud.folder / 'dist' / 'dermvq_jax-0.1.0-py3-none-any.whl'
  wheel.parent.mkdir()
  wheel.touch()
  for example in examples:
    command = re.sub(r'(tpu_vm\.sh \w+)', r'\1 --dry-run', example, count=1)
    done = cloud.do('bash', '-c', command)
    assert done.returncode == 0, f'{example}: {done.stderr}'
  return examples


@pytest.mark.parametrize('command', _COMMANDS)
def test_help_has_examples_that_work(cloud, command):
  text = cloud.ok(command, '--help')
  assert text.startswith(f'Usage: experiments/tpu_vm.sh {command} ')
  assert len(max(text.splitlines(), key=len)) <= 80
  assert _try_examples(cloud, text)


def test_help_names_every_command(cloud):
  text = cloud.ok('--help')
  assert text == cloud.ok()
  assert tuple(re.findall(r'^  (\w+)  ', text, re.MULTILINE)) == _COMMANDS


def test_commands_in_the_readme_work(cloud):
  text = (_ROOT / 'README.md').read_text()
  used = [e.split()[1] for e in _try_examples(cloud, text)]
  assert set(used) == set(_COMMANDS)


# The restart loop.


@pytest.fixture
def program(tmp_path):
  """Writes a program that ends as told, once for each exit code."""

  def write(*codes):
    (tmp_path / 'codes').write_text(''.join(f'{code}\n' for code in codes))
    path = tmp_path / 'program'
    path.write_text(
      '#!/usr/bin/env bash\n'
      f'cd {tmp_path}\n'
      "{ printf '%s\\0' \"$@\"; printf '\\1'; } >>starts\n"
      'code=$(head -n 1 codes); sed -i 1d codes\n'
      'case $code in -*) kill "$code" $$ ;; esac\n'
      'exit "$code"\n'
    )
    path.chmod(0o755)
    return path

  return write


def _pauses(cloud):
  return [int(call[1]) for call in cloud.calls if call[0] == 'sleep']


@pytest.mark.parametrize(
  ('codes', 'last'),
  [
    ([0], 0),
    ([2], 2),  # a mistake
    ([130], 130),  # Ctrl-C
    ([75, 0], 0),  # preempted
    (['-KILL', '-TERM', 1, 0], 0),
    ([75, 2], 2),
  ],
)
def test_what_is_started_again(cloud, program, codes, last):
  done = cloud.do(_KEEP_RUNNING, program(*codes), *_AWKWARD)
  assert done.returncode == last, done.stderr
  assert _words(cloud.folder / 'starts') == [_AWKWARD] * len(codes)
  assert _pauses(cloud) == [5, 10, 20][: len(codes) - 1]


def test_a_command_that_is_not_there_is_not_tried_again(cloud):
  done = cloud.do(_KEEP_RUNNING, 'no-such-command')
  assert done.returncode == 127
  assert not _pauses(cloud)


def test_it_gives_up(cloud, program):
  done = cloud.do(
    _KEEP_RUNNING, '--max_failures=8', '--first_wait=3', program(*[9] * 20)
  )
  assert done.returncode == 9
  assert len(_words(cloud.folder / 'starts')) == 9
  assert _pauses(cloud) == [3, 6, 12, 24, 48, 96, 192, 300]
  assert done.stderr.rstrip().endswith('9 failures in a row, giving up')


def test_a_long_run_starts_the_count_anew(cloud, program):
  done = cloud.do(
    _KEEP_RUNNING,
    '--max_failures=1',
    '--steady=0',  # Every run is long.
    program(9, 9, 9, 0),
  )
  assert done.returncode == 0
  assert _pauses(cloud) == [5, 5, 5]


def test_max_failures_0_runs_once(cloud, program):
  assert (
    cloud.do(_KEEP_RUNNING, '--max_failures=0', program(75, 0)).returncode == 75
  )
  assert len(_words(cloud.folder / 'starts')) == 1


@contextlib.contextmanager
def _start(cloud, *args):
  """Starts the loop as a terminal does, the only one in its group."""
  loop = subprocess.Popen(
    [_KEEP_RUNNING, *args],
    env=cloud.env,
    cwd=cloud.folder,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
    # bash can't catch what is ignored where it starts, as under nohup.
    preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
  )
  try:
    yield loop
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(loop.pid, signal.SIGKILL)
    loop.communicate()


_SAVES = """
trap '/bin/sleep 0.2; echo saved >>log; exit 75' TERM
echo up >>log
while :; do /bin/sleep 0.02; done
"""


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGHUP'])
@pytest.mark.parametrize('whole_group', [False, True])
def test_a_signal_lets_the_command_save(cloud, name, whole_group):
  """To the loop alone, or as a terminal sends it, to the command too."""
  with _start(cloud, 'bash', '-c', _SAVES) as loop:
    log = cloud.folder / 'log'
    _wait_for(lambda: log.exists() and log.read_text())
    kill = os.killpg if whole_group else os.kill
    kill(loop.pid, getattr(signal, name))
    assert loop.wait(timeout=10) == 75
    assert log.read_text() == 'up\nsaved\n'
    assert 'stopped; ended with exit code 75' in loop.stderr.read()


def test_a_signal_between_two_runs(cloud, program):
  (cloud.folder / 'bin/sleep').write_text(
    _HEAD + 'record sleep "$@"; exec /bin/sleep 20'
  )
  with _start(cloud, program(75, 0)) as loop:
    _wait_for(lambda: _pauses(cloud))
    loop.terminate()
    assert loop.wait(timeout=10) == 143
  assert len(_words(cloud.folder / 'starts')) == 1


def test_the_log_has_all_and_is_kept(cloud):
  log = cloud.folder / 'my log'
  for word in ('one', 'two'):
    script = f'echo {word}; echo {word} >&2'
    done = cloud.do(_KEEP_RUNNING, f'--log={log}', 'bash', '-c', script)
    assert done.stdout.count(f'\n{word}\n{word}\n') == 1
  _wait_for(lambda: log.read_text().count('exit code 0') == 2)
  assert 'one\none\n' in log.read_text()


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ([], 'which command? See --help'),
    (['--often', 'true'], 'unknown flag --often; see --help'),
    (['--steady=1m', 'true'], "--steady must be a whole number, not '1m'"),
    (['--log=no/where', 'true'], "can't write no/where"),
  ],
)
def test_mistakes_of_the_loop(cloud, args, message):
  done = cloud.do(_KEEP_RUNNING, *args)
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1] == f'keep_running.sh: error: {message}'


def test_help_of_the_loop(cloud):
  text = cloud.do(_KEEP_RUNNING, '--help').stdout
  assert len(_examples(text, 'keep_running.sh')) == 2


@pytest.mark.skipif(not _SHELLCHECK, reason='no shellcheck')
def test_scripts_are_clean():
  scripts = [*_ROOT.glob('experiments/*.sh'), _ROOT / '.ci' / 'run']
  done = subprocess.run([_SHELLCHECK, *scripts], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
