"""Reads prepared datasets, from their files only, without their builders.

TFDS is imported only when one is read: an export is used without it.
"""

import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from dermvq_jax import errors
from dermvq_jax.data import facts as facts_lib

# A features.json may name these; TFDS would import the module of others.
_FEATURES = 'tensorflow_datasets.core.features.'
# Every dataset of images or of codes has them.
_FIELDS = ('id', 'group', 'label')
_MAX_REASON = 200  # characters
# A file beside the files of TFDS: the result of `provenance.describe`.
MADE_BY = 'made_by.json'


class Records:
  """A split as a sequence of records; a damaged record is a UserError."""

  def __init__(self, source: Any, where: epath.Path):
    self._source = source
    self._where = where

  def __len__(self) -> int:
    return len(self._source)

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return (self[i] for i in range(len(self)))

  def __getitem__(self, index: int) -> dict[str, Any]:
    try:
      return self._source[index]
    except RuntimeError as e:  # ArrayRecord raises it for every problem.
      raise errors.UserError(
        f'record {index} of {len(self)} in {self._where} is unreadable '
        f'({errors.one_line(e)}); move that folder away, then prepare or '
        'encode again'
      ) from e


def _class_names(content: Any) -> list[str]:
  """The classes in a features.json, in JSON's or protocol buffers' spelling."""
  if isinstance(content, list):
    return [name for part in content for name in _class_names(part)]
  if not isinstance(content, dict):
    return []
  keys = ('pythonClassName', 'python_class_name')
  own = [str(content[k]) for k in keys if isinstance(content.get(k), str)]
  return own + _class_names(list(content.values()))


def _check_features(folder: epath.Path):
  """Raises UserError if reading the dataset would import other code."""
  file = folder / 'features.json'
  try:
    content = json.loads(file.read_text())
  except (OSError, ValueError, RecursionError) as e:
    raise errors.UserError(
      f'{file} is missing or damaged ({errors.one_line(e)}); move {folder} '
      'away, then prepare or encode again'
    ) from None
  # An old form, in which features could be hidden in strings.
  is_old = not isinstance(content, dict) or 'type' in content
  strange = [n for n in _class_names(content) if not n.startswith(_FEATURES)]
  if is_old or strange:
    raise errors.UserError(
      f'{file} was not written by dermvq: it would have '
      f'{(strange or ["other code"])[0]!r} imported; do not use this dataset'
    )


def _versions(folder: epath.Path) -> list[epath.Path]:
  """The complete versions of a dataset in its folder."""
  return [
    path
    for path in (folder.iterdir() if folder.is_dir() else ())
    # Other folders are incomplete, or put aside during another preparation.
    if re.fullmatch(r'\d+\.\d+\.\d+', path.name)
    and (path / 'dataset_info.json').exists()
  ]


def _builder(dataset: str, data_dir: epath.Path) -> Any:
  """Opens a dataset: a `tfds.core.DatasetBuilder`."""
  if not re.fullmatch('[a-z0-9_]+/[a-z0-9_]+', dataset):
    raise errors.UserError(f'dataset {dataset!r} is not of the form name/size')
  name, _, config = dataset.partition('/')
  versions = _versions(data_dir / name / config)
  if not versions:
    command = f'prepare --dataset={dataset}'
    if name == 'codes':
      _, _, copies = config.partition('_x')
      command = 'encode --workdir=WORKDIR'
      command += f' --copies={copies}' if copies else ''
    raise errors.MissingError(
      f'{dataset} is not prepared in {data_dir}; run dermvq {command} '
      f'--data_dir={data_dir}'
    )
  # Versions are x.y.z; the newest counts.
  newest = max(versions, key=lambda p: tuple(map(int, p.name.split('.'))))
  _check_features(newest)
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(newest)
    _ = builder.info.metadata == {}  # TFDS reads its file only on access.
    for field in (*_FIELDS, 'codes' if name == 'codes' else 'image'):
      _ = builder.info.features[field]
    _ = list(builder.info.features['label'].names)
    return builder
  except Exception as e:  # JSON and protocol buffers raise many kinds.
    raise _damaged(dataset, newest, f'{type(e).__name__}: {e}') from e


def _damaged(dataset: str, folder: epath.Path, reason: str) -> errors.UserError:
  return errors.UserError(
    f'the description of {dataset} in {folder} is damaged '
    f'({errors.one_line(reason)[:_MAX_REASON]}); move that folder away, then '
    'prepare or encode again'
  )


class Dataset:
  """A prepared dataset; its files are read when they are needed.

  Attributes:
    name: 'name/config', for example 'ham10000/64' or 'codes/<digest>'.
    data_dir: the local folder of prepared datasets.
  """

  def __init__(self, name: str, data_dir: epath.PathLike):
    self.name = name
    self.data_dir = epath.Path(data_dir).expanduser()

  @functools.cached_property
  def _builder(self) -> Any:
    return _builder(self.name, self.data_dir)

  def check(self):
    """Raises UserError unless the dataset is prepared and can be described."""
    _ = self.facts

  @functools.cached_property
  def facts(self) -> dict[str, Any]:
    """What models must know about the dataset, as JSON values.

    Returns:
      `dataset` (its name), `class_names`, `conditions` (name to the names of
      its values; `label` is always there), `num_train`, `num_val`, `num_test`,
      `image_size` if it has images, and what the dataset's own metadata says,
      for example `train_variance`, `codebook_size`, `grid`. `fingerprint` of
      images has a digest of the records of each split, in order: ids, labels,
      groups, conditions and pixels. That of the images of codes is
      `images_fingerprint`.

    Raises:
      UserError: the dataset is not prepared, its description is damaged, or an
        earlier version prepared it.
    """
    info = self._builder.info
    class_names = list(info.features['label'].names)
    metadata = info.metadata or {}
    further = isinstance(metadata, dict) and metadata.get('conditions', {})
    if not isinstance(further, dict):
      raise self._damaged('what metadata.json holds has no names')
    metadata = {k: v for k, v in metadata.items() if k != 'conditions'}
    conditions = {'label': class_names, **further}
    if 'levels' in metadata:  # Codes that dermvq_jax 0.1.0 wrote.
      metadata['num_levels'] = metadata.pop('levels')
    facts = {
      'dataset': self.name,
      'class_names': class_names,
      'conditions': conditions,
      **{f'num_{k}': info.splits[k].num_examples for k in info.splits},
    }
    facts |= {k: v for k, v in metadata.items() if k not in facts}
    if 'image' in info.features:
      if not metadata.get('fingerprint'):
        raise errors.UserError(
          f'{self.name} in {self._builder.data_path} has no fingerprint of its '
          'images, because an earlier version prepared it; run the command '
          'that prepared it again, with --overwrite'
        )
      facts['image_size'] = info.features['image'].shape[0]
    try:
      facts_lib.check(facts)
    except errors.UserError as e:
      raise self._damaged(str(e)) from None
    return facts

  def _damaged(self, reason: str) -> errors.UserError:
    return _damaged(self.name, self._builder.data_path, reason)

  @property
  def description(self) -> str:
    """What the dataset's builder says about it, in one paragraph.

    Raises:
      UserError: the dataset is not prepared.
    """
    return ' '.join(self._builder.info.description.split())

  @property
  def made_by(self) -> dict[str, Any]:
    """`provenance.describe` of its preparation; empty if unknown."""
    try:
      said = json.loads((self._builder.data_path / MADE_BY).read_text())
      return {key: said[key] for key in ('command', 'date', 'versions')}
    except (
      errors.UserError,
      OSError,
      ValueError,
      TypeError,
      KeyError,
      RecursionError,
    ):
      return {}  # There is no such file, or an earlier version wrote it.

  def split(self, name: str, *, decode_images: bool = True) -> 'Records':
    """Returns a split as a sequence of records.

    Args:
      name: 'train', 'val' or 'test'.
      decode_images: whether images are decoded; otherwise they are PNG bytes.

    Returns:
      A sequence, for example for `grain.MapDataset.source`. Its items are
      dictionaries with `image` uint8 `[size, size, 3]` or `codes` int32
      `[h, w]`, `label` int, `id` and `group` bytes, and further fields. A
      damaged record raises UserError when it is read.

    Raises:
      UserError: the dataset is not prepared, its description is damaged, or it
        has no such split.
    """
    builder = self._builder
    if name not in builder.info.splits:
      raise errors.UserError(
        f'{self.name} has no split {name!r}; choose one of: '
        + ', '.join(builder.info.splits)
      )
    decoders = None
    if not decode_images and 'image' in builder.info.features:
      import tensorflow_datasets as tfds

      decoders = {'image': tfds.decode.SkipDecoding()}
    try:
      source = builder.as_data_source(name, decoders=decoders)
    except Exception as e:  # TFDS raises many kinds.
      raise self._damaged(f'{type(e).__name__}: {e}') from e
    return Records(source, builder.data_path)

  def labels(self, split: str) -> np.ndarray:
    """Labels of a split, int32 `[N]`; its images are not decoded.

    Raises:
      UserError: the dataset is not prepared, or it has no such split.
    """
    return self.values(split, ['label'])['label']

  def values(self, split: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Values of conditions of a split, int32 `[N]` each.

    Args:
      split: 'train', 'val' or 'test'; its images are not decoded.
      names: names of conditions, of which `label` is one.

    Raises:
      UserError: the dataset is not prepared, or it has no such split.
    """
    records = self.split(split, decode_images=False)
    rows = [[record[name] for name in names] for record in records]
    columns = np.array(rows, np.int32).reshape(len(rows), len(names))
    return {name: columns[:, i] for i, name in enumerate(names)}


def names_in(data_dir: epath.PathLike, prefix: str) -> list[str]:
  """Names of the prepared datasets in `data_dir` that start with `prefix`.

  Args:
    data_dir: the local folder of prepared datasets.
    prefix: for example 'codes/<digest>'.

  Returns:
    Names like 'codes/<digest>_x4', in alphabetical order.
  """
  name, _, config = prefix.partition('/')
  folder = epath.Path(data_dir).expanduser() / name
  if not folder.is_dir():
    return []
  configs = sorted(p.name for p in folder.iterdir())
  return [
    f'{name}/{c}'
    for c in configs
    if c.startswith(config) and _versions(folder / c)
  ]
