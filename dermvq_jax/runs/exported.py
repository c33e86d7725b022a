"""The weights of an exported phase: one file of safetensors, without orbax.

An export may come from a stranger. Its file can hold nothing but arrays, and
what it says about them is compared with the config before they are read.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from dermvq_jax import errors, files
from dermvq_jax.runs import hub, packing

PyTree = Any
_FILE = 'weights.safetensors'
_METADATA = 'dermvq_jax'  # JSON; several keys would come in a random order
_MAX_HEADER = _MAX_CONFIG = 2**22  # bytes


def is_there(folder: epath.Path) -> bool:
  """Whether a phase's folder is an exported one."""
  path = folder / _FILE
  return path.exists() if files.is_remote(path) else os.path.lexists(path)


def check_file(path: epath.Path, most: int = _MAX_CONFIG):
  """Checks a file of an exported phase before it is read.

  Args:
    path: the file.
    most: the bytes that it may have.

  Raises:
    UserError: it, or its folder, is a link, or it is too large.
  """
  for link in () if files.is_remote(path) else (path.parent, path):
    if os.path.islink(link) and not hub.is_cached(link):
      raise errors.UserError(
        f'{link} is a link, and an export has none; replace it by a copy of '
        'what it leads to, if you trust that'
      )
  if not path.is_file():
    raise _refused(path, 'it is no file')
  if (size := path.stat().length) > most:
    raise _refused(path, f'it has {size:,} bytes, and may have {most:,}')


def _refused(path: epath.Path, reason: str) -> errors.UserError:
  return errors.UserError(
    f'{path} is damaged, or dermvq did not write it ({reason}); get the '
    'export again'
  )


def _by_name(tree: PyTree) -> dict[str, Any]:
  """The arrays of a tree, with the names that checksums have."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {packing.name_of(path): leaf for path, leaf in leaves}


def save(folder: epath.Path, weights: PyTree, weights_id: str):
  """Writes weights into an existing folder.

  Args:
    folder: the phase's folder.
    weights: `{'params': ..., 'model_state': ...}`, NumPy arrays.
    weights_id: what `read_id` returns.
  """
  said = {'id': weights_id, **packing.checksums(0, weights)}
  arrays = {k: np.array(v, order='C') for k, v in _by_name(weights).items()}
  content = safetensors.numpy.save(arrays, {_METADATA: json.dumps(said)})
  (folder / _FILE).write_bytes(content)


@contextlib.contextmanager
def _open(folder: epath.Path, most: int = 2**62) -> Iterator[Any]:
  """Opens the file of weights; no array is read yet.

  Args:
    folder: the phase's folder.
    most: the bytes that it may have.

  Raises:
    UserError: it is damaged, or too large.
  """
  path = folder / _FILE
  check_file(path, most)
  try:
    with _local(path) as local, safetensors.safe_open(local, 'np') as opened:
      yield opened
  except safetensors.SafetensorError as e:
    raise _refused(path, errors.one_line(e)) from e


@contextlib.contextmanager
def _local(path: epath.Path) -> Iterator[str]:
  """The path of a file that may be in a bucket, or of a copy for a while."""
  if not files.is_remote(path):
    yield os.fspath(path)
    return
  with tempfile.TemporaryDirectory(prefix='dermvq_') as folder:
    copy = os.path.join(folder, _FILE)
    epath.Path(copy).write_bytes(path.read_bytes())
    yield copy


def _said(opened: Any, folder: epath.Path) -> dict[str, Any]:
  """What `save` wrote beside the arrays."""
  try:
    said = json.loads((opened.metadata() or {})[_METADATA])
    if isinstance(said['id'], str) and isinstance(said['crc32'], dict):
      return said
  except (KeyError, TypeError, ValueError, RecursionError):
    pass
  raise _refused(folder / _FILE, 'its checksums are missing')


def read_id(folder: epath.Path) -> str:
  """The id that the weights had in their run.

  Raises:
    UserError: the file is damaged.
  """
  with _open(folder) as opened:
    return _said(opened, folder)['id']


def _type(dtype: np.dtype) -> str:
  """The name of a dtype in safetensors."""
  return f'{dtype.kind.upper()}{8 * dtype.itemsize}'


def _read_arrays(opened: Any) -> dict[str, np.ndarray]:
  names = opened.keys()
  return {name: opened.get_tensor(name) for name in names}


def load(folder: epath.Path, like: PyTree) -> PyTree:
  """Reads weights: `{'params': ..., 'model_state': ...}`.

  Args:
    folder: the phase's folder.
    like: a tree of the shapes that they must have.

  Raises:
    UserError: they are of other names, types or shapes, or damaged.
  """
  expected = {
    name: (_type(np.dtype(array.dtype)), list(array.shape))
    for name, array in _by_name(like).items()
  }
  most = _MAX_HEADER + sum(
    np.dtype(array.dtype).itemsize * int(np.prod(array.shape, dtype=object))
    for array in _by_name(like).values()
  )
  path = folder / _FILE
  with _open(folder, most) as opened:
    names = opened.keys()
    slices = {name: opened.get_slice(name) for name in names}
    found = {k: (s.get_dtype(), s.get_shape()) for k, s in slices.items()}
    for name in sorted(found.keys() | expected.keys()):
      is_, must_be = (
        '{} {}'.format(*arrays[name]) if name in arrays else 'missing'
        for arrays in (found, expected)
      )
      if is_ != must_be:
        raise _refused(
          path, f'{name} is {is_}, but after its config it would be {must_be}'
        )
    saved = _said(opened, folder)
    flat = _read_arrays(opened)
  # A tree of names would lack empty branches.
  tree = jax.tree_util.tree_map_with_path(
    lambda where, _: flat[packing.name_of(where)], like
  )
  del saved['id']
  if problem := packing.difference(saved, packing.checksums(0, tree)):
    raise _refused(path, problem)
  return tree
