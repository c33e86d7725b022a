"""Trees of arrays as one array of bytes, and the checksums of arrays."""

import zlib
from typing import Any

import flax
import jax
import numpy as np

PyTree = Any
_PACKED = 'msgpack'


def pack(tree: PyTree) -> dict[str, np.ndarray]:
  """Packs a tree of dicts and arrays into one array, uint8 `[N]`."""
  packed = flax.serialization.msgpack_serialize(tree)
  return {_PACKED: np.frombuffer(packed, np.uint8)}


def unpack(tree: PyTree) -> PyTree:
  """Unpacks a tree; a tree that was not packed is returned unchanged."""
  if list(tree) != [_PACKED]:
    return tree
  return flax.serialization.msgpack_restore(tree[_PACKED].tobytes())


def name_of(path: Any) -> str:
  """The name of an array, such as 'params/encoder/bias', from a key path."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def checksums(step: int, tree: PyTree) -> dict[str, Any]:
  """Returns the CRC-32 of each array, with its type and shape, for JSON."""
  sums = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    start = zlib.crc32(f'{array.dtype}{array.shape}'.encode())
    data = array.reshape(-1).view(np.uint8)
    sums[name_of(path)] = zlib.crc32(data, start)
  return {'step': step, 'crc32': sums}


def difference(saved: Any, found: dict[str, Any]) -> str:
  """Says how two results of `checksums` differ; '' if they are equal.

  Args:
    saved: was read from a file, so it may be anything.
    found: belongs to the arrays beside that file.
  """
  if saved == found:
    return ''
  if not isinstance(saved, dict) or not isinstance(saved.get('crc32'), dict):
    return 'its file of checksums is damaged'
  differing = [
    name
    for name in sorted(saved['crc32'].keys() | found['crc32'].keys())
    if saved['crc32'].get(name) != found['crc32'].get(name)
  ]
  if differing:
    return (
      f'{len(differing)} of {len(found["crc32"])} arrays differ from what was '
      f'saved, first {differing[0]}'
    )
  return f'it was saved as step {saved.get("step")}'
