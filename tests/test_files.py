"""Files and folders that are either complete or absent; locks."""

import errno
import os
import subprocess
import sys
import threading

import numpy as np
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


@pytest.mark.parametrize('failing', [1, 2])
def test_files_are_replaced_together(tmp_path, monkeypatch, failing):
  """A full disk leaves no new file beside an old one that belongs to it."""
  paths, numbers, real = [tmp_path / 'a', tmp_path / 'b'], [], os.fsync

  def fails(descriptor):
    numbers.append(descriptor)
    if len(numbers) == failing:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(descriptor)

  def write(content):
    with files.replacing_together(*paths) as opened:
      for file in opened:
        file.write(content)

  write(b'old')
  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', fails)
    with pytest.raises(OSError, match='No space'):
      write(b'new')
  assert sorted(tmp_path.iterdir()) == paths
  assert [path.read_bytes() for path in paths] == [b'old', b'old']
  write(b'new')
  assert [path.read_bytes() for path in paths] == [b'new', b'new']


_IN_ASCII = r"""
import locale, sys
from etils import epath
from dermvq_jax import files
from dermvq_jax.generation import tables
assert locale.getpreferredencoding() != 'UTF-8'
folder = epath.Path(sys.argv[1])
files.write_text(folder / 'text', 'n\xe4vus')
tables.write_csv(folder / 'table', [{'label': 'n\xe4vus'}])
"""


def test_files_are_utf8_in_any_locale(tmp_path):
  locale = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
  command = [sys.executable, '-c', _IN_ASCII, tmp_path]
  subprocess.run(command, check=True, env=os.environ | locale)
  assert (tmp_path / 'text').read_bytes() == 'nävus'.encode()
  assert (tmp_path / 'table').read_bytes() == 'label\nnävus\n'.encode()


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


@pytest.fixture
def calls(monkeypatch):
  """What was synced (number of its inode) or renamed (its new name)."""
  made = []
  fsync, rename, replace = os.fsync, os.rename, os.replace

  def record_sync(descriptor):
    made.append(os.fstat(descriptor).st_ino)
    fsync(descriptor)

  def recorder(real):
    def record(old, new):
      made.append(os.path.basename(new))
      real(old, new)

    return record

  monkeypatch.setattr(os, 'fsync', record_sync)
  monkeypatch.setattr(os, 'rename', recorder(rename))
  monkeypatch.setattr(os, 'replace', recorder(replace))
  return made


def inode(path):
  return path.stat().st_ino


def test_a_file_is_on_the_disk_before_its_name(tmp_path, calls):
  path = tmp_path / 'a.txt'
  files.write_text(path, 'text')
  assert calls == [inode(path), 'a.txt', inode(tmp_path)]


def test_a_folder_is_on_the_disk_before_its_name(tmp_path, calls):
  out = tmp_path / 'out'
  with files.new_folder(out) as folder:
    (folder / 'x').mkdir()
    for name in ('x/b', 'a'):
      (folder / name).write_text('')
  before, after = calls[: calls.index('out')], calls[calls.index('out') + 1 :]
  assert sorted(before) == sorted(map(inode, [out, *out.rglob('*')]))
  assert before.index(inode(out / 'x/b')) < before.index(inode(out / 'x'))
  assert before[-1] == inode(out)
  assert after == [inode(tmp_path)]


def test_new_folders_above_are_on_the_disk(tmp_path, calls):
  files.make_folder(tmp_path / 'a' / 'b')
  assert calls == [inode(tmp_path / 'a'), inode(tmp_path)]
  with files.new_folder(tmp_path / 'c' / 'out'):
    pass
  assert inode(tmp_path) in calls[2:]


def test_file_systems_that_cannot_sync_folders(tmp_path, monkeypatch):
  fsync = os.fsync

  def only_files(descriptor):
    if os.path.isdir(f'/proc/self/fd/{descriptor}'):
      raise OSError(22, 'Invalid argument')
    fsync(descriptor)

  monkeypatch.setattr(os, 'fsync', only_files)
  files.write_text(tmp_path / 'a', 'a')
  assert (tmp_path / 'a').read_text() == 'a'


def test_writers_of_one_file_at_once(tmp_path):
  """Each writes all of it; nothing of them is mixed or left."""
  path, errors_found = tmp_path / 'a', []

  def write(letter):
    try:
      for _ in range(20):
        files.write_text(path, letter * 10**5)
        assert len(set(path.read_text())) == 1
    except BaseException as e:
      errors_found.append(e)

  writers = [threading.Thread(target=write, args=(c,)) for c in 'abcd']
  for writer in writers:
    writer.start()
  for writer in writers:
    writer.join()
  assert not errors_found
  assert os.listdir(tmp_path) == ['a']


def test_writers_of_one_folder_at_once(tmp_path):
  out = tmp_path / 'out'
  with files.new_folder(out) as first:
    (first / 'a').write_text('first')
    refused = pytest.raises(errors.UserError, match='exists already')
    with refused, files.new_folder(out) as second:
      (second / 'a').write_text('second')
      os.rename(first, out)  # The first one ends before.
    os.rename(out, first)
  assert (out / 'a').read_text() == 'first'
  assert os.listdir(tmp_path) == ['out']


def test_leftovers_of_killed_processes_are_removed(tmp_path):
  for name in ('a.incomplete', 'a.1234-0123abcd.incomplete'):
    (tmp_path / name).write_text('half')
  (tmp_path / 'b.incomplete').mkdir()
  (tmp_path / 'b.incomplete' / 'x').write_text('half')
  (tmp_path / 'a.txt.incomplete').write_text('of another file')
  with files.replacing(tmp_path / 'a') as file:
    files.write_text(tmp_path / 'a', 'a')  # It spares what is being written.
    file.write(b'b')
  assert (tmp_path / 'a').read_text() == 'b'
  with files.new_folder(tmp_path / 'b'):
    pass
  assert sorted(os.listdir(tmp_path)) == ['a', 'a.txt.incomplete', 'b']


def test_nothing_is_written_through_links(tmp_path):
  outside = tmp_path / 'outside'
  outside.write_text('keep')
  folder = tmp_path / 'report'
  folder.mkdir()
  files.refuse_links(folder)
  for name in ('a', 'a.incomplete'):
    (folder / name).symlink_to(outside)
  with pytest.raises(errors.UserError, match='report/a is a link to .*outside'):
    files.refuse_links(folder)
  files.write_text(folder / 'a', 'new')
  assert outside.read_text() == 'keep'
  assert (folder / 'a').read_text() == 'new'
  (tmp_path / 'other').symlink_to(folder)
  with pytest.raises(errors.UserError, match='other is a link'):
    files.refuse_links(tmp_path / 'other')
  files.refuse_links(tmp_path / 'missing')
  files.refuse_links('gs://bucket/run')


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


def test_a_missing_lock_is_told(tmp_path, monkeypatch, caplog):
  def no_locks(descriptor, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(files.fcntl, 'flock', no_locks)
  with files.locked(tmp_path, lambda: pytest.fail('nobody has it')):
    pass
  assert f'{tmp_path} cannot be locked (No locks available)' in caplog.text


def test_arrays_of_a_file(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez_compressed(path, a=np.arange(3), b=np.zeros((2, 2), np.uint8))
  found = files.read_arrays(path)
  assert list(found) == ['a', 'b'] and found['a'].tolist() == [0, 1, 2]
  whole = path.read_bytes()
  for damaged in (b'', b'x', whole[: len(whole) // 2]):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match='.'):
      files.read_arrays(path)


def test_a_small_file_of_large_arrays_is_not_read(tmp_path, monkeypatch):
  path = tmp_path / 'a.npz'
  np.savez_compressed(path, a=np.zeros(10**6, np.uint8))
  assert path.stat().st_size < 10_000
  monkeypatch.setattr(files, '_MAX_ARRAYS', 10**6)
  monkeypatch.setattr(files.np, 'load', lambda *args, **kwargs: pytest.fail())
  with pytest.raises(ValueError, match='its arrays would take 1,000,128 bytes'):
    files.read_arrays(path)


def test_is_writable(tmp_path):
  assert files.is_writable(tmp_path / 'new' / 'newer')
  tmp_path.chmod(0o500)
  try:
    # root may write everywhere.
    assert files.is_writable(tmp_path / 'new') == (os.geteuid() == 0)
  finally:
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
  ('path', 'remote'), [('gs://bucket/a', True), ('/a/b', False), ('a', False)]
)
def test_is_remote(path, remote):
  assert files.is_remote(path) == remote
