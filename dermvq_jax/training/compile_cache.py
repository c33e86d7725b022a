"""Keeps compiled programs on disk, so that a second start is quick."""

import os
import pathlib
import sys


def enable():
  """Makes JAX keep compiled programs; call it before JAX is imported.

  They are kept in the folder `JAX_COMPILATION_CACHE_DIR` if that is set (empty:
  nowhere), otherwise in `dermvq_jax/xla` below `XDG_CACHE_HOME` or ~/.cache. A
  folder that can't be written is not used, without a message. A program's key
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
  """Makes the default folder; returns None if it can't be written."""
  try:
    caches = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(caches) / 'dermvq_jax' / 'xla'
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # RuntimeError: there is no home.
    return None
  return folder if os.access(folder, os.W_OK | os.X_OK) else None
