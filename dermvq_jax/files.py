"""Writes files and folders that are either complete or absent; locks."""

import contextlib
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

from etils import epath

from dermvq_jax import errors


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in a bucket: no locks, no appending, no renaming."""
  return '://' in str(path)


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[BinaryIO]:
  """Opens a file to write bytes to; it replaces `path` at the end.

  After a kill or an error `path` is as it was before.
  """
  path = epath.Path(path)
  if is_remote(path):
    # An object appears when its file is closed, even by an error.
    file = io.BytesIO()
    yield file
    path.write_bytes(file.getvalue())
    return
  partial = path.with_name(f'{path.name}.incomplete')
  with partial.open('wb') as file:
    yield file
  partial.replace(path)


def write_text(path: epath.PathLike, text: str):
  """Writes a text file; after a kill it is complete or still the old one."""
  with replacing(path) as file:
    file.write(text.encode())


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
  """Makes a folder that gets its name when everything is in it.

  Yields:
    The folder to write into, `path` with the suffix `.incomplete`.

  Raises:
    UserError: `path` exists already.
  """
  path = epath.Path(path).expanduser()
  partial = path.parent / f'{path.name}.incomplete'
  if is_remote(path) and path.exists() and partial.exists():
    # A bucket renames file by file, and an earlier rename was interrupted.
    path.rmtree()
  if path.exists():
    raise errors.UserError(f'{path} exists already; give another --out')
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
    except OSError:
      pass  # Some network file systems have no locks.
    yield
  finally:
    os.close(descriptor)
