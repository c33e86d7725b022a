"""ISIC 2018, task 3: 11,720 dermoscopic images of 7 diagnoses.

Codella et al.: Skin lesion analysis toward melanoma detection 2018,
arXiv:1902.03368.
"""

import pathlib

import tensorflow_datasets as tfds

from dermvq_jax.data.datasets import builder, isic

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
  4.0. Images are cropped to the central square and resized.

  The training images are HAM10000. The published splits are kept, because
  results are compared on the published test images; `ham10000` has the same
  training images with a larger validation split. `group` is the lesion of a
  training image; lesions that are known to be the same are joined. The lesions
  of the other images are not published: each image is its own group.
  """

  name = 'isic2018'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = builder.SIZES
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download ISIC2018_Task3_Training_Input.zip,
  ISIC2018_Task3_Training_GroundTruth.zip, the same two zips for Validation and
  for Test, and ISIC2018_Task3_Training_LesionGroupings.csv from
  https://challenge.isic-archive.com/data/#2018 (task 3; licence CC BY-NC 4.0,
  not for commercial use) into one folder.

  The zips may stay as they are, or each may be unpacked into a folder of the
  same name.
  """

  def read_records(self, folder: pathlib.Path | None) -> list[builder.Record]:
    """Returns one record for each image, in the order of each split's ids."""
    labels = {
      split: isic.read_labels(folder, _table(split), _COLUMNS, _SOURCE)
      for split in _PARTS
    }
    groups = isic.read_groups(folder, _GROUPINGS, labels['train'], _SOURCE)
    records = []
    for split, part in _PARTS.items():
      files = isic.find_images(
        folder,
        f'{_PREFIX}{part}_Input',
        labels[split],
        _table(split),
        _SOURCE,
      )
      records += [
        builder.Record(
          id=image,
          label=labels[split][image],
          group=groups.get(image, image),
          source=file,
          split=split,
        )
        for image, file in sorted(files.items())
      ]
    return records


def _table(split: str) -> str:
  """Returns the name of the table with the labels of a split."""
  return f'{_PREFIX}{_PARTS[split]}_GroundTruth'
