"""Compiled programs are kept on disk, so that a second start is quick."""

import os
import pathlib
import sys


def enable():
  """Has JAX keep what it compiles; to be called before JAX is imported.

  In `JAX_COMPILATION_CACHE_DIR` if that is set (empty: nowhere), else below
  `XDG_CACHE_HOME` or ~/.cache. A folder that can't be written is left out
  silently. A program's key holds the versions of JAX and of its backend, the
  flags and the kind of the devices, a CPU's instructions included: a home that
  several machines share does no harm.
  """
  if 'jax' in sys.modules:  # Its settings are those of whoever imported it.
    return
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = _folder()
    if folder is None:
      return
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
  # A start compiles a hundred small programs; JAX leaves them out by default.
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


def _folder() -> pathlib.Path | None:
  """The default folder, made if need be; None if it can't be written."""
  try:
    caches = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(caches) / 'dermvq_jax' / 'xla'
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # RuntimeError: there is no home.
    return None
  return folder if os.access(folder, os.W_OK | os.X_OK) else None
