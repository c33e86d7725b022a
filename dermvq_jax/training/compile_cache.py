"""Keeps compiled programs on disk, so that a second start is quick."""

import os
import pathlib
import stat
import sys


def enable():
  """Makes JAX keep compiled programs; call it before JAX is imported.

  They are kept in the folder `JAX_COMPILATION_CACHE_DIR` if that is set (empty:
  nowhere), otherwise in `dermvq_jax/xla` below `XDG_CACHE_HOME` or ~/.cache. A
  folder that can't be written, or that others own or can write to, is not used,
  without a message: programs are native code, and whoever writes them decides
  what this user runs. A program's key
  holds the versions of JAX and of its backend, the flags and the kind of the
  devices, so several machines can share a home folder.
  """
  if 'jax' in sys.modules:  # The importer has set JAX up.
    return
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = _folder()
    if folder is None:
      return
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
  # A start compiles a hundred small programs, which JAX does not keep by
  # default.
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


def _folder() -> pathlib.Path | None:
  """Makes the default folder; returns None if it is not safe to use."""
  try:
    caches = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    parent = pathlib.Path(caches) / 'dermvq_jax'
    folder = parent / 'xla'
    parent.parent.mkdir(parents=True, exist_ok=True)
    for path in (parent, folder):
      path.mkdir(mode=0o700, exist_ok=True)
      if not _is_private(path):
        return None
  except (OSError, RuntimeError):  # RuntimeError: there is no home.
    return None
  return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _is_private(folder: pathlib.Path) -> bool:
  """Whether this user owns a folder and nobody else can write to it."""
  status = folder.stat()
  others = stat.S_IWGRP | stat.S_IWOTH
  return status.st_uid == os.geteuid() and not status.st_mode & others
