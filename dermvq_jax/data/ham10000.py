"""HAM10000: 10,015 dermoscopic images of 7 diagnoses.

Tschandl, Rosendahl, Kittler: The HAM10000 dataset, Sci Data 5:180161, 2018.
"""

import csv
import io
import os
import pathlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from dermvq_jax import errors, images
from dermvq_jax.data import builder, splits

_COLUMNS = (
  'lesion_id',
  'image_id',
  'dx',
  'dx_type',
  'age',
  'sex',
  'localization',
)
_METADATA_NAME = 'HAM10000_metadata'
_METADATA_SUFFIXES = ('.csv', '.tab', '.tsv', '')
_IMAGE_SUFFIXES = ('.jpg', '.jpeg')
# A manual folder holds images, folders of images, or (where unpacking added a
# level) folders of folders of images.
_MAX_DEPTH = 2
# Dataverse offers the ISIC 2018 test images beside HAM10000; not part of it.
_OTHER_ARCHIVES = 'isic2018'
_ID = re.compile('[A-Za-z0-9_-]+')
_UNKNOWN_AGES = ('', 'nan', 'na', 'unknown')
_NUM_NAMED = 3
# The published images have less than 1 MB each; no more is ever unpacked.
_MAX_MEMBER_BYTES = 100_000_000

# Pairs of images that show the same lesion under two lesion ids: Abhishek et
# al., Sci Data 12:196, 2025, newly_discovered_duplicates.csv.
DUPLICATE_IMAGES = (
  ('ISIC_0033481', 'ISIC_0033421'),
  ('ISIC_0033556', 'ISIC_0032634'),
  ('ISIC_0029152', 'ISIC_0033173'),
  ('ISIC_0029036', 'ISIC_0027027'),
  ('ISIC_0027820', 'ISIC_0028209'),
  ('ISIC_0027689', 'ISIC_0032647'),
  ('ISIC_0030906', 'ISIC_0024879'),
  ('ISIC_0033391', 'ISIC_0034186'),
  ('ISIC_0025226', 'ISIC_0030074'),
  ('ISIC_0026087', 'ISIC_0025664'),
  ('ISIC_0024736', 'ISIC_0029748'),
  ('ISIC_0024770', 'ISIC_0027811'),
  ('ISIC_0027162', 'ISIC_0029061'),
  ('ISIC_0024602', 'ISIC_0032283'),
  ('ISIC_0029625', 'ISIC_0024629'),
  ('ISIC_0030000', 'ISIC_0031392'),
  ('ISIC_0024437', 'ISIC_0031299'),
  ('ISIC_0033374', 'ISIC_0033417'),
)

# Both have `name` and `open('rb')`.
ImageFile = pathlib.Path | zipfile.Path


class Builder(builder.ImageBuilder):
  """HAM10000: 10,015 dermoscopic images of 7 diagnoses.

  Tschandl, Rosendahl, Kittler: The HAM10000 dataset, a large collection of
  multi-source dermatoscopic images of common pigmented skin lesions, Sci Data
  5:180161, 2018; licence CC BY-NC 4.0. Images are cut to the central square
  and resized. `group` is the lesion, with known duplicates joined.
  """

  name = 'ham10000'
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  BUILDER_CONFIGS = [
    builder.ImageConfig(name='64', size=64),
    builder.ImageConfig(name='128', size=128),
    builder.ImageConfig(name='256', size=256),
    builder.ImageConfig(name='smoke', size=16),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download HAM10000_images_part_1.zip, HAM10000_images_part_2.zip and
  HAM10000_metadata (.csv or .tab) from Harvard Dataverse,
  https://doi.org/10.7910/DVN/DBW86T (licence CC BY-NC 4.0, not for commercial
  use), into one folder.

  The zips may stay as they are or be unpacked, into the folders
  HAM10000_images_part_1 and HAM10000_images_part_2, into one folder, or
  directly beside the metadata:

    FOLDER/HAM10000_metadata.csv          (or .tab, as Dataverse names it)
    FOLDER/HAM10000_images_part_1.zip     (or HAM10000_images_part_1/*.jpg)
    FOLDER/HAM10000_images_part_2.zip     (or HAM10000_images_part_2/*.jpg)

  Kaggle's copy (kmader/skin-cancer-mnist-ham10000) has the same folders; its
  repeated images and its hmnist_*.csv are ignored. A part of the images will
  do if the metadata lists exactly those.
  """

  extra_features = {
    # Years; NaN where it is not known.
    'age': tfds.features.Scalar(np.float32),
    'sex': tfds.features.Text(),
    'localization': tfds.features.Text(),
    'dx_type': tfds.features.Text(),
  }

  def read_records(self, manual_dir: epath.Path | None) -> list[builder.Record]:
    """Returns one record an image, in the order of image ids.

    Args:
      manual_dir: folder of the archive, see MANUAL_DOWNLOAD_INSTRUCTIONS.

    Raises:
      UserError: the archive is missing, partial or malformed.
    """
    folder = builder.check_manual_dir(type(self), manual_dir)
    rows = read_metadata(_find_metadata(folder), self.class_names)
    images = find_images(folder)
    _check_complete(folder, rows, images)
    groups = group_lesions(
      {image_id: row['lesion_id'] for image_id, row in rows.items()}
    )
    return [
      builder.Record(
        id=image_id,
        label=row['dx'],
        group=groups[image_id],
        source=images[image_id],
        extra={
          'age': _parse_age(row['age']),
          'sex': row['sex'],
          'localization': row['localization'],
          'dx_type': row['dx_type'],
        },
      )
      for image_id, row in sorted(rows.items())
    ]

  def read_image(self, record: builder.Record) -> np.ndarray:
    """Returns the central square, uint8 `[size, size, 3]`.

    Raises:
      UserError: the file is not a readable image, or it is far too large.
    """
    return images.read_square(record.source, self.builder_config.size)


def group_lesions(lesions: Mapping[str, str]) -> dict[str, str]:
  """Returns the group of each image: its lesion, duplicates joined.

  Args:
    lesions: image id -> lesion id.
  """
  pairs = [
    (lesions[a], lesions[b])
    for a, b in DUPLICATE_IMAGES
    if a in lesions and b in lesions
  ]
  joined = splits.join_groups(list(lesions.values()), pairs)
  return {image_id: joined[lesion] for image_id, lesion in lesions.items()}


def read_metadata(
  path: pathlib.Path, class_names: Sequence[str] = builder.CLASS_NAMES
) -> dict[str, dict[str, str]]:
  """Returns image id -> the columns of its row, stripped of white space.

  Args:
    path: comma or tab separated text with a header, quoted or not.
    class_names: the diagnoses that `dx` may have.

  Raises:
    UserError: not such a file, or a row that can't be used.
  """
  try:
    text = path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError:
    raise errors.UserError(
      f'{path} is not text in UTF-8; download it again'
    ) from None
  header = text.partition('\n')[0]
  delimiter = '\t' if '\t' in header else ','
  reader = csv.DictReader(io.StringIO(text, newline=''), delimiter=delimiter)
  rows = {}
  try:
    missing = [c for c in _COLUMNS if c not in (reader.fieldnames or ())]
    if missing:
      raise errors.UserError(
        f'{path} lacks the columns {", ".join(missing)}; use the '
        f'{_METADATA_NAME} file of the archive'
      )
    for raw in reader:
      row = {c: (raw[c] or '').strip() for c in _COLUMNS}
      where = f'{path}, line {reader.line_num}'
      _check_row(where, row, class_names)
      if row['image_id'] in rows:
        raise errors.UserError(
          f'{where}: image_id {row["image_id"]} is there twice; keep one row '
          'an image'
        )
      rows[row['image_id']] = row
  except csv.Error as e:
    raise errors.UserError(
      f'{path}, line {reader.line_num}: {e}; download it again'
    ) from None
  if not rows:
    raise errors.UserError(f'{path} holds no rows; download it again')
  return rows


def _check_row(
  where: str, row: Mapping[str, str], class_names: Sequence[str]
) -> None:
  if not _ID.fullmatch(row['image_id']):
    raise errors.UserError(
      f'{where}: image_id {row["image_id"]!r} is not made of letters, digits, '
      '_ and - only; mend the row'
    )
  if not row['lesion_id']:
    raise errors.UserError(
      f'{where}: lesion_id is blank; splits need it, mend the row'
    )
  if row['dx'] not in class_names:
    raise errors.UserError(
      f'{where}: unknown dx {row["dx"]!r}; it must be one of '
      + ', '.join(class_names)
    )
  try:
    _parse_age(row['age'])
  except ValueError:
    raise errors.UserError(
      f'{where}: age {row["age"]!r} is not a number; mend it or leave it blank'
    ) from None


def _parse_age(age: str) -> np.float32:
  return np.float32('nan' if age.lower() in _UNKNOWN_AGES else age)


def _find_metadata(folder: pathlib.Path) -> pathlib.Path:
  names = [(_METADATA_NAME + s).lower() for s in _METADATA_SUFFIXES]
  found = {
    p.name.lower(): p
    for p in sorted(folder.iterdir())
    if p.name.lower() in names and p.is_file()
  }
  for name in names:
    if name in found:
      return found[name]
  raise errors.UserError(
    f'{folder} has no {_METADATA_NAME}.csv or .tab; download it from '
    'https://doi.org/10.7910/DVN/DBW86T into that folder'
  )


def find_images(folder: pathlib.Path) -> dict[str, ImageFile]:
  """Returns image id -> file, for all images in a folder and its zips.

  Of images with the same id (Kaggle's copy holds all twice) the first in
  alphabetical order counts, unpacked ones before those in zips.

  Raises:
    UserError: a zip is damaged or has unsafe member names.
  """
  files = list(_walk(folder, _MAX_DEPTH))
  images: dict[str, ImageFile] = {}
  for path in files:
    if path.suffix.lower() in _IMAGE_SUFFIXES:
      images.setdefault(path.stem, path)
  for path in files:
    if path.suffix.lower() == '.zip':
      for member in _zip_members(path):
        images.setdefault(pathlib.PurePosixPath(member.at).stem, member)
  return images


def _walk(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
  """Yields the files at most `depth` folders down, in a fixed order."""
  with os.scandir(folder) as found:
    entries = sorted(found, key=lambda entry: entry.name)
  for entry in entries:
    if _is_other(entry.name):
      continue
    if not entry.is_dir():
      yield folder / entry.name
    elif depth:
      yield from _walk(folder / entry.name, depth - 1)


def _is_other(name: str) -> bool:
  """Whether a name is hidden, macOS' bookkeeping, or another archive's."""
  return name.startswith(('.', '__MACOSX')) or name.lower().startswith(
    _OTHER_ARCHIVES
  )


def _zip_members(path: pathlib.Path) -> Iterator[zipfile.Path]:
  try:
    archive = zipfile.ZipFile(path)
  except (zipfile.BadZipFile, NotImplementedError) as e:
    raise errors.UserError(
      f'{path} is not a whole zip file ({e}); download it again'
    ) from None
  for info in archive.infolist():
    name = info.filename
    # Windows' rules know drives and both slashes, so they refuse the most.
    member = pathlib.PureWindowsPath(name)
    if member.drive or member.root or '..' in member.parts:
      raise errors.UserError(
        f'{path} has the member {name!r}, which leaves the folder; this is not '
        'the published archive, download it again'
      )
    if member.suffix.lower() in _IMAGE_SUFFIXES and not any(
      _is_other(part) for part in member.parts
    ):
      if info.file_size > _MAX_MEMBER_BYTES:
        raise errors.UserError(
          f'{path} has the member {name!r}, which unpacks to '
          f'{info.file_size:,} bytes; this is not the published archive, '
          'download it again'
        )
      yield zipfile.Path(archive, name)


def _check_complete(
  folder: pathlib.Path, rows: Iterable[str], images: Iterable[str]
) -> None:
  """Raises UserError unless every row has its image and the reverse."""
  if not images:
    raise errors.UserError(
      f'{folder} has metadata but no .jpg images; download '
      'HAM10000_images_part_1.zip and _part_2.zip from '
      'https://doi.org/10.7910/DVN/DBW86T into it'
    )
  without_image = sorted(set(rows) - set(images))
  without_row = sorted(set(images) - set(rows))
  problems, advice = [], []
  if without_image:
    problems.append(
      f'{_count(without_image, "metadata row")} without an image '
      f'({_name_some(without_image)})'
    )
    advice.append(
      'add the images (both parts of the archive are needed) or remove the rows'
    )
  if without_row:
    problems.append(
      f'{_count(without_row, "image")} without metadata '
      f'({_name_some(without_row)})'
    )
    advice.append(
      f'use the complete {_METADATA_NAME} file or remove the images'
    )
  if problems:
    raise errors.UserError(
      f'{folder}: {" and ".join(problems)}; {"; ".join(advice)}'
    )


def _count(items: Sequence[str], noun: str) -> str:
  return f'{len(items)} {noun}{"" if len(items) == 1 else "s"}'


def _name_some(names: Sequence[str]) -> str:
  more = ', ...' if len(names) > _NUM_NAMED else ''
  return ', '.join(names[:_NUM_NAMED]) + more
