"""HAM10000: 10,015 dermoscopic images of 7 diagnoses.

Tschandl, Rosendahl, Kittler: The HAM10000 dataset, Sci Data 5:180161, 2018.
"""

import pathlib
from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds

from dermvq_jax import errors
from dermvq_jax.data import conditions
from dermvq_jax.data.datasets import archives, builder, isic

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
_SOURCE = 'https://doi.org/10.7910/DVN/DBW86T'
# Dataverse offers the test images of ISIC 2018 too; they are another dataset.
_OTHER_ARCHIVES = ('isic2018',)
# Ages are rounded to 5 years there, and at most 85.
_AGE_WIDTH = 10
_MAX_AGE = 90
_AGES = [
  conditions.range_of(age, _AGE_WIDTH) for age in range(0, _MAX_AGE, _AGE_WIDTH)
]
_LOCALIZATIONS = (
  *('abdomen', 'acral', 'back', 'chest', 'ear', 'face', 'foot', 'genital'),
  *('hand', 'lower extremity', 'neck', 'scalp', 'trunk', 'upper extremity'),
)


class Builder(builder.ImageBuilder):
  """HAM10000: 10,015 dermoscopic images of 7 diagnoses.

  Tschandl, Rosendahl, Kittler: The HAM10000 dataset, a large collection of
  multi-source dermatoscopic images of common pigmented skin lesions, Sci Data
  5:180161, 2018; licence CC BY-NC 4.0. Images are cropped to the central
  square and resized. `group` is the lesion; lesions that are known to be the
  same are joined. Conditions are age in decades, sex and localization.
  """

  name = 'ham10000'
  VERSION = tfds.core.Version('2.0.0')
  RELEASE_NOTES = {
    '1.0.0': 'First release.',
    '2.0.0': 'Age, sex and localization are conditions; age is in decades.',
  }
  BUILDER_CONFIGS = builder.SIZES
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
  repeated images and its hmnist_*.csv are ignored. A part of the images is
  enough if the metadata lists exactly those.
  """

  conditions = {
    'age': _AGES,
    'sex': ('female', 'male'),
    'localization': _LOCALIZATIONS,
  }
  extra_fields = {'dx_type': tfds.features.Text()}

  def read_records(self, folder: pathlib.Path | None) -> list[builder.Record]:
    """Returns one record for each image, in the order of the ids."""
    rows = read_metadata(_find_metadata(folder), self.class_names)
    files = find_images(folder)
    archives.check_complete(
      folder,
      rows,
      files,
      f'HAM10000_images_part_1.zip and _part_2.zip from {_SOURCE}',
      _METADATA_NAME,
    )
    groups = isic.group_lesions(
      {image_id: row['lesion_id'] for image_id, row in rows.items()}
    )
    return [
      builder.Record(
        id=image_id,
        label=row['dx'],
        group=groups[image_id],
        source=files[image_id],
        conditions={
          'age': _age_range(row['age']),
          'sex': row['sex'],
          'localization': row['localization'],
        },
        extra_fields={'dx_type': row['dx_type']},
      )
      for image_id, row in sorted(rows.items())
    ]


def read_metadata(
  path: pathlib.Path, class_names: Sequence[str] = builder.CLASS_NAMES
) -> dict[str, dict[str, str]]:
  """Returns image id -> the columns of its row, without surrounding spaces.

  Args:
    path: comma or tab separated text with a header, quoted or not.
    class_names: the diagnoses that `dx` may have.

  Raises:
    UserError: it is not such a file, or a row can't be used.
  """
  return archives.read_table(
    path,
    'image_id',
    _COLUMNS,
    lambda where, row: _check_row(where, row, class_names),
    may_be_unknown=('lesion_id', 'age', 'sex', 'localization'),
    advice=f'use the {_METADATA_NAME} file of the archive',
  )


def _check_row(
  where: str, row: Mapping[str, str], class_names: Sequence[str]
) -> None:
  archives.check_id(where, 'image_id', row['image_id'])
  if not row['lesion_id']:
    raise errors.UserError(
      f'{where}: lesion_id is blank; the splits need it, so fix the row'
    )
  if row['dx'] not in class_names:
    raise errors.UserError(
      f'{where}: unknown dx {row["dx"]!r}; it must be one of '
      + ', '.join(class_names)
    )
  try:
    _age_range(row['age'])
  except ValueError:
    raise errors.UserError(
      f'{where}: age {row["age"]!r} is not a number from 0 to {_MAX_AGE - 1}; '
      'fix it or leave it blank'
    ) from None


def _age_range(age: str) -> str:
  """Returns the decade of an age in years; '' if it is not known."""
  if not age:
    return ''
  if not 0 <= float(age) < _MAX_AGE:
    raise ValueError
  return conditions.range_of(float(age), _AGE_WIDTH)


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
    f'{folder} has no {_METADATA_NAME}.csv or .tab; download it from {_SOURCE} '
    'into that folder'
  )


def find_images(folder: pathlib.Path) -> dict[str, archives.File]:
  """Returns image id -> file, for all images in a folder and its zips.

  Kaggle's copy has each image twice. If several images have the same id, the
  first in alphabetical order is used; unpacked images come before those in
  zips.

  Raises:
    UserError: a zip is damaged or has unsafe member names.
  """
  return archives.by_stem(
    archives.list_files(folder, archives.JPEG_SUFFIXES, _OTHER_ARCHIVES)
  )
