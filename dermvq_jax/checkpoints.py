"""Checkpoints on disk; the only module that imports orbax.

A phase's folder holds `checkpoints/`, the latest states to go on from, and
`best/`, the weights to evaluate and sample with.
"""

from typing import Any

import flax
import jax
import orbax.checkpoint as ocp
from etils import epath

from dermvq_jax import errors

PyTree = Any
_KEEP = 2
_ITEM = 'default'  # orbax's name for a step's only item


def _manager(folder: epath.Path, keep: int) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep, cleanup_tmp_directories=True
  )
  return ocp.CheckpointManager(folder, options=options)


def _best_step(folder: epath.Path) -> int | None:
  """The step of the committed weights in `folder/best`."""
  best = folder / 'best'
  # A manager would tidy up what a training may be writing at this moment.
  steps = ocp.utils.checkpoint_steps(best) if best.exists() else []
  return max(steps, default=None)


class Checkpoints:
  """Saves and restores one phase. A step counts only when committed."""

  def __init__(self, folder: epath.Path):
    folder = epath.Path(folder).resolve()
    self._states = _manager(folder / 'checkpoints', _KEEP)
    self._best = _manager(folder / 'best', 1)

  def latest_step(self) -> int | None:
    """The last committed step; None if there is none."""
    return self._states.latest_step()

  def save(self, step: int, tree: PyTree):
    """Saves a tree in the background; `close` waits for it."""
    # The state tells how good the weights in best/ are, so they come first.
    self._best.wait_until_finished()
    # Host copies: the device buffers are donated to the next step.
    plain = flax.serialization.to_state_dict(jax.device_get(tree))
    self._states.save(step, args=ocp.args.StandardSave(plain))

  def restore(self, like: PyTree) -> PyTree:
    """The latest tree, as NumPy arrays in the structure of `like`."""
    plain = flax.serialization.to_state_dict(jax.device_get(like))
    restored = self._states.restore(
      self._states.latest_step(), args=ocp.args.StandardRestore(plain)
    )
    return flax.serialization.from_state_dict(like, restored)

  def save_best(self, step: int, weights: PyTree):
    """Replaces the weights in `best/`."""
    self._best.wait_until_finished()
    # A resumed run comes again to steps whose weights may be there already.
    for old in self._best.all_steps():
      if old >= step:
        self._best.delete(old)
    self._best.save(
      step, args=ocp.args.StandardSave(jax.device_get(weights)), force=True
    )

  def close(self):
    """Waits for what is being written."""
    for manager in (self._states, self._best):
      manager.wait_until_finished()
      manager.close()


def has_best(folder: epath.Path) -> bool:
  """Whether there are weights in `folder/best`."""
  return _best_step(epath.Path(folder).resolve()) is not None


def load_best(folder: epath.Path) -> PyTree:
  """The weights in `folder/best`: `{'params': ..., 'model_state': ...}`.

  Raises:
    UserError: there are none.
  """
  folder = epath.Path(folder).resolve()
  step = _best_step(folder)
  if step is None:
    raise errors.UserError(
      f'{folder} holds no trained weights; run dermvq train '
      f'--config={folder.name} --workdir={folder.parent} first'
    )
  with ocp.StandardCheckpointer() as reader:
    return reader.restore(folder / 'best' / str(step) / _ITEM)
