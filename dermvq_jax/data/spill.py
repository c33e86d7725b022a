"""Bounds the memory in which TFDS orders the records of a split.

TFDS keeps up to 1 GB of records in memory to write them in the order of a hash.
If there are more it puts them into 1,000 files first, which needs TensorFlow.
"""

import contextlib
import pathlib
import struct
from collections.abc import Iterator

from tensorflow_datasets.core import shuffle

_MAX_BYTES = 32 << 20
# All are open at the same time, and each is read into memory.
_NUM_BUCKETS = 256
_KEY_BYTES = 16
_HEAD = struct.Struct(f'>{_KEY_BYTES}sQ')  # the key and the number of bytes


class _Bucket:
  """Records with similar keys, in a file; has the methods of TFDS' buckets."""

  def __init__(self, path):
    self._path = pathlib.Path(path)
    self._file = None
    self._length = 0
    self.size = 0

  def __len__(self) -> int:
    return self._length

  def add(self, key: int, data: bytes):
    """Adds a record."""
    if self._file is None:
      self._file = self._path.open('w+b')
    self._file.write(_HEAD.pack(key.to_bytes(_KEY_BYTES, 'big'), len(data)))
    self._file.write(data)
    self._length += 1
    self.size += len(data)

  def read_values(self) -> Iterator[tuple[int, bytes]]:
    """Yields keys and records."""
    if self._file is None:
      return
    self._file.seek(0)
    while head := self._file.read(_HEAD.size):
      key, count = _HEAD.unpack(head)
      yield int.from_bytes(key, 'big'), self._file.read(count)

  def del_file(self):
    """Removes the file."""
    if self._file is not None:
      self._file.close()
      self._path.unlink()


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
  """Lets TFDS keep few records in memory; their order stays the same."""
  changes = {
    'MAX_MEM_BUFFER_SIZE': _MAX_BYTES,
    'BUCKETS_NUMBER': _NUM_BUCKETS,
    '_Bucket': _Bucket,
  }
  before = {name: getattr(shuffle, name) for name in changes}
  for name, value in changes.items():
    setattr(shuffle, name, value)
  try:
    yield
  finally:
    for name, value in before.items():
      setattr(shuffle, name, value)
