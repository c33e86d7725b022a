"""Files and folders that are either complete or absent; locks."""

import subprocess
import sys

import pytest

from dermvq_jax import errors, files


def test_a_file_is_complete_or_the_old_one(tmp_path):
  path = tmp_path / 'a.txt'
  files.write_text(path, 'old')
  with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
    file.write(b'new')
    raise KeyboardInterrupt
  assert path.read_text() == 'old'
  files.write_text(path, 'newer, é')
  assert path.read_bytes() == 'newer, é'.encode()
  assert [p.name for p in tmp_path.iterdir()] == ['a.txt']


def test_a_file_in_a_bucket_is_written_at_the_end(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'is_remote', lambda path: True)
  path = tmp_path / 'a.txt'
  files.write_text(path, 'old')
  with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
    file.write(b'new')
    raise KeyboardInterrupt
  assert path.read_text() == 'old'
  with files.replacing(path) as file:
    file.write(b'new')
    assert path.read_text() == 'old'
  assert path.read_text() == 'new'


def test_a_new_folder_gets_its_name_when_it_is_complete(tmp_path):
  out = tmp_path / 'x' / 'out'
  with files.new_folder(out) as folder:
    (folder / 'a').write_text('')
    assert not out.exists()
  assert [p.name for p in out.iterdir()] == ['a']
  refused = pytest.raises(errors.UserError, match='exists already')
  with refused, files.new_folder(out):
    pass
  assert [p.name for p in out.iterdir()] == ['a']


def test_a_folder_that_fails_leaves_nothing(tmp_path):
  for _ in range(2):
    fails = pytest.raises(ValueError)
    with fails, files.new_folder(tmp_path / 'out') as folder:
      (folder / 'a').write_text('')
      raise ValueError
    assert not list(tmp_path.iterdir())


_HOLD = """
import sys
from dermvq_jax import files
with files.locked(sys.argv[1], lambda: None):
  print('locked', flush=True)
  sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process(tmp_path):
  def busy():
    raise errors.UserError('busy')

  holder = subprocess.Popen(
    [sys.executable, '-c', _HOLD, tmp_path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert holder.stdout.readline() == 'locked\n'
  refused = pytest.raises(errors.UserError, match='busy')
  with refused, files.locked(tmp_path, busy):
    pass
  # A waiting process gets the lock when the holder ends.
  with files.locked(tmp_path, lambda: holder.communicate('')):
    assert holder.returncode == 0


@pytest.mark.parametrize(
  ('path', 'remote'), [('gs://bucket/a', True), ('/a/b', False), ('a', False)]
)
def test_is_remote(path, remote):
  assert files.is_remote(path) == remote
