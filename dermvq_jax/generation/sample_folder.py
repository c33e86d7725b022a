"""The folder of new images while it is made, block by block.

`samples.json` says what it will hold. `blocks` has a file for each block whose
images are on the disk; it says which they are, so whoever goes on after a kill
makes the other blocks only. At the end `metadata.csv` and `sheet.png` are made
from these files, and they are removed.
"""

import collections
import dataclasses
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from etils import epath
from PIL import Image

from dermvq_jax import __version__, errors, files
from dermvq_jax.data import images
from dermvq_jax.generation import requests, tables

# In the text chunks of every image.
MARKS = {
  'Synthetic': 'true',
  'Description': 'Synthetic image, made by a model. Not a patient, not for '
  'diagnosis.',
  'Software': f'dermvq_jax {__version__}',
}
_SHEET_COLUMNS = 16
_RECORD = 'samples.json'


@dataclasses.dataclass(frozen=True)
class Block:
  """Which images of a block were kept, and how many were not.

  Attributes:
    kept: positions in the list of groups, and ids, `[N, 2]`.
    drawn: how many images were drawn.
    dropped: how many of them were dropped, by reason.
  """

  kept: list[tuple[int, int]]
  drawn: int
  dropped: dict[str, int]


class SampleFolder:
  """A folder of new images that is not complete yet."""

  def __init__(
    self,
    folder: epath.Path,
    groups: Sequence[requests.Group],
    class_names: Sequence[str],
    in_shards: bool,
  ):
    """Opens a folder.

    Args:
      folder: the folder, which exists.
      groups: what is asked for.
      class_names: the names of the labels.
      in_shards: whether each block is a .tar file.
    """
    self._folder = folder
    self._groups = groups
    self._class_names = class_names
    self._in_shards = in_shards
    self._stems = tables.file_stems(class_names)

  def start(self, plan: dict[str, Any]):
    """Writes what will be made, as JSON values.

    Raises:
      UserError: something else was begun in this folder.
    """
    file = self._folder / _RECORD
    if not file.exists():
      files.write_text(file, _as_text(plan))
      return
    begun = self._record()
    # Through JSON, because tuples become lists.
    plan = json.loads(_as_text(plan))
    differing = [k for k in plan if begun.get(k) != plan[k]]
    if differing:
      raise errors.UserError(
        f'{self._folder} holds images of another command, which differs in '
        f'{", ".join(differing)}; run that one, remove the folder, or give '
        'another --out'
      )

  def _record(self) -> dict[str, Any]:
    file = self._folder / _RECORD
    try:
      found = json.loads(file.read_text())
      if not isinstance(found, dict):
        raise ValueError('not an object')
    except (ValueError, RecursionError) as e:
      raise errors.UserError(
        f'{file} is damaged ({errors.one_line(e)}); remove {self._folder}'
      ) from e
    return found

  @property
  def is_complete(self) -> bool:
    """Whether all has been written and only the name is missing."""
    return 'images' in self._record()

  def block_path(self, index: int) -> epath.Path:
    """The file that says which images of a block there are."""
    return self._folder / 'blocks' / f'{index:07d}.json'

  def block(self, index: int) -> Block:
    """Reads about a block that is there."""
    path = self.block_path(index)
    try:
      return Block(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as e:
      raise errors.UserError(
        f'{path} is missing or damaged ({errors.one_line(e)}); remove it, and '
        'run the same command again'
      ) from e

  def write_block(
    self,
    index: int,
    drawn: Iterable[tuple[int, np.ndarray, list[tuple[int, int]], Mapping]],
  ):
    """Writes the images of a block, and then says that they are there.

    Args:
      index: the number of the block.
      drawn: parts of the block: the number of images drawn, those that were
        kept, uint8 `[N, H, W, 3]`, their groups and ids, and how many were
        dropped, by reason.
    """
    kept, number, dropped = [], 0, collections.Counter()

    def written() -> Iterator[tuple[str, bytes]]:
      nonlocal number
      for count, new, which, rejected in drawn:
        number += count
        dropped.update(rejected)
        for image, (group, id_) in zip(new, which):
          kept.append((group, id_))
          name = self._class_names[self._groups[group].label]
          png = images.as_png(image, MARKS | {'Label': name})
          yield self._file(group, id_), png

    if self._in_shards:
      with files.replacing(self._folder / _shard(index)) as file:
        _write_tar(file, written())
    else:
      paths = []
      for name, png in written():
        path = self._folder / name
        files.make_folder(path.parent)
        path.write_bytes(png)
        paths.append(path)
      files.sync_new(paths)
    path = self.block_path(index)
    files.make_folder(path.parent)
    block = Block(kept, number, dict(dropped))
    files.write_text(path, json.dumps(dataclasses.asdict(block)))

  def _file(self, group: int, id_: int) -> str:
    stem = self._stems[self._groups[group].label]
    return f'{stem}/synthetic_{stem}_{id_:05d}.png'

  def finish(
    self,
    num_blocks: int,
    plan: dict[str, Any],
    columns: dict[str, Any],
    pictures: Mapping[str, np.ndarray],
  ) -> dict[str, Any]:
    """Writes `metadata.csv`, `sheet.png` and `samples.json`.

    Args:
      num_blocks: how many blocks there are.
      plan: as in `start`.
      columns: further columns of the table, with the same values in all rows
        but for the conditions of groups.
      pictures: further pictures by name, uint8 `[H, W, 3]`. They have files of
        their own and are the first row of the sheet.

    Returns:
      What `samples.json` says beside the plan.
    """
    shown = collections.defaultdict(list)
    found = {'images': 0, 'drawn': 0, 'dropped': collections.Counter()}

    def rows() -> Iterator[dict[str, Any]]:
      for index in range(num_blocks):
        block = self.block(index)
        found['images'] += len(block.kept)
        found['drawn'] += block.drawn
        found['dropped'].update(block.dropped)
        for group, id_ in block.kept:
          asked, file = self._groups[group], self._file(group, id_)
          if len(shown[asked.label]) < _SHEET_COLUMNS:
            shown[asked.label].append(self._read(index, file))
          row = {'image': file.rpartition('/')[2]}
          row |= {'label': self._class_names[asked.label], 'synthetic': 'true'}
          row |= {'id': id_} | columns | asked.where
          yield row | ({'shard': _shard(index)} if self._in_shards else {})

    tables.write_csv(self._folder / 'metadata.csv', rows())
    for name, picture in pictures.items():
      images.save_png(self._folder / f'{name}.png', picture)
    first_row = [np.stack([*pictures.values()])] if pictures else []
    sheet = images.sheet([*first_row, *map(np.stack, shown.values())])
    images.save_png(self._folder / 'sheet.png', sheet, MARKS)
    found['dropped'] = dict(found['dropped'])
    files.write_text(self._folder / _RECORD, _as_text(plan | found))
    return found

  def _read(self, index: int, file: str) -> np.ndarray:
    """Reads an image of a block, uint8 `[H, W, 3]`."""
    if self._in_shards:
      path = self._folder / _shard(index)
      with path.open('rb') as f, tarfile.open(fileobj=f) as shard:
        content = shard.extractfile(file).read()
    else:
      content = (self._folder / file).read_bytes()
    with Image.open(io.BytesIO(content)) as image:
      return np.asarray(image)

  def remove(self):
    """Removes the folder."""
    self._folder.rmtree()

  def remove_blocks(self):
    """Removes what only an incomplete folder needs."""
    folder = self.block_path(0).parent
    if folder.exists():
      folder.rmtree()


def _shard(index: int) -> str:
  return f'synthetic_{index:06d}.tar'


def _as_text(record: dict[str, Any]) -> str:
  return json.dumps(record, indent=2) + '\n'


def _write_tar(file: BinaryIO, content: Iterable[tuple[str, bytes]]):
  """Writes files into an archive that has no times, owners or machines."""
  with tarfile.open(fileobj=file, mode='w') as archive:
    for name, data in content:
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
