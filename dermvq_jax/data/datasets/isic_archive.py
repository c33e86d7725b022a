"""The ISIC Archive: any images that its own command line tool downloads."""

import collections
import pathlib
import re
import sys
from collections.abc import Mapping, Set

import numpy as np
import tensorflow_datasets as tfds

from dermvq_jax import errors
from dermvq_jax.data import images, splits
from dermvq_jax.data.datasets import archives, builder, isic, people

_TABLE = 'metadata.csv'
# Pairs of images of ISIC 2020 that are the same; from the challenge's page.
_DUPLICATES = 'ISIC_2020_Training_Duplicates.csv'
_OPTIONAL = (
  'lesion_id',
  'patient_id',
  'image_type',
  'image_manipulation',
  'age_approx',
  'sex',
  'anatom_site_general',
  'fitzpatrick_skin_type',
  'diagnosis_confirm_type',
  'attribution',
  'copyright_license',
)
_SITES = (
  'anterior torso',
  'head/neck',
  'lateral torso',
  'lower extremity',
  'oral/genital',
  'palms/soles',
  'posterior torso',
  'upper extremity',
)


class Builder(builder.ImageBuilder):
  """Dermoscopic images of the ISIC Archive, as its own tool downloads them.

  https://www.isic-archive.com; each image has its own licence and its own
  authors (`copyright_license`, `attribution`). Images are cropped to the
  central square and resized.

  The label is a column of the table that the user chooses. `group` is the
  patient; if that is not known, the lesion; if that is not known either, the
  image. Images that are known to show the same lesion are joined. Images that
  are not dermoscopic, are synthetic, or have no label are left out.
  """

  name = 'isic_archive'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = builder.SIZES
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download images with the ISIC Archive's own tool, which needs no account for
  public images: pipx install isic-cli, then isic image download --collections
  212 FOLDER (212 is HAM10000; isic collection list shows the others).

  The tool writes images and a table into the folder:

    FOLDER/ISIC_*.jpg
    FOLDER/metadata.csv

  --label_column=NAME chooses the column of metadata.csv that is the label:
  diagnosis_1 (benign, malignant, indeterminate) to diagnosis_5 (the finest);
  diagnosis_3 if you do not choose. For images of the challenge of 2020 put its
  list ISIC_2020_Training_Duplicates.csv beside metadata.csv, from
  https://challenge.isic-archive.com/data/#2020: duplicates then stay in the
  same split.
  """

  class_names = None
  columns = {'label': 'diagnosis_3'}
  conditions = {
    'age': people.AGES,
    'sex': people.SEXES,
    'localization': _SITES,
    'skin_type': people.SKIN_TYPES,
  }
  extra_fields = {
    # In years; NaN if it is not known.
    'age_approx': tfds.features.Scalar(np.float32),
    'diagnosis_confirm_type': tfds.features.Text(),
    'attribution': tfds.features.Text(),
    'copyright_license': tfds.features.Text(),
  }

  def read_records(self, folder: pathlib.Path | None) -> list[builder.Record]:
    """Returns one record for each image, in the order of the ids."""
    label = self.columns['label']
    listed = _read_metadata(folder, label)
    rows = _usable(folder, listed, label)
    classes = _class_names({row['label'] for row in rows.values()})
    files = _find_images(folder, listed.keys(), rows.keys())
    groups = _groups(rows, _read_duplicates(folder))
    odd = collections.Counter()
    records = [
      builder.Record(
        id=image,
        label=classes[row['label']],
        group=groups[image],
        source=files[image],
        conditions=_conditions(row, odd),
        extra_fields={
          'age_approx': np.float32(row['age_approx'] or 'nan'),
          'diagnosis_confirm_type': row['diagnosis_confirm_type'],
          'attribution': row['attribution'],
          'copyright_license': row['copyright_license'],
        },
      )
      for image, row in sorted(rows.items())
    ]
    for (column, value), count in sorted(odd.items()):
      _say(
        folder, f'{count} images have {column} {value!r}; it counts as blank'
      )
    return records


def _read_metadata(folder: pathlib.Path, label: str) -> dict[str, archives.Row]:
  """Returns image id -> the columns of its row and `label`.

  Raises:
    UserError: there is no such table, or a row can't be used.
  """
  path = folder / _TABLE
  if not path.is_file():
    raise errors.UserError(
      f'{folder} has no {_TABLE}; give the folder into which isic image '
      'download put the images'
    )
  rows = archives.read_table(
    path,
    'isic_id',
    ('isic_id', 'label'),
    _check_row,
    # A column may be the label too.
    optional=[column for column in _OPTIONAL if column != label],
    may_be_unknown=('label', *(c for c in _OPTIONAL if c != label)),
    advice='name one of its columns with --label_column; the table must be as '
    'isic image download writes it',
    renamed={'label': label},
  )
  if label in _OPTIONAL:
    for row in rows.values():
      row[label] = row['label']
  return rows


def _check_row(where: str, row: archives.Row) -> None:
  archives.check_id(where, 'isic_id', row['isic_id'])
  # Ids become names of groups.
  for column in ('lesion_id', 'patient_id'):
    if row.get(column):
      archives.check_id(where, column, row[column])
  try:
    people.age_name(row.get('age_approx', ''))
  except ValueError:
    raise errors.UserError(
      f'{where}: age_approx {row["age_approx"]!r} is not a number from 0 to 99'
      '; fix it or leave it blank'
    ) from None


def _usable(
  folder: pathlib.Path, rows: Mapping[str, archives.Row], label: str
) -> dict[str, archives.Row]:
  """Leaves out rows that are not for training, and says how many.

  Raises:
    UserError: none is left.
  """
  usable, dropped = {}, collections.Counter()
  for image, row in rows.items():
    # Early images of the archive have no type; they are dermoscopic.
    kind = row['image_type'] or 'dermoscopic'
    if kind != 'dermoscopic':
      dropped[f'are not dermoscopic but {kind}'] += 1
    elif row['image_manipulation'] == 'synthetic':
      dropped['are synthetic'] += 1
    elif not row['label']:
      dropped[f'have no {label}'] += 1
    else:
      usable[image] = row
  for reason, count in sorted(dropped.items()):
    _say(folder, f'{count} of {len(rows)} images {reason}; they are left out')
  if not usable:
    raise errors.UserError(
      f'{folder / _TABLE} lists no dermoscopic image with a {label}; choose '
      'another --label_column or other images'
    )
  return usable


def _class_names(labels: set[str]) -> dict[str, str]:
  """Returns label -> class: the label without what no class name may have.

  Raises:
    UserError: two labels would be the same class, or one has no letters.
  """
  classes = {}
  for label in sorted(labels):
    name = re.sub(r'[^\w .-]', '', label.replace('/', '-'))
    name = ' '.join(name.split()).strip('-. ')
    if not name or name in classes.values():
      raise errors.UserError(
        f'{label!r} cannot be the name of a class, or differs from another '
        'only in punctuation; choose another --label_column, or edit the table'
      )
    classes[label] = name
  return classes


def _find_images(
  folder: pathlib.Path, listed: Set[str], usable: Set[str]
) -> dict[str, archives.File]:
  """Returns image id -> file, and says how many files the table lacks.

  Args:
    folder: the folder.
    listed: the ids in its table.
    usable: those of the images that must be there.

  Raises:
    UserError: an image is missing.
  """
  files = archives.by_stem(archives.list_files(folder, images.SUFFIXES))
  missing = sorted(usable - files.keys())
  if missing:
    raise errors.UserError(
      f'{folder}: {archives.count(missing, "row")} of {_TABLE} without an '
      f'image ({archives.name_some(missing)}); run the same isic command '
      'again, which downloads what is missing, or remove the rows'
    )
  # The tool writes a new table for each download into the same folder.
  others = files.keys() - listed
  if others:
    _say(
      folder,
      f'{_TABLE} does not list {len(others)} of {len(files)} images; they are '
      'left out',
    )
  return files


def _read_duplicates(folder: pathlib.Path) -> list[tuple[str, str]]:
  """Returns the pairs of images that are known to be the same."""
  pairs = list(isic.DUPLICATE_IMAGES)
  if (folder / _DUPLICATES).is_file():
    archives.read_table(
      folder / _DUPLICATES,
      None,
      ('image_name_1', 'image_name_2'),
      lambda _, row: pairs.append((row['image_name_1'], row['image_name_2'])),
    )
  return pairs


def _groups(
  rows: Mapping[str, archives.Row], duplicates: list[tuple[str, str]]
) -> dict[str, str]:
  """Returns image id -> group: its patient, else its lesion, else itself.

  A lesion belongs to the patient of any of its images.
  """
  patients = {
    row['lesion_id']: row['patient_id']
    for row in rows.values()
    if row['lesion_id'] and row['patient_id']
  }
  own = {
    image: row['patient_id']
    or patients.get(row['lesion_id'])
    or row['lesion_id']
    or image
    for image, row in rows.items()
  }
  pairs = [(own[a], own[b]) for a, b in duplicates if a in own and b in own]
  # If a lesion has several patients.
  pairs += [
    (own[image], patients[row['lesion_id']])
    for image, row in rows.items()
    if row['lesion_id'] in patients
  ]
  joined = splits.join_groups(list(own.values()), pairs)
  return {image: joined[group] for image, group in own.items()}


def _conditions(
  row: archives.Row, odd: collections.Counter[tuple[str, str]]
) -> dict[str, str]:
  """Returns the conditions of an image.

  Args:
    row: its row.
    odd: columns and values that are not known are counted here.
  """
  found = {'age': people.age_name(row['age_approx'])}
  for name, column in (
    ('sex', 'sex'),
    ('localization', 'anatom_site_general'),
    ('skin_type', 'fitzpatrick_skin_type'),
  ):
    value = row[column]
    if value and value not in Builder.conditions[name]:
      odd[column, value] += 1
      value = ''
    found[name] = value
  return found


def _say(folder: pathlib.Path, text: str) -> None:
  print(f'{folder}: {errors.printable(text)}', file=sys.stderr)
