"""PAD-UFES-20: 2,298 photographs of skin lesions, by smartphones."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

from dermvq_jax import errors
from dermvq_jax.data import images
from dermvq_jax.data.datasets import archives, builder, people

_TABLE = 'metadata.csv'
_SOURCE = 'https://doi.org/10.17632/zr7vgbcyr2.1'
_COLUMNS = ('img_id', 'patient_id', 'lesion_id', 'diagnostic')
_CONDITIONS = ('age', 'gender', 'region', 'fitspatrick')
_REGIONS = (
  *('abdomen', 'arm', 'back', 'chest', 'ear', 'face', 'foot'),
  *('forearm', 'hand', 'lip', 'neck', 'nose', 'scalp', 'thigh'),
)


class Builder(builder.ImageBuilder):
  """PAD-UFES-20: 2,298 clinical photographs of 1,641 lesions, 6 diagnoses.

  Pacheco et al.: PAD-UFES-20: a skin lesion dataset composed of patient data
  and clinical images collected from smartphones, Data in Brief 32:106221, 2020;
  licence CC BY 4.0. They are photographs, not dermoscopic images. Images are
  cropped to the central square and resized. `group` is the patient; if that is
  blank, the lesion; if that is blank too, the image.
  """

  name = 'pad_ufes_20'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = builder.SIZES
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download metadata.csv, imgs_part_1.zip, imgs_part_2.zip and imgs_part_3.zip
  from https://doi.org/10.17632/zr7vgbcyr2.1 (licence CC BY 4.0) into one
  folder.

  If you get one zip of all files, unpack it. The zips of images may stay as
  they are or be unpacked, in the folder itself or in its sub-folder images:

    FOLDER/metadata.csv
    FOLDER/images/imgs_part_1.zip     (or images/imgs_part_1/*.png)
  """

  class_names = ('ack', 'bcc', 'mel', 'nev', 'scc', 'sek')
  conditions = {
    'age': people.AGES,
    'sex': people.SEXES,
    'localization': _REGIONS,
    'skin_type': people.SKIN_TYPES,
  }
  extra_fields = {
    # In years; NaN if it is not known.
    'age_approx': tfds.features.Scalar(np.float32),
  }

  def read_records(self, folder: pathlib.Path | None) -> list[builder.Record]:
    """Returns one record for each image, in the order of the ids."""
    path = folder / _TABLE
    if not path.is_file():
      raise errors.UserError(
        f'{folder} has no {_TABLE}; download it from {_SOURCE} into that folder'
      )
    rows = archives.read_table(
      path,
      'img_id',
      (*_COLUMNS, *_CONDITIONS),
      self._check_row,
      may_be_unknown=('patient_id', 'lesion_id', *_CONDITIONS),
      advice=f'use the published one, from {_SOURCE}',
    )
    rows = {pathlib.PurePath(name).stem: row for name, row in rows.items()}
    files = archives.by_stem(archives.list_files(folder, images.SUFFIXES))
    archives.check_complete(
      folder, rows, files, f'imgs_part_1.zip to _3.zip from {_SOURCE}', _TABLE
    )
    return [
      builder.Record(
        id=image,
        label=row['diagnostic'].lower(),
        group=_group(image, row),
        source=files[image],
        conditions=_conditions(row),
        extra_fields={'age_approx': np.float32(row['age'] or 'nan')},
      )
      for image, row in sorted(rows.items())
    ]

  def _check_row(self, where: str, row: archives.Row) -> None:
    archives.check_id(where, 'img_id', pathlib.PurePath(row['img_id']).stem)
    if row['diagnostic'].lower() not in self.class_names:
      raise errors.UserError(
        f'{where}: unknown diagnostic {row["diagnostic"]!r}; it must be one of '
        + ', '.join(self.class_names).upper()
      )
    for column, check, last in (
      ('age', people.age_name, 99),
      ('fitspatrick', _skin_type, len(people.SKIN_TYPES)),
    ):
      try:
        check(row[column])
      except ValueError:
        raise errors.UserError(
          f'{where}: {column} {row[column]!r} is not a number up to {last}; '
          'fix it or leave it blank'
        ) from None


def _group(image: str, row: archives.Row) -> str:
  """Returns the group; the prefix keeps lesions apart from other names."""
  if row['patient_id']:
    return row['patient_id']
  return f'lesion_{row["lesion_id"]}' if row['lesion_id'] else image


def _conditions(row: archives.Row) -> dict[str, str]:
  return {
    'age': people.age_name(row['age']),
    'sex': row['gender'].lower(),
    'localization': row['region'].lower(),
    'skin_type': _skin_type(row['fitspatrick']),
  }


def _skin_type(number: str) -> str:
  """Returns the skin type, which is written as 1.0 to 6.0; '' if blank.

  Raises:
    ValueError: it is not such a number.
  """
  if not number:
    return ''
  if float(number) not in range(1, 1 + len(people.SKIN_TYPES)):
    raise ValueError(number)
  return people.SKIN_TYPES[int(float(number)) - 1]
