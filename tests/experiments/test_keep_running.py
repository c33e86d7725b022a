"""experiments/keep_running.sh, the restart loop."""

import contextlib
import os
import signal
import subprocess

import pytest
from stand_ins import AWKWARD, HEAD, KEEP_RUNNING, examples_of, wait_for, words


@pytest.fixture
def program(tmp_path):
  """Returns a function that writes a program with given exit codes."""

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
    ([2], 2),  # A mistake.
    ([130], 130),  # Ctrl-C.
    ([75, 0], 0),  # Preempted.
    (['-KILL', '-TERM', 1, 0], 0),
    ([75, 2], 2),
  ],
)
def test_which_exit_codes_restart(cloud, program, codes, last):
  done = cloud.do(KEEP_RUNNING, program(*codes), *AWKWARD)
  assert done.returncode == last, done.stderr
  assert words(cloud.folder / 'starts') == [AWKWARD] * len(codes)
  assert _pauses(cloud) == [5, 10, 20][: len(codes) - 1]


def test_a_missing_command_is_not_tried_again(cloud):
  done = cloud.do(KEEP_RUNNING, 'no-such-command')
  assert done.returncode == 127
  assert not _pauses(cloud)


def test_it_gives_up_after_too_many_failures(cloud, program):
  done = cloud.do(
    KEEP_RUNNING,
    '--max_failures=8',
    '--first_wait=3',
    program(*[9] * 20),
  )
  assert done.returncode == 9
  assert len(words(cloud.folder / 'starts')) == 9
  assert _pauses(cloud) == [3, 6, 12, 24, 48, 96, 192, 300]
  assert done.stderr.rstrip().endswith('9 failures in a row, giving up')


def test_a_long_run_resets_the_count(cloud, program):
  done = cloud.do(
    KEEP_RUNNING,
    '--max_failures=1',
    '--steady=0',  # Every run is long.
    program(9, 9, 9, 0),
  )
  assert done.returncode == 0
  assert _pauses(cloud) == [5, 5, 5]


def test_max_failures_0_runs_once(cloud, program):
  assert (
    cloud.do(KEEP_RUNNING, '--max_failures=0', program(75, 0)).returncode == 75
  )
  assert len(words(cloud.folder / 'starts')) == 1


@contextlib.contextmanager
def _start(cloud, *args):
  """Starts the loop as a terminal does, in a separate process group."""
  loop = subprocess.Popen(
    [KEEP_RUNNING, *args],
    env=cloud.env,
    cwd=cloud.folder,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
    # bash can't catch signals that are ignored when it starts, as under nohup.
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
  """The signal goes to the loop and, from a terminal, also to the command."""
  with _start(cloud, 'bash', '-c', _SAVES) as loop:
    log = cloud.folder / 'log'
    wait_for(lambda: log.exists() and log.read_text())
    kill = os.killpg if whole_group else os.kill
    kill(loop.pid, getattr(signal, name))
    assert loop.wait(timeout=10) == 75
    assert log.read_text() == 'up\nsaved\n'
    assert 'stopped; ended with exit code 75' in loop.stderr.read()


def test_a_signal_between_two_runs(cloud, program):
  (cloud.folder / 'bin/sleep').write_text(
    HEAD + 'record sleep "$@"; exec /bin/sleep 20'
  )
  with _start(cloud, program(75, 0)) as loop:
    wait_for(lambda: _pauses(cloud))
    loop.terminate()
    assert loop.wait(timeout=10) == 143
  assert len(words(cloud.folder / 'starts')) == 1


def test_the_log_has_all_output_and_is_appended_to(cloud):
  log = cloud.folder / 'my log'
  for word in ('one', 'two'):
    script = f'echo {word}; echo {word} >&2'
    done = cloud.do(KEEP_RUNNING, f'--log={log}', 'bash', '-c', script)
    assert done.stdout.count(f'\n{word}\n{word}\n') == 1
  wait_for(lambda: log.read_text().count('exit code 0') == 2)
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
def test_mistakes(cloud, args, message):
  done = cloud.do(KEEP_RUNNING, *args)
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1] == f'keep_running.sh: error: {message}'


def test_help_has_examples(cloud):
  text = cloud.do(KEEP_RUNNING, '--help').stdout
  assert len(examples_of(text, 'keep_running.sh')) == 2
