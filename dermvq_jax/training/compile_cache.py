"""Keeps compiled programs on disk, so that a second start is quick."""

import os
import pathlib
import stat
import sys

_FOLDER = 'JAX_COMPILATION_CACHE_DIR'
# A start compiles a hundred small programs, which JAX does not keep by default.
_MIN_SECONDS = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'


def enable():
  """Makes JAX keep compiled programs, unless its importer has chosen a folder.

  They are kept in the folder `JAX_COMPILATION_CACHE_DIR` if that is set (empty:
  nowhere), otherwise in `dermvq_jax/xla` below `XDG_CACHE_HOME` or ~/.cache. A
  folder that can't be written, or that others own or can write to, is not used,
  without a message: programs are native code, and whoever writes them decides
  what this user runs. A program's key holds the versions of JAX and of its
  backend, the flags and the kind of the devices, so several machines can share
  a home folder.
  """
  if 'jax' in sys.modules:
    _enable_in_jax()
    return
  if _FOLDER not in os.environ:
    folder = _folder()
    if folder is None:
      return
    os.environ[_FOLDER] = str(folder)
  os.environ.setdefault(_MIN_SECONDS, '0')


def _enable_in_jax():
  """Does the same if JAX has read its environment already."""
  import jax

  if _FOLDER in os.environ or jax.config.jax_compilation_cache_dir is not None:
    return
  folder = _folder()
  if folder is None:
    return
  from jax.experimental.compilation_cache import compilation_cache

  jax.config.update('jax_compilation_cache_dir', str(folder))
  if _MIN_SECONDS not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  # JAX decides at its first compilation whether there is a cache.
  compilation_cache.reset_cache()


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
