"""Checkpoints on disk; only this module and `steps` import orbax.

A phase's folder holds `checkpoints/`, the latest states to resume from, and
`best/`, the weights to evaluate and sample with. The arrays of a step and their
checksums are committed together; without checksums, orbax would restore flipped
bits silently. Weights are a tree of arrays, which orbax can read without this
package. A state has several times as many arrays and is saved often, so it is
packed into one array of bytes: most of a save's time is spent per array.

A step is on the disk before it gets its name, and before an older one is
removed. The first step that a process saves is read back.
"""

import asyncio
import contextlib
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax
import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from dermvq_jax import errors, files
from dermvq_jax.runs import hosts, packing
from dermvq_jax.runs import steps as steps_lib

PyTree = Any
_KEEP = 2
# Old steps are moved here first: deleting file by file can be interrupted.
_REMOVED = 'removed'
_SYSTEM_FAILURES = (
  'No space left',
  'Disk quota exceeded',
  'Permission denied',
  'Read-only file system',
  'File too large',
  'Input/output error',
  'Stale file handle',
)
# Is in orbax' names of folders that are being written.
_TEMPORARY = '.orbax-checkpoint-tmp'


class _SyncedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """The folder of a local step; it is on the disk before it gets its name.

  orbax writes files until just before it renames a folder. So it gives it
  another temporary name, and the last step is done here.
  """

  @classmethod
  def from_final(cls, final_path: epath.Path, **kwargs):
    """Returns the folder that gets the name `final_path`."""
    return super().from_final(
      final_path.with_name(final_path.name + _TEMPORARY), **kwargs
    )

  def get_final(self) -> epath.Path:
    """Returns the folder's path when it is complete."""
    path = super().get_final()
    return path.with_name(path.name.removesuffix(_TEMPORARY))

  async def finalize(self):
    """Gives the step its name."""
    await super().finalize()
    complete = super().get_final()
    await asyncio.to_thread(files.sync_tree, complete)
    await asyncio.to_thread(os.rename, complete, self.get_final())
    await asyncio.to_thread(files.sync, complete.parent)


def _read_like(folder: epath.Path, like: PyTree) -> PyTree:
  """Reads a step with the structure of `like`; raises `DamagedError`."""
  plain = steps_lib.read(folder)
  try:
    return flax.serialization.from_state_dict(like, plain)
  except ValueError as e:
    raise steps_lib.DamagedError(errors.one_line(e)) from e


def _manager(folder: epath.Path, keep: int) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    cleanup_tmp_directories=True,
    todelete_subdir=_REMOVED,
    # orbax' own choice for a bucket cannot be synced, and need not.
    temporary_path_class=None if files.is_remote(folder) else _SyncedPath,
  )
  return ocp.CheckpointManager(folder, options=options)


def _empty(folder: epath.Path):
  """Removes a folder that only this module uses."""
  if hosts.is_primary() and folder.exists():
    folder.rmtree()


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
    """Opens a phase's folder to write in it.

    Raises:
      UserError: it cannot be written, or there are links in it.
    """
    self.folder = epath.Path(folder)
    self._folder = steps_lib.absolute(folder)
    # The first step that was saved by a manager, until it has been read back.
    self._unproven: dict[ocp.CheckpointManager, int | None] = {}
    for path in (self._folder, *self._parts()):
      files.refuse_links(path)
    with _saving(self._folder):
      self._states, self._best = map(_manager, self._parts(), (_KEEP, 1))
      if not files.is_remote(self._folder):
        # New folders are names in the folders above.
        for path in (self._folder, *self._folder.parents[:2]):
          files.sync(path)

  def _parts(self) -> list[epath.Path]:
    return [self._folder / 'checkpoints', self._folder / 'best']

  def latest_step(self) -> int | None:
    """Returns the last committed step, intact or not; None without any."""
    return self._states.latest_step()

  def save(self, step: int, tree: PyTree):
    """Saves a tree in the background; `close` waits for it."""
    with _saving(self._folder):
      # The state records how good the weights in best/ are, so they are saved
      # first.
      self._finish(self._best)
      # Copied to the host: the next step reuses the device's buffers.
      plain = flax.serialization.to_state_dict(jax.device_get(tree))
      self._save(self._states, step, packing.pack(plain))

  def _save(self, manager: ocp.CheckpointManager, step: int, tree: PyTree):
    self._finish(manager)
    _empty(manager.directory / _REMOVED)
    items = {
      steps_lib.ARRAYS: ocp.args.StandardSave(tree),
      steps_lib.CHECKSUMS: ocp.args.JsonSave(packing.checksums(step, tree)),
    }
    manager.save(step, args=ocp.args.Composite(**items), force=True)
    self._unproven.setdefault(manager, step)

  def _finish(self, manager: ocp.CheckpointManager):
    """Waits until a step is written; the first one is read back.

    What makes all of them unreadable is found before a training goes on.
    """
    manager.wait_until_finished()
    step = self._unproven.get(manager)
    if step is None:
      return
    self._unproven[manager] = None
    # Otherwise saving it has failed.
    if step in steps_lib.committed(manager.directory):
      try:
        steps_lib.read(manager.directory / str(step))
      except steps_lib.DamagedError as e:
        raise errors.UserError(
          f'what was just saved in {manager.directory / str(step)} cannot be '
          f'read back ({e}); use another --workdir, on another disk or with '
          'plain letters in its name'
        ) from e

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
        restored = _read_like(self._states.directory / str(step), like)
      except steps_lib.DamagedError as e:
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

  def repair_best(
    self,
    best: float,
    steps: Sequence[int],
    like: PyTree,
    weights_of: Callable[[PyTree], PyTree],
    ended: bool,
  ) -> float:
    """Saves the best weights again if they are lost and a checkpoint has them.

    Args:
      best: the best metric's value so far, infinity if there is none.
      steps: the steps whose validation gave that value. The weights are of the
        first one.
      like: gives the structure of a tree, as for `restore`.
      weights_of: returns the weights of such a tree.
      ended: whether the training has ended.

    Returns:
      `best` if there are intact weights now. Otherwise infinity, so that the
      next validation saves new ones.

    Raises:
      UserError: the weights are lost after the end of the training.
    """
    if math.isinf(best) or self.best_is_intact():
      return best
    folder = self._best.directory
    problem = 'no checkpoint holds them'
    if steps and steps[0] in self._states.all_steps():
      source = self._states.directory / str(steps[0])
      try:
        tree = _read_like(source, like)
      except steps_lib.DamagedError as e:
        problem = f'{source} is damaged as well ({errors.one_line(e)})'
      else:
        self.save_best(steps[0], weights_of(tree))
        self.wait()
        logging.warning('%s was lost. It is rebuilt from %s.', folder, source)
        return best
    of = f' of step {steps[0]}' if steps else ''
    if ended:
      raise errors.UserError(
        f'the weights{of} in {folder} are lost, and {problem}; restore them '
        f'from a copy, or move {self._folder} away and train again: the same '
        'command gives the same weights'
      )
    logging.warning(
      'The weights%s in %s are lost, and %s. The best of the next validations '
      'are kept instead.',
      of,
      folder,
      problem,
    )
    return math.inf

  def save_best(self, step: int, weights: PyTree):
    """Replaces the weights in `best/`."""
    with _saving(self._folder):
      self._finish(self._best)
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
      self._finish(self._best)
      self._finish(self._states)

  def close(self):
    """Waits until everything is written, and removes leftovers."""
    self.wait()
    for manager in (self._best, self._states):
      with _saving(self._folder):
        manager.close()
        _empty(manager.directory / _REMOVED)


def has_best(folder: epath.Path) -> bool:
  """Whether there are weights in `folder/best`."""
  return bool(steps_lib.committed(steps_lib.absolute(folder) / 'best'))


def best_id(folder: epath.Path) -> str:
  """Identifies the weights in `folder/best`; '' if there are none."""
  best = steps_lib.absolute(folder) / 'best'
  while steps := steps_lib.committed(best):
    checksums = best / str(steps[-1]) / steps_lib.CHECKSUMS / 'metadata'
    try:
      sums = checksums.read_bytes()
    except FileNotFoundError:
      if steps != steps_lib.committed(best):
        continue  # A training replaced them meanwhile.
      sums = b''
    return f'{steps[-1]}-{zlib.crc32(sums):08x}'
  return ''


def load_best(folder: epath.Path, like: PyTree | None = None) -> PyTree:
  """Loads the weights in `folder/best`: `{'params': ..., 'model_state': ...}`.

  Args:
    folder: the phase's folder.
    like: the shapes that the weights must have, if they are known.

  Raises:
    UserError: there are none, or they are damaged.
  """
  best = steps_lib.absolute(folder) / 'best'
  folder = best.parent
  while steps := steps_lib.committed(best):
    try:
      return steps_lib.read(best / str(steps[-1]), like)
    except steps_lib.DamagedError as e:
      if steps != steps_lib.committed(best):
        continue  # A training replaced them meanwhile.
      raise errors.UserError(
        f'the weights {best / str(steps[-1])} are damaged ({e}); run the same '
        'dermvq train: it rebuilds them if a checkpoint holds them. Otherwise '
        f'restore them from a copy, or move {folder} away and train again: the '
        'same command gives the same weights'
      ) from e
  raise errors.MissingError(
    f'{folder} holds no trained weights; run dermvq train '
    f'--config={folder.name} --workdir={folder.parent} first'
  )


def verify(
  folder: epath.PathLike, like: PyTree | None = None
) -> Iterator[tuple[str, int, str]]:
  """Verifies everything that is committed in a phase's folder.

  Args:
    folder: the phase's folder.
    like: the shapes that the weights in `best/` must have, if they are known.

  Yields:
    'checkpoints' or 'best', the step, and the problem with it ('': none).
  """
  for kind in ('checkpoints', 'best'):
    parent = steps_lib.absolute(folder) / kind
    for step in steps_lib.committed(parent):
      try:
        steps_lib.read(parent / str(step), like if kind == 'best' else None)
        sums = parent / str(step) / steps_lib.CHECKSUMS
        problem = '' if sums.exists() else f'{sums} is missing'
      except steps_lib.DamagedError as e:
        problem = str(e)
      if (parent / str(step)).exists():  # A training may have replaced it.
        yield kind, step, problem
