"""The flags, --help and --dry-run of experiments/tpu_vm.sh."""

import os
import re
import shutil
import subprocess
import sysconfig

import pytest
from stand_ins import AWKWARD, HEAD, ROOT, examples_of

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


@pytest.mark.parametrize(
  'args',
  [
    ['create', '--accelerator_type=v6e-8', '--wait', '--spot', '--', '--a=b c'],
    ['setup'],
    ['stage', '--from=gs://b/x y'],
    ['stage', '--from=bin'],
    ['run', 'dermvq', 'train', *AWKWARD],
    ['logs', '--lines=3'],
    ['status'],
    ['stop'],
    ['delete', '--yes'],
  ],
  ids=lambda args: ' '.join(args[:2]),
)
def test_dry_run_prints_the_commands(cloud, args):
  """The output, run as a script, makes the same calls."""
  cloud.env['PROJECT_ID'] = 'my-project'
  printed = cloud.ok(args[0], '--dry-run', *args[1:])
  assert not cloud.calls
  # Workers are not set up here; other tests cover what runs on them.
  (cloud.folder / 'bin/gcloud').write_text(
    HEAD + 'record gcloud "$@"; [[ $4 != describe ]] || echo ACTIVE'
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
    (
      ['create', '--accelerator_type=v5e-8'],
      "Cloud TPU calls 'v5e-8' v5litepod-8",
    ),
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
def test_mistakes_are_reported_in_one_line(cloud, args, message):
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
  (cloud.folder / 'bin/gcloud').write_text(HEAD + 'record "$@"; exit 7')
  for args in (['setup'], ['create', '--accelerator_type=v6e-8', '--wait']):
    assert cloud.tpu_vm(*args).returncode == 7
    assert len(cloud.calls) == 1


def test_a_missing_gcloud_is_reported_in_one_line(cloud):
  few = cloud.folder / 'few'
  few.mkdir()
  for name in ('env', 'bash', 'dirname'):
    (few / name).symlink_to(shutil.which(name))
  cloud.env['PATH'] = str(few)
  done = cloud.tpu_vm('status')
  assert done.returncode == 2
  assert done.stderr.startswith('tpu_vm.sh: error: gcloud is not installed: ')
  assert cloud.tpu_vm('status', '--dry-run').returncode == 0


def _try_examples(cloud, text):
  examples = examples_of(text, 'tpu_vm.sh')
  (cloud.folder / 'experiments').symlink_to(ROOT / 'experiments')
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


def test_commands_in_the_documentation_work(cloud):
  text = (ROOT / 'docs' / 'how_to' / 'cloud_tpu.md').read_text()
  used = [e.split()[1] for e in _try_examples(cloud, text)]
  assert set(used) == set(_COMMANDS)


@pytest.mark.skipif(not _SHELLCHECK, reason='no shellcheck')
def test_scripts_are_clean():
  scripts = [
    *ROOT.glob('experiments/*.sh'),
    ROOT / '.ci' / 'run',
  ]
  done = subprocess.run([_SHELLCHECK, *scripts], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout
