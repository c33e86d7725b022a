"""ISIC 2018, task 3: 11,720 dermoscopic images of 7 diagnoses.

Codella et al.: Skin lesion analysis toward melanoma detection 2018,
arXiv:1902.03368.
"""

import pathlib

import tensorflow_datasets as tfds
from etils import epath

from dermvq_jax import errors
from dermvq_jax.data.datasets import archives, builder, ham10000

_COLUMNS = ('MEL', 'NV', 'BCC', 'AKIEC', 'BKL', 'DF', 'VASC')
_SOURCE = 'https://challenge.isic-archive.com/data/#2018'
_PREFIX = 'ISIC2018_Task3_'
_PARTS = {'train': 'Training', 'val': 'Validation', 'test': 'Test'}
_GROUPINGS = f'{_PREFIX}Training_LesionGroupings'


class Builder(builder.ImageBuilder):
  """ISIC 2018, task 3: 10,015 training, 193 validation and 1,512 test images.

  Codella et al.: Skin lesion analysis toward melanoma detection 2018: a
  challenge hosted by the International Skin Imaging Collaboration,
  arXiv:1902.03368; Tschandl et al., Sci Data 5:180161, 2018; licence CC BY-NC
  4.0. Images are cut to the central square and resized.

  The training images are HAM10000. The published splits are kept, since
  numbers on its test images are what this dataset is used for; `ham10000` has
  the same training images with a larger validation split. `group` is the
  lesion of a training image, with known duplicates joined; the lesions of the
  other images are not published, each is its own group.
  """

  name = 'isic2018'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = builder.SIZES
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download, of task 3 of https://challenge.isic-archive.com/data/#2018 (licence
  CC BY-NC 4.0, not for commercial use), into one folder,
  ISIC2018_Task3_Training_Input.zip, ISIC2018_Task3_Training_GroundTruth.zip,
  the same two with Validation and with Test for Training, and
  ISIC2018_Task3_Training_LesionGroupings.csv.

  The zips may stay as they are or be unpacked into folders of their names.
  """

  def read_records(self, manual_dir: epath.Path | None) -> list[builder.Record]:
    """Returns one record an image, in the order of image ids of each split.

    Args:
      manual_dir: folder of the archive, see MANUAL_DOWNLOAD_INSTRUCTIONS.

    Raises:
      UserError: the archive is missing, partial or malformed.
    """
    folder = builder.check_manual_dir(type(self), manual_dir)
    labels = {split: _read_labels(folder, split) for split in _PARTS}
    groups = _read_groups(folder, labels['train'])
    return [
      builder.Record(
        id=image,
        label=labels[split][image],
        group=groups.get(image, image),
        source=file,
        split=split,
      )
      for split in _PARTS
      for image, file in sorted(_find_images(folder, labels, split).items())
    ]


def _read_labels(folder: pathlib.Path, split: str) -> dict[str, str]:
  """Returns image -> class."""
  table = archives.find_table(
    folder, f'{_PREFIX}{_PARTS[split]}_GroundTruth', _SOURCE
  )
  labels = archives.read_one_hot(table, _COLUMNS)
  return {image: label.lower() for image, label in labels.items()}


def _find_images(
  folder: pathlib.Path, labels: dict[str, dict[str, str]], split: str
) -> dict[str, archives.File]:
  name = f'{_PREFIX}{_PARTS[split]}_'
  files = archives.find_part(
    folder, f'{name}Input', archives.JPEG_SUFFIXES, _SOURCE
  )
  archives.check_complete(
    folder,
    labels[split],
    files,
    f'{name}Input.zip from {_SOURCE}',
    f'{name}GroundTruth',
  )
  return files


def _read_groups(
  folder: pathlib.Path, labels: dict[str, str]
) -> dict[str, str]:
  """Returns image -> lesion, of the training images."""

  def check(where: str, row: archives.Row) -> None:
    archives.check_id(where, 'image', row['image'])
    archives.check_id(where, 'lesion_id', row['lesion_id'])

  table = archives.find_table(folder, _GROUPINGS, _SOURCE)
  rows = archives.read_table(table, 'image', ('image', 'lesion_id'), check)
  without = sorted(set(labels) - set(rows))
  if without:
    raise errors.UserError(
      f'{table} lacks {archives.count(without, "training image")} '
      f'({archives.name_some(without)}); download it again from {_SOURCE}'
    )
  return ham10000.group_lesions(
    {image: rows[image]['lesion_id'] for image in labels}
  )
