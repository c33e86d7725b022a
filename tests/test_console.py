"""Output that goes nowhere, and names that a terminal would obey."""

import io
import os
import subprocess
import sys

import pytest
import tqdm

from dermvq_jax import console

_PRINT = """
import sys
from dermvq_jax import console
with console.steady():
  for i in range(20000):
    print('line', i)
    sys.stderr.write('progress\\n')
sys.exit(3)
"""


def run(command, **kwargs):
  """Runs a shell command; PYTHON prints much and has exit code 3."""
  env = os.environ | {'SCRIPT': _PRINT, 'PYTHON': sys.executable}
  command = command.replace('PROGRAM', '"$PYTHON" -c "$SCRIPT"')
  return subprocess.run(
    ['bash', '-c', command], env=env, capture_output=True, text=True, **kwargs
  )


@pytest.mark.parametrize(
  ('command', 'said'),
  [
    ('PROGRAM 2>&1 >/dev/full | grep -v progress', 'No space left'),
    ('PROGRAM 2>/dev/full >/dev/full', ''),
    ('PROGRAM >&- 2>/dev/null', ''),
    ('PROGRAM 2>&- >/dev/null', ''),
    ('PROGRAM <&- >&- 2>&-', ''),
    ('PROGRAM 2>/dev/null | head -1', 'line 0'),
    ('PROGRAM 2>&1 >/dev/null | head -1', 'progress'),
  ],
)
def test_the_exit_code_is_kept(command, said):
  done = run(f'{command}; exit ${{PIPESTATUS[0]}}')
  assert done.returncode == 3
  assert 'Traceback' not in done.stderr + done.stdout
  assert 'Exception ignored' not in done.stderr + done.stdout
  assert said in done.stdout
  assert bool(said) == bool(done.stdout)


def test_a_closed_descriptor_is_not_a_file_of_ours(tmp_path):
  """What a library prints would go into that file."""
  script = (
    'import os, sys\n'
    'from dermvq_jax import console\n'
    'with console.steady():\n'
    '  f = open(sys.argv[1], "w")\n'
    '  os.write(1, b"noise"); os.write(2, b"noise")\n'
    '  f.write("content"); f.close()\n'
  )
  file = tmp_path / 'file'
  command = '"$PYTHON" -c "$1" "$2" >&- 2>&-'
  subprocess.run(
    ['bash', '-c', command, 'bash', script, str(file)],
    env=os.environ | {'PYTHON': sys.executable},
    check=True,
  )
  assert file.read_text() == 'content'


def test_streams_are_restored(capsys):
  before = sys.stdout, sys.stderr
  with pytest.raises(KeyError), console.steady():
    assert (sys.stdout, sys.stderr) != before
    print('a')
    raise KeyError
  assert (sys.stdout, sys.stderr) == before
  assert capsys.readouterr().out == 'a\n'


def test_names_are_not_obeyed(capsys):
  with console.steady():
    print('\x1b]0;owned\x07 \x9b2J nv\u202e \udcff', 'tab\tend')
    print('\x1b[2K', file=sys.stderr)
  captured = capsys.readouterr()
  assert captured.out == (
    '\\x1b]0;owned\\x07 \\x9b2J nv\\u202e \\udcff tab\tend\n'
  )
  assert captured.err == '\\x1b[2K\n'


def test_bars_still_move(capsys):
  with console.steady():
    for _ in tqdm.tqdm(range(2), file=sys.stderr, position=1, ascii=True):
      tqdm.tqdm.write('between')
  captured = capsys.readouterr()
  assert '\x1b[A' in captured.err and '\\x1b' not in captured.err
  assert captured.out == 'between\n' * 2


def test_characters_that_the_output_lacks(monkeypatch):
  raw = io.BytesIO()
  monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, 'ascii'))
  with console.steady():
    print('Müller')
  assert raw.getvalue() == b'M\\xfcller\n'
