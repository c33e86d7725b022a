"""Stand-ins for the programs that the shell scripts call."""

import os
import pathlib
import re
import subprocess
import time

ROOT = pathlib.Path(__file__).parents[2]
TPU_VM = ROOT / 'experiments' / 'tpu_vm.sh'
KEEP_RUNNING = ROOT / 'experiments' / 'keep_running.sh'
# Words that a shell could split or misread.
AWKWARD = ['a b', "it's", '"q"', '$HOME', '*', 'x;', 'k=v w', '', 'l\nm', '\\']

# Programs that the scripts call. `record` writes a call as its words, each with
# a \0 at its end, and then a \1. `ssh` and `scp` reach two workers, which are
# folders.
STAND_INS = {
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
  # Each worker has one session, which is on as long as its file exists.
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
HEAD = """#!/usr/bin/env bash
record() {
  { printf '%s\\0' "$@"; printf '\\1'; } >>"$FAKE/calls"
}
"""


def words(path):
  """Reads the calls that `record` or the stand-in of dermvq wrote."""
  if not path.exists():
    return []
  text = path.read_bytes().decode()
  return [call.split('\0')[:-1] for call in text.split('\1')[:-1]]


def wait_for(condition, seconds=10.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'waited too long'
    time.sleep(0.02)


class Cloud:
  """A folder with the stand-ins, the recorded calls and two workers."""

  def __init__(self, folder):
    self.folder = folder
    self.workers = [folder / 'worker0', folder / 'worker1']
    for path in (*self.workers, folder / 'bin'):
      path.mkdir()
    for name, text in STAND_INS.items():
      self.add(name, text)
    self.states = 'ACTIVE'
    self.env = {
      'PATH': f'{folder}/bin:{os.environ["PATH"]}',
      'FAKE': str(folder),
      'HOME': str(folder),
      'TPU_NAME': 'mole',
      'ZONE': 'us-east5-b',
    }

  def add(self, name, text):
    """Puts a program in place of a real one."""
    path = self.folder / 'bin' / name
    path.write_text(HEAD + text)
    path.chmod(0o755)

  def do(self, *args, **kwargs):
    """Runs a program to its end; `self.calls` are the calls that it made."""
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
    return self.do(TPU_VM, *args, **kwargs)

  def ok(self, *args):
    done = self.tpu_vm(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout

  @property
  def calls(self):
    return words(self.folder / 'calls')

  @property
  def gcloud(self):
    """The calls of gcloud, without the words that all of them share."""
    calls = [call[1:] for call in self.calls if call[0] == 'gcloud']
    for call in calls:
      if call[0] == 'compute':
        assert call[:2] == ['compute', 'tpus']
        assert call.pop() == '--zone=us-east5-b'
    return [call[2:] if call[0] == 'compute' else call for call in calls]

  def runs(self, worker=0):
    return words(self.workers[worker] / 'runs')

  def is_on(self, worker=0):
    return (self.workers[worker] / 'session').exists()

  def log(self, worker=0):
    path = self.workers[worker] / 'dermvq/logs/dermvq.log'
    return path.read_text() if path.exists() else ''

  def behave(self, text):
    for worker in self.workers:
      (worker / 'behaviour').write_text(text)


def examples_of(text, script):
  """Returns the commands in a text, with continued lines joined."""
  joined = text.replace('\\\n', ' ')
  return re.findall(rf'^ *(experiments/{script} .*)$', joined, re.MULTILINE)
