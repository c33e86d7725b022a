"""The steps that are committed in a folder, as orbax writes them.

What a step says about its arrays is checked before they are read: a file of
some kilobytes can describe arrays of gigabytes.
"""

import contextlib
import glob
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import flax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from dermvq_jax import errors, files
from dermvq_jax.runs import packing

PyTree = Any
ARRAYS = 'default'  # orbax's name for a step's only item
CHECKSUMS = 'checksums'
_MAX_REASON = 200  # characters; tensorstore adds pages to its reasons
# Trained weights can hardly be compressed. Arrays that are larger than this,
# and so many times larger than their files, were not saved by a training.
_SMALL = 2**28  # bytes
_MAX_RATIO = 8


class DamagedError(Exception):
  """A checkpoint differs from what was saved; the message says where."""


class _LiteralPath(type(epath.Path('/'))):
  """A local path whose own `[`, `*` and `?` are no patterns.

  orbax finds what it has written by `glob`. It derives its paths from the one
  that it is given, so they are of this class as well.
  """

  def glob(self, pattern: str) -> Iterator[epath.Path]:
    """Yields everything in this folder that fits a pattern."""
    for found in glob.glob(os.path.join(glob.escape(str(self)), pattern)):
      yield type(self)(found)


def absolute(folder: epath.PathLike) -> epath.Path:
  """An absolute path, as orbax needs; `resolve` would take gs:// as local.

  Raises:
    UserError: orbax or tensorstore would take the path as another one.
  """
  folder = epath.Path(folder)
  if files.is_remote(folder):
    return folder
  folder = _LiteralPath(folder.resolve())
  for name in folder.parts:
    if '\\' in name or name.endswith(':') or not errors.is_utf8(name):
      raise errors.UserError(
        f'checkpoints cannot be kept in {errors.printable(str(folder))}, as '
        'the name of a folder has a backslash, ends with a colon or is not '
        'UTF-8; rename it, or give another --workdir'
      )
  return folder


def committed(folder: epath.Path) -> list[int]:
  """Lists the committed steps, oldest first; writes nothing, unlike orbax."""
  return sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []


def _shape(metadata: Any) -> str:
  """Writes a type and a shape, as 'float32 [32, 8]'."""
  return f'{np.dtype(metadata.dtype)} {list(metadata.shape)}'


def _num_bytes(metadata: Any) -> int:
  """How much memory it takes to read an array: a chunk is read whole."""
  size = np.dtype(metadata.dtype).itemsize
  chunk = metadata.storage.chunk_shape if metadata.storage else ()
  return size * max(math.prod(metadata.shape), math.prod(chunk or ()))


def _stored_bytes(folder: epath.Path) -> int:
  """The size of all files in a folder; `rglob` is not for buckets."""
  return sum(
    _stored_bytes(path) if path.is_dir() else path.stat().length
    for path in folder.iterdir()
  )


def _check_arrays(folder: epath.Path, described: PyTree, like: PyTree | None):
  """Compares the descriptions of arrays with what they should be.

  Raises:
    DamagedError: an array is not as in `like`, or all of them would take far
      more memory than their files.
  """
  flatten = flax.traverse_util.flatten_dict
  found = flatten(described, sep='/')
  expected = found if like is None else flatten(like, sep='/')
  for name in sorted(found.keys() | expected.keys()):
    is_, must_be = (
      _shape(arrays[name]) if name in arrays else 'missing'
      for arrays in (found, expected)
    )
    if is_ != must_be:
      raise DamagedError(
        f'{name} is {is_}, but after its config it would be {must_be}'
      )
  needed = sum(map(_num_bytes, found.values()))
  if needed <= _SMALL:
    return
  stored = _stored_bytes(folder)
  if needed > _MAX_RATIO * stored:
    raise DamagedError(
      f'its {stored:,} bytes would take {needed:,} bytes of memory'
    )


def read(folder: epath.Path, like: PyTree | None = None) -> PyTree:
  """Reads the tree of NumPy arrays in a step's folder.

  Args:
    folder: the step's folder.
    like: a tree of the shapes that the arrays must have, if it is known.

  Raises:
    DamagedError: it can't be read, or it is not what was saved.
  """
  try:
    # `ocp.StandardCheckpointer` would warn of a file that no step has.
    with contextlib.closing(ocp.StandardCheckpointHandler()) as reader:
      described = reader.metadata(folder / ARRAYS).tree
      _check_arrays(folder / ARRAYS, described, like)
      arrays = reader.restore(folder / ARRAYS, args=ocp.args.StandardRestore())
    tree = packing.unpack(arrays)
    file = folder / CHECKSUMS / 'metadata'
    has_sums = file.parent.exists()
    saved = json.loads(file.read_text()) if has_sums else None
  except DamagedError:
    raise
  except Exception as e:  # orbax and tensorstore raise many kinds.
    reason = errors.one_line(e)[:_MAX_REASON]
    raise DamagedError(f'unreadable: {reason}') from e
  if not has_sums:
    logging.warning('%s has no checksums: damage cannot be found.', folder)
    return tree
  found = packing.checksums(int(folder.name), arrays)
  if problem := packing.difference(saved, found):
    raise DamagedError(problem)
  return tree
