"""Your own images: one folder per class, or any folder with a metadata.csv."""

import collections
import dataclasses
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds

from dermvq_jax import errors
from dermvq_jax.data import images
from dermvq_jax.data.datasets import archives, builder, condition_columns

_TABLE = 'metadata.csv'
_SUFFIXES = images.SUFFIXES + images.OTHER_SUFFIXES
_SPLIT_NAMES = ('train', 'training', 'val', 'valid', 'validation', 'test')
# Class names are parts of commands (CLASS=NUMBER,...) and of file names.
_CLASS_NAME = re.compile(r'\w([\w .-]*[\w.-])?')


class Builder(builder.ImageBuilder):
  """Your own images; their classes are in alphabetical order.

  Images are cropped to the central square and resized. `group` is the group in
  metadata.csv. Without it each image is its own group, so images of one lesion
  or patient may be in different splits. If some of the images are synthetic and
  others are not, the synthetic ones are all in the training split.
  """

  name = 'image_folder'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = builder.SIZES
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Put your images (JPEG, PNG, TIFF, BMP or WebP) into one folder: either with
  one sub-folder for each class, or in any order beside a file metadata.csv with
  the columns image, label and, if known, group (the lesion or patient).

    FOLDER/mel/**/*.jpg       or          FOLDER/metadata.csv
    FOLDER/nv/**/*.jpg                    FOLDER/**/*.jpg

  The column image has file names, with or without .jpg, or paths inside the
  folder. If the columns have other names, give them: --image_column=NAME,
  --label_column=NAME, --group_column=NAME. Sub-folders are searched, and zips
  too. Images that metadata.csv does not list are left out. Images with the same
  group are always in the same split. If there is a column synthetic, as `dermvq
  sample` writes it, images with true are used for training only.
  --condition_columns=sex,age:10 names further columns that the prior can be
  given, here ages in ranges of 10. A data_dir holds one image_folder; for
  another one choose another data_dir, or use --overwrite.
  """

  class_names = None
  # `condition` names several columns; see `condition_columns.parse`.
  columns = {
    'image': 'image',
    'label': 'label',
    'group': 'group',
    'condition': '',
  }

  def __init__(self, *, columns: Mapping[str, str] | None = None, **kwargs):
    """Makes a builder; `columns` are names in the table by those above.

    Raises:
      UserError: a column cannot be a condition.
    """
    self.columns = {**type(self).columns, **(columns or {})}
    self._conditions = condition_columns.parse(self.columns['condition'])
    used = {
      c.casefold() for name, c in self.columns.items() if name != 'condition'
    }
    for column in self._conditions:
      if column.column.casefold() in used:
        raise errors.UserError(
          f'the column {column.column} is used already; leave it out of '
          '--condition_columns'
        )
    # Their values are known when the table is read.
    self.conditions = {column.name: () for column in self._conditions}
    super().__init__(**kwargs)

  def read_records(self, folder: pathlib.Path | None) -> list[builder.Record]:
    """Returns one record for each image, in the order of the ids."""
    renamed = {
      name: column
      for name, column in self.columns.items()
      if column != name != 'condition'
    }
    if (folder / _TABLE).is_file():
      records = _read_listed(folder, renamed, self._conditions)
    elif renamed or self._conditions:
      raise errors.UserError(
        f'{folder} has no {_TABLE}, so there are no columns; give the table '
        'that name'
      )
    else:
      records = _read_class_folders(folder)
    self.conditions = {
      column.name: column.names(r.conditions[column.name] for r in records)
      for column in self._conditions
    }
    records.sort(key=lambda record: record.id)
    for a, b in zip(records, records[1:]):
      if a.id == b.id:
        raise errors.UserError(
          f'{a.source} and {b.source} would both have the id {a.id}; rename one'
        )
    return records


def _read_class_folders(folder: pathlib.Path) -> list[builder.Record]:
  classes = [
    path
    for path in sorted(folder.iterdir())
    if path.is_dir() and not images.is_junk(path.name)
  ]
  if not classes:
    raise errors.UserError(
      f'{folder} has neither a {_TABLE} nor folders; sort the images into one '
      'folder for each class'
    )
  by_folder = collections.defaultdict(list)
  for file in archives.list_files(folder, _SUFFIXES):
    top, *rest = _on_disk(file).relative_to(folder).parts
    by_folder[top if rest else ''].append(file)
  if by_folder['']:
    print(
      f'{folder}: {archives.count(by_folder[""], "image")} left out, as they '
      'are in no folder of a class',
      file=sys.stderr,
    )
  records, others, num_below = [], [], 0
  for path in classes:
    name = archives.normal(path.name)
    _check_class_name(str(path), name)
    files = by_folder[path.name]
    others += [f.name for f in files if images.is_other(f.name)]
    files = [f for f in files if not images.is_other(f.name)]
    below = [f for f in files if len(_path_in(path, f).parts) > 1]
    _check_class(path, files, alone=len(classes) == 1 and files == below)
    num_below += len(below)
    for file in files:
      # Images of other classes, or in other folders, may have the same name.
      parts = _path_in(path, file).with_suffix('').parts
      image_id = archives.normal('_'.join((name, *parts)))
      records.append(
        builder.Record(id=image_id, label=name, group=image_id, source=file)
      )
  if num_below:
    print(
      f'{folder}: {num_below} of {len(records)} images are in sub-folders of '
      'their class',
      file=sys.stderr,
    )
  _say_left_out(folder, others)
  _say_not_read(folder)
  return _keep_for_training(
    records, [r.source.name.startswith('synthetic_') for r in records]
  )


def _check_class(
  path: pathlib.Path, files: Sequence[archives.File], alone: bool
) -> None:
  """Raises UserError unless a folder has images and is no split.

  Args:
    path: the folder.
    files: its images.
    alone: whether it is the only class and has its images in sub-folders.
  """
  if path.name.lower() in _SPLIT_NAMES:
    raise errors.UserError(
      f'{path} has the name of a split, not of a class; make one folder for '
      'each class (the splits train, val and test are made here)'
    )
  if not files:
    raise errors.UserError(
      f'there is no {images.KINDS} image in {path}; put the images of that '
      'class there, or remove that folder'
    )
  if alone:
    raise errors.UserError(
      f'{path.parent} has only one folder, {path.name}, which has only '
      f'folders; if those are the classes, give {path}'
    )


def _say_left_out(folder: pathlib.Path, others: Sequence[str]) -> None:
  if others:
    print(archives.left_out(folder, others), file=sys.stderr)


def _say_not_read(folder: pathlib.Path) -> None:
  """Names tables, which may hold patients, beside folders of classes."""
  tables = [path for path in folder.iterdir() if path.suffix.lower() == '.csv']
  if tables:
    named = archives.name_some(sorted(path.name for path in tables))
    print(
      f'{folder}: {errors.printable(named)} is not read; to use its labels and '
      f'groups, name it {_TABLE}',
      file=sys.stderr,
    )


def _keep_for_training(
  records: list[builder.Record], synthetic: Sequence[bool]
) -> list[builder.Record]:
  """Puts synthetic images into the training split, unless all are synthetic.

  Otherwise models would be selected or evaluated on the output of a model.
  """
  if all(synthetic):
    return records
  return [
    dataclasses.replace(record, split='train') if is_synthetic else record
    for record, is_synthetic in zip(records, synthetic)
  ]


def _read_listed(
  folder: pathlib.Path,
  renamed: Mapping[str, str],
  conditions: Sequence[condition_columns.ConditionColumn],
) -> list[builder.Record]:
  def check(where: str, row: archives.Row):
    _check_row(where, row)
    condition_columns.check_row(conditions, where, row)

  names = [column.name for column in conditions]
  rows = archives.read_table(
    folder / _TABLE,
    'image',
    ('image', 'label', *names),
    check,
    optional=('group', 'synthetic'),
    may_be_unknown=('group', *names),
    advice='give it a header line with image, label and, if known, group, or '
    'name its columns with --image_column, --label_column and --group_column',
    renamed={**renamed, **{c.name: c.column for c in conditions}},
  )
  files = collections.defaultdict(list)
  num_files, others = 0, []
  for file in archives.list_files(folder, _SUFFIXES):
    if images.is_other(file.name):
      others.append(file.name)
      continue
    num_files += 1
    path = _path_in(folder, file)
    names = {file.name, file.stem, str(path), str(path.with_suffix(''))}
    for name in map(archives.normal, names):
      if file not in files[name]:
        files[name].append(file)
  _say_left_out(folder, others)
  _check_found(folder, rows, files)
  if num_files > len(rows):
    print(
      f'{folder / _TABLE} does not list {num_files - len(rows)} of {num_files} '
      'images; they are left out',
      file=sys.stderr,
    )
  records = []
  for name, row in rows.items():
    [source] = files[_normal(name)]
    # Files in several folders may have the same name.
    parts = *_normal(name).split('/')[:-1], archives.normal(source.stem)
    image_id = '_'.join(parts)
    records.append(
      builder.Record(
        id=image_id,
        label=row['label'],
        # The prefix keeps it apart from the groups of single images.
        group=f'group_{row["group"]}' if row['group'] else image_id,
        source=source,
        conditions={c.name: c.name_of(row[c.name]) for c in conditions},
      )
    )
  return _keep_for_training(
    records, [row['synthetic'] == 'true' for row in rows.values()]
  )


def _check_row(where: str, row: archives.Row) -> None:
  path = pathlib.PureWindowsPath(row['image'])
  if not path.name or path.drive or path.root or '..' in path.parts:
    raise errors.UserError(
      f'{where}: image {row["image"]!r} is neither the name of a file nor its '
      f'path from the folder of {_TABLE}'
    )
  _check_class_name(f'{where}: label', row['label'])
  if row['synthetic'] not in ('', 'true', 'false'):
    raise errors.UserError(
      f'{where}: synthetic is {row["synthetic"]!r}; give true or false'
    )


def _normal(name: str) -> str:
  """Returns a path with slashes between its parts, as `_path_in` has them."""
  return pathlib.PureWindowsPath(name).as_posix()


def _path_in(
  folder: pathlib.Path, file: archives.File
) -> pathlib.PurePosixPath:
  """Returns the path of a file from `folder`, or inside of its zip."""
  if isinstance(file, pathlib.Path):
    return pathlib.PurePosixPath(file.relative_to(folder).as_posix())
  return pathlib.PurePosixPath(file.at)


def _on_disk(file: archives.File) -> pathlib.Path:
  """Returns the path of a file, or of the zip that it is in."""
  if isinstance(file, pathlib.Path):
    return file
  return pathlib.Path(file.root.filename)


def _check_class_name(where: str, name: str) -> None:
  if not _CLASS_NAME.fullmatch(name):
    raise errors.UserError(
      f'{where}: {name!r} cannot be the name of a class; use letters, digits, '
      'spaces, _, . and -'
    )


def _check_found(
  folder: pathlib.Path,
  rows: dict[str, archives.Row],
  files: dict[str, list[archives.File]],
) -> None:
  """Raises UserError unless every row has exactly one image of its own."""
  missing = sorted(name for name in rows if _normal(name) not in files)
  if missing:
    raise errors.UserError(
      f'{folder}: {archives.count(missing, "row")} in {_TABLE} without an '
      f'image ({archives.name_some(missing)}); add the images or remove the '
      'rows'
    )
  by_file = collections.defaultdict(list)
  for name in rows:
    if len(files[_normal(name)]) > 1:
      first, second = map(str, files[_normal(name)][:2])
      raise errors.UserError(
        f'{folder}: {name} in {_TABLE} could be {first} or {second}; rename '
        'one, or write paths into the table'
      )
    by_file[str(files[_normal(name)][0])].append(name)
  for file, names in by_file.items():
    if len(names) > 1:
      raise errors.UserError(
        f'{folder}: {names[0]} and {names[1]} in {_TABLE} are both {file}; '
        'keep one row per image'
      )
