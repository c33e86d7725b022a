"""Writes files and folders that are either complete or absent; locks.

What is written is on the disk before it gets its name, and a name is on the
disk before the next step. So it is complete after a loss of power as well.
"""

import contextlib
import errno
import fcntl
import io
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors

_INCOMPLETE = '.incomplete'
_UNFINISHED = '.unfinished'
_MAX_ARRAYS = 2**28  # bytes; a small .npz file can describe many more.
# Never writes to what is there already, such as a link to another file.
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
# What file systems answer that cannot sync a folder.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in a bucket: no locks, no appending, no renaming."""
  return '://' in str(path)


def is_writable(folder: epath.PathLike) -> bool:
  """Whether files can be made in a local folder, which need not exist."""
  folder = os.path.abspath(folder)
  while not os.path.lexists(folder):
    folder = os.path.dirname(folder)
  return os.access(folder, os.W_OK | os.X_OK)


def refuse_links(folder: epath.PathLike):
  """Checks that nothing outside of a folder is changed by writing in it.

  Raises:
    UserError: a local folder, or something directly in it, is a link.
  """
  if is_remote(folder):
    return
  folder = os.fspath(folder)
  names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  for path in (folder, *(os.path.join(folder, name) for name in names)):
    if os.path.islink(path):
      raise errors.UserError(
        f'{path} is a link to {os.readlink(path)}, and dermvq does not write '
        'through links in a run; replace it by a copy, or remove it'
      )


def sync(path: epath.PathLike):
  """Waits until a local file, or the names in a local folder, are on the disk.

  A folder that may not be read, or whose file system cannot, is left out.
  """
  try:
    descriptor = os.open(path, os.O_RDONLY)
  except PermissionError:
    return
  try:
    os.fsync(descriptor)
  except OSError as e:
    if e.errno not in _CANNOT_SYNC:
      raise
  finally:
    os.close(descriptor)


def sync_tree(folder: epath.PathLike):
  """Runs `sync` for everything in a local folder, and last for itself."""
  for parent, _, names in os.walk(folder, topdown=False):
    for path in (os.path.join(parent, name) for name in names):
      if not os.path.islink(path):
        sync(path)
    sync(parent)


def make_folder(folder: epath.PathLike):
  """Makes a folder and those above it, whose names are then on the disk."""
  folder = epath.Path(folder)
  missing = []
  if not is_remote(folder):
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
  folder.mkdir(parents=True, exist_ok=True)
  for path in missing:
    sync(path.parent)


def _open_new(path: epath.Path, folder: bool) -> tuple[epath.Path, int]:
  """Makes an empty file or folder that will be renamed to `path`.

  Returns:
    The file or folder, whose name nobody else uses, and its descriptor. While
    that is open, `_remove_leftovers` of other processes leaves it alone.
  """
  while True:
    unique = f'{os.getpid()}-{secrets.token_hex(4)}'
    partial = path.parent / f'{path.name}.{unique}{_INCOMPLETE}'
    if folder:
      partial.mkdir()
    flags = os.O_RDONLY | os.O_NOFOLLOW if folder else _NEW_FILE
    descriptor = os.open(partial, flags, 0o666)
    with contextlib.suppress(OSError):  # There may be no locks.
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    if partial.exists():
      return partial, descriptor
    os.close(descriptor)  # It was taken for a leftover before it was locked.


def _remove_leftovers(path: epath.Path):
  """Removes what killed processes left of `path`, if nobody has it locked."""
  pattern = re.escape(path.name) + r'(\.\d+-[0-9a-f]{8})?' + _INCOMPLETE
  for name in os.listdir(path.parent):
    if not re.fullmatch(pattern, name):
      continue
    leftover = os.path.join(path.parent, name)
    # It is not ours, it is being written, or there are no locks.
    with contextlib.suppress(OSError):
      flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
      descriptor = os.open(leftover, flags)
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.isdir(leftover):
          shutil.rmtree(leftover)
        else:
          os.unlink(leftover)
      finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[BinaryIO]:
  """Opens a file to write bytes to; it replaces `path` at the end.

  After a kill, an error or a loss of power `path` is as it was before. If
  several processes write it at once, one of their files remains.
  """
  with replacing_together(path) as [file]:
    yield file


@contextlib.contextmanager
def replacing_together(*paths: epath.PathLike) -> Iterator[list[BinaryIO]]:
  """Does the same as `replacing` for files that belong together.

  They are in one place. If one cannot be written, all stay as they were.
  """
  paths = [epath.Path(path) for path in paths]
  if is_remote(paths[0]):
    # An object appears when its file is closed, even by an error.
    opened = [io.BytesIO() for _ in paths]
    yield opened
    for path, file in zip(paths, opened):
      path.write_bytes(file.getvalue())
    return
  with contextlib.ExitStack() as stack:
    partials, opened = [], []
    for path in paths:
      _remove_leftovers(path)
      partial, descriptor = _open_new(path, folder=False)
      stack.callback(partial.unlink, missing_ok=True)
      partials.append(partial)
      opened.append(stack.enter_context(os.fdopen(descriptor, 'wb')))
    yield opened
    for file in opened:
      file.flush()
      os.fsync(file.fileno())
    for partial, path in zip(partials, paths):
      os.replace(partial, path)
  for folder in {path.parent for path in paths}:
    sync(folder)


def write_text(path: epath.PathLike, text: str):
  """Writes a text file; after a kill it is complete or still the old one."""
  with replacing(path) as file:
    file.write(text.encode())


def read_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Reads all arrays of an .npz file.

  Raises:
    ValueError: the file is damaged, or its arrays would take too much memory.
  """
  content = io.BytesIO(epath.Path(path).read_bytes())
  try:
    with zipfile.ZipFile(content) as archive:
      size = sum(member.file_size for member in archive.infolist())
    if size > _MAX_ARRAYS:
      raise ValueError(f'its arrays would take {size:,} bytes')
    content.seek(0)
    with np.load(content, allow_pickle=False) as arrays:
      return {name: arrays[name] for name in arrays.files}
  except Exception as e:  # zipfile, zlib and NumPy raise many kinds.
    raise ValueError(errors.one_line(e) or type(e).__name__) from e


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
  """Makes a folder that gets its name when everything in it is on the disk.

  Yields:
    The folder to write into, whose name ends with `.incomplete`.

  Raises:
    UserError: `path` exists already, or it would be in a file.
  """
  path = epath.Path(path).expanduser()
  if is_remote(path):
    with _new_remote_folder(path) as partial:
      yield partial
    return
  _check_place(path)
  make_folder(path.parent)
  _remove_leftovers(path)
  partial, descriptor = _open_new(path, folder=True)
  try:
    yield partial
    sync_tree(partial)
    _check_is_free(path)  # Another process may have made it meanwhile.
    partial.rename(path)
  except BaseException:
    shutil.rmtree(partial)
    raise
  finally:
    os.close(descriptor)
  sync(path.parent)


@contextlib.contextmanager
def _new_remote_folder(path: epath.Path) -> Iterator[epath.Path]:
  """Does the same as `new_folder` in a bucket, which renames file by file."""
  partial = path.parent / f'{path.name}{_INCOMPLETE}'
  if path.exists() and partial.exists():  # An earlier rename was interrupted.
    path.rmtree()
  _check_is_free(path)
  if partial.exists():  # An earlier run was interrupted.
    partial.rmtree()
  partial.mkdir(parents=True)
  try:
    yield partial
  except BaseException:
    if partial.exists():  # A bucket has no empty folders.
      partial.rmtree()
    raise
  partial.rename(path)


def unfinished(path: epath.PathLike) -> epath.Path:
  """Where `resumable_folder` keeps a folder until it is complete."""
  path = epath.Path(path).expanduser()
  return path.parent / f'{path.name}{_UNFINISHED}'


@contextlib.contextmanager
def resumable_folder(path: epath.PathLike) -> Iterator[epath.Path]:
  """Makes a folder over several calls, if the first ones are interrupted.

  It gets its name at the end. Files in its sub-folders must be on the disk by
  then; see `sync_new`.

  Yields:
    The folder to write into, `unfinished(path)`, with what earlier calls wrote.
    It stays after an error or a kill.

  Raises:
    UserError: `path` exists already, it would be in a file, or another process
      is making it.
  """
  path, partial = epath.Path(path).expanduser(), unfinished(path)
  if is_remote(path):
    if path.exists() and partial.exists():  # A rename was interrupted.
      path.rmtree()
      partial.rmtree()
    _check_is_free(path)
    partial.mkdir(parents=True, exist_ok=True)
    yield partial
    partial.rename(path)
    return

  def busy():
    raise errors.UserError(
      f'another process is writing {partial}; wait for it, or give another '
      '--out'
    )

  _check_place(path)
  refuse_links(partial)
  make_folder(partial)
  with locked(partial, busy):
    yield partial
    for name in os.listdir(partial):
      sync(partial / name)
    sync(partial)
    _check_is_free(path)
    partial.rename(path)
  sync(path.parent)


def sync_new(paths: Iterable[epath.Path]):
  """Waits until new local files and their names are on the disk."""
  paths = [path for path in paths if not is_remote(path)]
  for path in (*paths, *{path.parent for path in paths}):
    sync(path)


def _check_place(path: epath.Path):
  """Raises UserError if there cannot be a new local folder."""
  _check_is_free(path)
  if path.parent.is_file():
    raise errors.UserError(f'{path.parent} is a file; give another --out')


def _check_is_free(path: epath.Path):
  if path.exists():
    raise errors.UserError(f'{path} exists already; give another --out')


@contextlib.contextmanager
def locked(
  folder: epath.PathLike, when_busy: Callable[[], None]
) -> Iterator[None]:
  """Locks an existing local folder as long as this process lives.

  Args:
    folder: the folder; other processes that call this wait for it.
    when_busy: is called if another process has the lock. If it returns, this
      process waits; it may raise an exception instead.
  """
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      when_busy()
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as e:  # Some network file systems have no locks.
      logging.warning(
        '%s cannot be locked (%s): make sure that no other command writes '
        'there.',
        folder,
        e.strerror,
      )
    yield
  finally:
    os.close(descriptor)
