"""Checkpoints on disk; the only module that imports orbax.

A phase's folder holds `checkpoints/`, the latest states to go on from, and
`best/`, the weights to evaluate and sample with. Each step is committed at
once, its arrays and their checksums: orbax itself restores flipped bits
silently. Weights are a tree of arrays that orbax reads everywhere. A state, of
several times as many and saved often, is one array of bytes: most of a save's
time is orbax's for each array.
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
# Old steps go there at once; deleting them file by file could be interrupted.
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
  """A checkpoint is not what was saved; its text says in what."""


def _absolute(folder: epath.PathLike) -> epath.Path:
  """As orbax wants it; etils takes gs:// for a folder of the current one."""
  folder = epath.Path(folder)
  return folder if files.is_remote(folder) else folder.resolve()


def _manager(folder: epath.Path, keep: int) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep, cleanup_tmp_directories=True, todelete_subdir=_REMOVED
  )
  return ocp.CheckpointManager(folder, options=options)


def _steps(folder: epath.Path) -> list[int]:
  """The committed steps, oldest first; a manager would tidy up as well."""
  return sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []


def _empty(folder: epath.Path):
  """Removes a folder of this module's own."""
  if hosts.is_primary() and folder.exists():
    folder.rmtree()


def _pack(tree: PyTree) -> dict[str, np.ndarray]:
  """A tree of dicts and arrays as one array, uint8 `[N]`."""
  packed = flax.serialization.msgpack_serialize(tree)
  return {_PACKED: np.frombuffer(packed, np.uint8)}


def _unpack(tree: PyTree) -> PyTree:
  """The tree that was packed, or the same if none was."""
  if list(tree) != [_PACKED]:
    return tree
  return flax.serialization.msgpack_restore(tree[_PACKED].tobytes())


def _checksums(step: int, tree: PyTree) -> dict[str, Any]:
  """The CRC-32 of each array, its type and shape included, as JSON values."""
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
  except Exception as e:  # Damage has many names in orbax and tensorstore.
    reason = errors.one_line(e)[:_MAX_REASON]
    raise DamagedError(f'unreadable: {reason}') from e
  if saved is None:
    logging.warning('%s has no checksums, so damage can not be seen', folder)
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
  """Makes one clear line of a full disk or missing permissions.

  The background's failures come out in whatever call waits for it.
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
      'there, then start the same command again: it goes on from the last '
      'checkpoint, which is whole'
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
    """The last committed step, whole or not; None if there is none."""
    return self._states.latest_step()

  def save(self, step: int, tree: PyTree):
    """Saves a tree in the background; `close` waits for it."""
    with _saving(self._folder):
      # The state tells how good the weights in best/ are, so they come first.
      self._best.wait_until_finished()
      # Host copies: the device buffers are donated to the next step.
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

    Damaged ones are named and put aside.

    Args:
      like: gives the structure; its leaves may be shapes.

    Returns:
      The step and the tree, of NumPy arrays; 0 and None if nothing was saved
      yet.

    Raises:
      UserError: there are checkpoints, but none is whole.
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
        f'no checkpoint in {self._states.directory} is whole (step {step}: '
        f'{reason}); bring the folder back from a copy, or start again with '
        'another --workdir'
      )
    return 0, None

  def _put_aside(self, damaged: dict[int, str]):
    """Makes room for these steps; nothing of theirs is deleted."""
    if damaged:
      hosts.wait_for_all('all have seen the damage')
    for step, reason in damaged.items():
      folder = self._states.directory / str(step)
      aside = folder.with_name(f'{step}.damaged')
      logging.warning(
        'The checkpoint %s is damaged (%s); it is now %s, and the one before '
        'is used.',
        folder,
        reason,
        aside,
      )
      if hosts.is_primary():
        _empty(aside)
        folder.rename(aside)
    if damaged:
      hosts.wait_for_all('the damaged are put aside')
      self._states.reload()

  def best_is_whole(self) -> bool:
    """Whether there are weights in `best/`, as they were saved."""
    if not has_best(self._folder):
      return False  # Killed while they were replaced.
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
      # A resumed run comes again to steps whose weights may be there already.
      for old in self._best.all_steps():
        if old >= step:
          _empty(self._best.directory / _REMOVED)
          self._best.delete(old)
      plain = flax.serialization.to_state_dict(jax.device_get(weights))
      self._save(self._best, step, plain)

  def wait(self):
    """Waits for what is being written."""
    with _saving(self._folder):
      self._best.wait_until_finished()
      self._states.wait_until_finished()

  def close(self):
    """Waits for what is being written, and tidies up."""
    self.wait()
    for manager in (self._best, self._states):
      with _saving(self._folder):
        manager.close()
        _empty(manager.directory / _REMOVED)


def has_best(folder: epath.Path) -> bool:
  """Whether there are weights in `folder/best`."""
  return bool(_steps(_absolute(folder) / 'best'))


def best_id(folder: epath.Path) -> str:
  """Tells the weights in `folder/best` from others; '' if there are none."""
  best = _absolute(folder) / 'best'
  steps = _steps(best)
  if not steps:
    return ''
  checksums = best / str(steps[-1]) / _CHECKSUMS / 'metadata'
  sums = checksums.read_bytes() if checksums.exists() else b''
  return f'{steps[-1]}-{zlib.crc32(sums):08x}'


def load_best(folder: epath.Path) -> PyTree:
  """The weights in `folder/best`: `{'params': ..., 'model_state': ...}`.

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
        continue  # A training replaced them at this moment.
      raise errors.UserError(
        f'the weights {best / str(steps[-1])} are damaged ({e}); bring them '
        f'back from a copy, or move {folder} away and train again: the same '
        'command gives the same weights'
      ) from e
  raise errors.UserError(
    f'{folder} holds no trained weights; run dermvq train '
    f'--config={folder.name} --workdir={folder.parent} first'
  )


def verify(folder: epath.PathLike) -> Iterator[tuple[str, int, str]]:
  """Reads all that is committed in a phase's folder.

  Yields:
    'checkpoints' or 'best', the step, and what is wrong with it, '' if whole.
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
