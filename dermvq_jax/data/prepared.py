"""Reads prepared datasets: from their files alone, without their code."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from dermvq_jax import errors

# Of what a features.json may name; TFDS imports the module of anything else.
_FEATURES = 'tensorflow_datasets.core.features.'
# Beside TFDS' own files: what `provenance.describe` said.
MADE_BY = 'made_by.json'


class _Records:
  """A split's examples; damaged files are the user's to mend."""

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
    except RuntimeError as e:  # ArrayRecord's for all that is wrong.
      raise errors.UserError(
        f'record {index} of {len(self)} in {self._where} is unreadable '
        f'({errors.one_line(e)}); move that folder away, then prepare or '
        'encode again'
      ) from e


def _class_names(content: Any) -> list[str]:
  """All that a features.json names in JSON's or protocol buffers' spelling."""
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
  except (OSError, ValueError) as e:
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


def _builder(
  dataset: str, data_dir: epath.PathLike
) -> tfds.core.DatasetBuilder:
  if not re.fullmatch('[a-z0-9_]+/[a-z0-9_]+', dataset):
    raise errors.UserError(f'dataset {dataset!r} is not of the form name/size')
  name, _, config = dataset.partition('/')
  folder = epath.Path(data_dir).expanduser() / name / config
  versions = [
    path
    for path in (folder.iterdir() if folder.is_dir() else ())
    # Others are incomplete, or put aside while they are prepared again.
    if re.fullmatch(r'\d+\.\d+\.\d+', path.name)
    and (path / 'dataset_info.json').exists()
  ]
  if not versions:
    command = f'prepare --dataset={dataset}'
    if name == 'codes':
      _, _, copies = config.partition('_x')
      command = 'encode --workdir=WORKDIR'
      command += f' --copies={copies}' if copies else ''
    raise errors.UserError(
      f'{dataset} is not prepared in {data_dir}; run dermvq {command} '
      f'--data_dir={data_dir}'
    )
  # Versions are x.y.z; the newest counts.
  newest = max(versions, key=lambda p: tuple(map(int, p.name.split('.'))))
  _check_features(newest)
  try:
    builder = tfds.builder_from_directory(newest)
    _ = builder.info.metadata == {}  # Its file is read only when it is asked.
    return builder
  except Exception as e:  # JSON and protocol buffers have many.
    raise errors.UserError(
      f'the description of {dataset} in {newest} is damaged '
      f'({errors.one_line(e)}); move that folder away, then prepare or encode '
      'again'
    ) from e


def describe(dataset: str, data_dir: epath.PathLike) -> dict[str, Any]:
  """What models must know of a dataset, as JSON values.

  Args:
    dataset: 'name/config', for example 'ham10000/64' or 'codes/<digest>'.
    data_dir: where it was prepared.

  Returns:
    `dataset`, `class_names`, `num_train`, `num_val`, `num_test`, of images
    `image_size`, and what the dataset's own metadata says, for example
    `train_variance`, `codebook_size`, `grid`.

  Raises:
    UserError: the dataset is not prepared.
  """
  info = _builder(dataset, data_dir).info
  facts = {
    'dataset': dataset,
    'class_names': list(info.features['label'].names),
    **{f'num_{k}': info.splits[k].num_examples for k in info.splits},
    **(info.metadata or {}),
  }
  if 'image' in info.features:
    facts['image_size'] = info.features['image'].shape[0]
  return facts


def open_split(
  dataset: str,
  data_dir: epath.PathLike,
  split: str,
  *,
  decode_images: bool = True,
):
  """Returns a split as a sequence of examples.

  Args:
    dataset: 'name/config', for example 'ham10000/64' or 'codes/<digest>'.
    data_dir: where it was prepared.
    split: 'train', 'val' or 'test'.
    decode_images: whether images are decoded; else they are PNG bytes.

  Returns:
    A sequence, for example for `grain.MapDataset.source`; its items are
    dictionaries with `image` uint8 `[size, size, 3]` or `codes` int32
    `[h, w]`, `label` int, `id` and `group` bytes, and extra features. A
    damaged record raises UserError when it is read.

  Raises:
    UserError: the dataset is not prepared, or it has no such split.
  """
  builder = _builder(dataset, data_dir)
  if split not in builder.info.splits:
    raise errors.UserError(
      f'{dataset} has no split {split!r}; choose one of: '
      + ', '.join(builder.info.splits)
    )
  decoders = None
  if not decode_images and 'image' in builder.info.features:
    decoders = {'image': tfds.decode.SkipDecoding()}
  source = builder.as_data_source(split, decoders=decoders)
  return _Records(source, builder.data_path)


def description(dataset: str, data_dir: epath.PathLike) -> str:
  """What the dataset's builder says of it, in one paragraph.

  Raises:
    UserError: the dataset is not prepared.
  """
  return ' '.join(_builder(dataset, data_dir).info.description.split())


def load_provenance(dataset: str, data_dir: epath.PathLike) -> dict[str, Any]:
  """What `provenance.describe` said when it was prepared; empty if unknown."""
  try:
    path = _builder(dataset, data_dir).data_path / MADE_BY
    said = json.loads(path.read_text())
    return {key: said[key] for key in ('command', 'date', 'versions')}
  except (errors.UserError, OSError, ValueError, TypeError, KeyError):
    return {}  # not there, or prepared by an earlier version


def read_labels(
  dataset: str, data_dir: epath.PathLike, split: str
) -> np.ndarray:
  """Labels of a split, int32 `[N]`, without decoding its images.

  Raises:
    UserError: the dataset is not prepared, or it has no such split.
  """
  source = open_split(dataset, data_dir, split, decode_images=False)
  return np.array([source[i]['label'] for i in range(len(source))], np.int32)
