"""Checkpoints on disk; the only module that imports orbax.

A phase's folder holds `checkpoints/`, the latest states to resume from, and
`best/`, the weights to evaluate and sample with. The arrays of a step and their
checksums are committed together; without checksums, orbax would restore flipped
bits silently. Weights are a tree of arrays, which orbax can read without this
package. A state has several times as many arrays and is saved often, so it is
packed into one array of bytes: most of a save's time is spent per array.
"""

import contextlib
import json
import zlib
from collections.abc import Iterator
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from dermvq_jax import errors, files
from dermvq_jax.runs import hosts

PyTree = Any
_KEEP = 2
_ARRAYS = 'default'  # orbax's name for a step's only item
_CHECKSUMS = 'checksums'
_PACKED = 'msgpack'
# Old steps are moved here first: deleting file by file can be interrupted.
_REMOVED = 'removed'
_MAX_REASON = 200  # characters; tensorstore adds pages to its reasons
_SYSTEM_FAILURES = (
  'No space left',
  'Disk quota exceeded',
  'Permission denied',
  'Read-only file system',
  'File too large',
)


class DamagedError(Exception):
  """A checkpoint differs from what was saved; the message says where."""


def _absolute(folder: epath.PathLike) -> epath.Path:
  """An absolute path, as orbax needs; `resolve` would take gs:// as local."""
  folder = epath.Path(folder)
  return folder if files.is_remote(folder) else folder.resolve()


def _manager(folder: epath.Path, keep: int) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep, cleanup_tmp_directories=True, todelete_subdir=_REMOVED
  )
  return ocp.CheckpointManager(folder, options=options)


def _steps(folder: epath.Path) -> list[int]:
  """Lists the committed steps, oldest first; writes nothing, unlike orbax."""
  return sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []


def _empty(folder: epath.Path):
  """Removes a folder that only this module uses."""
  if hosts.is_primary() and folder.exists():
    folder.rmtree()


def _pack(tree: PyTree) -> dict[str, np.ndarray]:
  """Packs a tree of dicts and arrays into one array, uint8 `[N]`."""
  packed = flax.serialization.msgpack_serialize(tree)
  return {_PACKED: np.frombuffer(packed, np.uint8)}


def _unpack(tree: PyTree) -> PyTree:
  """Unpacks a tree; a tree that was not packed is returned unchanged."""
  if list(tree) != [_PACKED]:
    return tree
  return flax.serialization.msgpack_restore(tree[_PACKED].tobytes())


def _checksums(step: int, tree: PyTree) -> dict[str, Any]:
  """Returns the CRC-32 of each array, with its type and shape, for JSON."""
  sums = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    start = zlib.crc32(f'{array.dtype}{array.shape}'.encode())
    data = array.reshape(-1).view(np.uint8)
    sums[jax.tree_util.keystr(path, simple=True, separator='/')] = zlib.crc32(
      data, start
    )
  return {'step': step, 'crc32': sums}


def _read(folder: epath.Path) -> PyTree:
  """Reads the tree of NumPy arrays in a step's folder.

  Raises:
    DamagedError: it can't be read, or it is not what was saved.
  """
  try:
    with ocp.StandardCheckpointer() as reader:
      arrays = reader.restore(folder / _ARRAYS)
    tree = _unpack(arrays)
    file = folder / _CHECKSUMS / 'metadata'
    saved = json.loads(file.read_text()) if file.parent.exists() else None
  except Exception as e:  # orbax and tensorstore raise many kinds.
    reason = errors.one_line(e)[:_MAX_REASON]
    raise DamagedError(f'unreadable: {reason}') from e
  if saved is None:
    logging.warning('%s has no checksums: damage cannot be found.', folder)
    return tree
  found = _checksums(int(folder.name), arrays)
  if saved == found:
    return tree
  if not isinstance(saved, dict) or not isinstance(saved.get('crc32'), dict):
    raise DamagedError(f'{file} is damaged')
  differing = [
    name
    for name in sorted(saved['crc32'].keys() | found['crc32'].keys())
    if saved['crc32'].get(name) != found['crc32'].get(name)
  ]
  if differing:
    raise DamagedError(
      f'{len(differing)} of {len(found["crc32"])} arrays differ from what was '
      f'saved, first {differing[0]}'
    )
  raise DamagedError(f'it was saved as step {saved.get("step")}')


@contextlib.contextmanager
def _saving(folder: epath.Path) -> Iterator[None]:
  """Turns a full disk or missing permissions into a one-line error.

  Failures of background saves are raised by the next call that waits for them.
  """
  try:
    yield
  except Exception as e:
    text = errors.one_line(e)
    found = [name for name in _SYSTEM_FAILURES if name in text]
    if not found:
      raise
    raise errors.UserError(
      f'cannot save in {folder}: {found[0]}; make room and check permissions '
      'there, then start the same command again: it resumes from the last '
      'checkpoint, which is intact'
    ) from e


class Checkpoints:
  """Saves and restores one phase. A step counts only when committed.

  Attributes:
    folder: the phase's folder.
  """

  def __init__(self, folder: epath.Path):
    self.folder = epath.Path(folder)
    self._folder = _absolute(folder)
    with _saving(self._folder):
      self._states = _manager(self._folder / 'checkpoints', _KEEP)
      self._best = _manager(self._folder / 'best', 1)

  def latest_step(self) -> int | None:
    """Returns the last committed step, intact or not; None without any."""
    return self._states.latest_step()

  def save(self, step: int, tree: PyTree):
    """Saves a tree in the background; `close` waits for it."""
    with _saving(self._folder):
      # The state records how good the weights in best/ are, so they are saved
      # first.
      self._best.wait_until_finished()
      # Copied to the host: the next step reuses the device's buffers.
      plain = flax.serialization.to_state_dict(jax.device_get(tree))
      self._save(self._states, step, _pack(plain))

  def _save(self, manager: ocp.CheckpointManager, step: int, tree: PyTree):
    manager.wait_until_finished()
    _empty(manager.directory / _REMOVED)
    items = {
      _ARRAYS: ocp.args.StandardSave(tree),
      _CHECKSUMS: ocp.args.JsonSave(_checksums(step, tree)),
    }
    manager.save(step, args=ocp.args.Composite(**items), force=True)

  def restore(self, like: PyTree) -> tuple[int, PyTree | None]:
    """Restores the latest tree that is intact.

    Damaged trees are logged and put aside.

    Args:
      like: gives the structure; its leaves may be shapes.

    Returns:
      The step and the tree, of NumPy arrays; 0 and None if nothing was saved
      yet.

    Raises:
      UserError: there are checkpoints, but none is intact.
    """
    damaged = {}
    for step in sorted(self._states.all_steps(), reverse=True):
      try:
        plain = _read(self._states.directory / str(step))
        restored = flax.serialization.from_state_dict(like, plain)
      except (DamagedError, ValueError) as e:
        damaged[step] = errors.one_line(e)
        continue
      self._put_aside(damaged)
      return step, restored
    if damaged:
      step, reason = next(iter(damaged.items()))
      raise errors.UserError(
        f'no checkpoint in {self._states.directory} is intact (step {step}: '
        f'{reason}); restore the folder from a copy, or start again with '
        'another --workdir'
      )
    return 0, None

  def _put_aside(self, damaged: dict[int, str]):
    """Renames damaged steps, to make room; nothing is deleted."""
    if damaged:
      hosts.wait_for_all('all have found the damage')
    for step, reason in damaged.items():
      folder = self._states.directory / str(step)
      aside = folder.with_name(f'{step}.damaged')
      logging.warning(
        'The checkpoint %s is damaged (%s); it is renamed to %s, and the one '
        'before it is used.',
        folder,
        reason,
        aside,
      )
      if hosts.is_primary():
        _empty(aside)
        folder.rename(aside)
    if damaged:
      hosts.wait_for_all('damaged steps are renamed')
      self._states.reload()

  def best_is_intact(self) -> bool:
    """Whether there are intact weights in `best/`."""
    if not has_best(self._folder):
      return False  # The process was killed while it replaced them.
    try:
      load_best(self._folder)
    except errors.UserError as e:
      logging.warning('%s', e)
      return False
    return True

  def save_best(self, step: int, weights: PyTree):
    """Replaces the weights in `best/`."""
    with _saving(self._folder):
      self._best.wait_until_finished()
      # A resumed run repeats steps whose weights may be there already.
      for old in self._best.all_steps():
        if old >= step:
          _empty(self._best.directory / _REMOVED)
          self._best.delete(old)
      plain = flax.serialization.to_state_dict(jax.device_get(weights))
      self._save(self._best, step, plain)

  def wait(self):
    """Waits until everything is written."""
    with _saving(self._folder):
      self._best.wait_until_finished()
      self._states.wait_until_finished()

  def close(self):
    """Waits until everything is written, and removes leftovers."""
    self.wait()
    for manager in (self._best, self._states):
      with _saving(self._folder):
        manager.close()
        _empty(manager.directory / _REMOVED)


def has_best(folder: epath.Path) -> bool:
  """Whether there are weights in `folder/best`."""
  return bool(_steps(_absolute(folder) / 'best'))


def best_id(folder: epath.Path) -> str:
  """Identifies the weights in `folder/best`; '' if there are none."""
  best = _absolute(folder) / 'best'
  steps = _steps(best)
  if not steps:
    return ''
  checksums = best / str(steps[-1]) / _CHECKSUMS / 'metadata'
  sums = checksums.read_bytes() if checksums.exists() else b''
  return f'{steps[-1]}-{zlib.crc32(sums):08x}'


def load_best(folder: epath.Path) -> PyTree:
  """Loads the weights in `folder/best`: `{'params': ..., 'model_state': ...}`.

  Raises:
    UserError: there are none, or they are damaged.
  """
  best = _absolute(folder) / 'best'
  folder = best.parent
  while steps := _steps(best):
    try:
      return _read(best / str(steps[-1]))
    except DamagedError as e:
      if steps != _steps(best):
        continue  # A training replaced them meanwhile.
      raise errors.UserError(
        f'the weights {best / str(steps[-1])} are damaged ({e}); restore them '
        f'from a copy, or move {folder} away and train again: the same '
        'command gives the same weights'
      ) from e
  raise errors.UserError(
    f'{folder} holds no trained weights; run dermvq train '
    f'--config={folder.name} --workdir={folder.parent} first'
  )


def verify(folder: epath.PathLike) -> Iterator[tuple[str, int, str]]:
  """Verifies everything that is committed in a phase's folder.

  Yields:
    'checkpoints' or 'best', the step, and the problem with it ('': none).
  """
  for kind in ('checkpoints', 'best'):
    parent = _absolute(folder) / kind
    for step in _steps(parent):
      try:
        _read(parent / str(step))
        problem = ''
      except DamagedError as e:
        problem = str(e)
      if (parent / str(step)).exists():  # A training may have replaced it.
        yield kind, step, problem
