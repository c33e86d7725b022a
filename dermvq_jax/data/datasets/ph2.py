"""PH2: 200 dermoscopic images of melanocytic lesions."""

import pathlib
import re

import tensorflow_datasets as tfds

from dermvq_jax import errors
from dermvq_jax.data import images
from dermvq_jax.data.datasets import archives, builder

_TABLE = 'PH2_dataset.txt'
_SOURCE = 'https://www.fc.up.pt/addi/ph2%20database.html'
# Clinical diagnoses by the codes of the table.
_DIAGNOSES = {'0': 'common_nevus', '1': 'atypical_nevus', '2': 'melanoma'}
_IMAGE = re.compile(r'IMD\d+')


class Builder(builder.ImageBuilder):
  """PH2: 80 common nevi, 80 atypical nevi and 40 melanomas.

  Mendonca, Ferreira, Marques, Marcal, Rozeira: PH2 - A dermoscopic image
  database for research and benchmarking, 35th International Conference of the
  IEEE Engineering in Medicine and Biology Society, 2013; for research and
  education only. Images are cropped to the central square and resized. The
  label is the clinical diagnosis. Lesions and patients are not published: each
  image is its own group.
  """

  name = 'ph2'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = builder.SIZES
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Ask for PH2Dataset at https://www.fc.up.pt/addi/ph2%20database.html (free for
  research and education) and unpack it.

  Give its folder, in which the names stay as they are; masks are ignored:

    FOLDER/PH2_dataset.txt
    FOLDER/PH2 Dataset images/IMD003/IMD003_Dermoscopic_Image/IMD003.bmp
  """

  class_names = ('atypical_nevus', 'common_nevus', 'melanoma')
  extra_fields = {
    # Blank for most lesions.
    'histological_diagnosis': tfds.features.Text(),
  }

  def read_records(self, folder: pathlib.Path | None) -> list[builder.Record]:
    """Returns one record for each image, in the order of the ids."""
    rows = _read_rows(folder)
    files = {
      name: file
      for name, file in archives.by_stem(
        archives.list_files(folder, images.SUFFIXES)
      ).items()
      if _IMAGE.fullmatch(name)  # not a mask
    }
    archives.check_complete(
      folder, rows, files, f'the images of PH2 from {_SOURCE}', _TABLE
    )
    return [
      builder.Record(
        id=image,
        label=_DIAGNOSES[code],
        group=image,
        source=files[image],
        extra_fields={'histological_diagnosis': histology},
      )
      for image, (histology, code) in sorted(rows.items())
    ]


def _read_rows(folder: pathlib.Path) -> dict[str, tuple[str, str]]:
  """Returns image -> histological diagnosis and code of the clinical one.

  Raises:
    UserError: there is no such table, or a row can't be used.
  """
  path = folder / _TABLE
  if not path.is_file():
    raise errors.UserError(
      f'{folder} has no {_TABLE}; give the folder PH2Dataset, or the one in it '
      'that has this file'
    )
  rows = {}
  # Fields stand between double bars; a legend follows the rows.
  text = path.read_bytes().decode('utf-8', errors='replace')
  for number, line in enumerate(text.splitlines(), 1):
    _, image, *fields = [field.strip() for field in f'{line}||'.split('||')]
    if not _IMAGE.fullmatch(image):
      continue
    where = f'{path}, line {number}'
    histology, code = (*fields, '', '')[:2]
    if code not in _DIAGNOSES:
      raise errors.UserError(
        f'{where}: the clinical diagnosis of {image} is {code!r}; it must be '
        f'one of {", ".join(_DIAGNOSES)}'
      )
    if image in rows:
      raise errors.UserError(
        f'{where}: {image} is there twice; keep one row per image'
      )
    rows[image] = histology, code
  if not rows:
    raise errors.UserError(
      f'{path} has no rows like || IMD003 || ... || 0 || ...; use the '
      'published one'
    )
  return rows
