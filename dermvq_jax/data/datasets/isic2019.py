"""ISIC 2019: 25,331 dermoscopic images of 8 diagnoses."""

import tensorflow_datasets as tfds
from etils import epath

from dermvq_jax import errors
from dermvq_jax.data.datasets import archives, builder, ham10000

_COLUMNS = ('MEL', 'NV', 'BCC', 'AK', 'BKL', 'DF', 'VASC', 'SCC', 'UNK')
_SOURCE = 'https://challenge.isic-archive.com/data/#2019'
_INPUT = 'ISIC_2019_Training_Input'
_LABELS = 'ISIC_2019_Training_GroundTruth'
_METADATA = 'ISIC_2019_Training_Metadata'


class Builder(builder.ImageBuilder):
  """ISIC 2019's training images: 25,331 of 8 diagnoses.

  Tschandl et al., Sci Data 5:180161, 2018 (HAM10000); Codella et al.,
  arXiv:1710.05006 (MSK); Combalia et al., arXiv:1908.02288 (BCN_20000); licence
  CC BY-NC 4.0. Images are cut to the central square and resized.

  It contains HAM10000 (and so ISIC 2018's training images), with other splits:
  what was trained on one may not be tested on the other. `group` is the lesion,
  with HAM10000's known duplicates joined; an image whose lesion_id is blank is
  its own group. The class UNK, which no training image has, is left out, and so
  are the challenge's test images.
  """

  name = 'isic2019'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = builder.SIZES
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download ISIC_2019_Training_Input.zip, ISIC_2019_Training_GroundTruth.csv and
  ISIC_2019_Training_Metadata.csv from
  https://challenge.isic-archive.com/data/#2019 (licence CC BY-NC 4.0, not for
  commercial use), into one folder.

  The zip may stay as it is or be unpacked into the folder
  ISIC_2019_Training_Input.
  """

  class_names = ('ak', 'bcc', 'bkl', 'df', 'mel', 'nv', 'scc', 'vasc')

  def read_records(self, manual_dir: epath.Path | None) -> list[builder.Record]:
    """Returns one record an image, in the order of image ids.

    Args:
      manual_dir: folder of the archive, see MANUAL_DOWNLOAD_INSTRUCTIONS.

    Raises:
      UserError: the archive is missing, partial or malformed.
    """
    folder = builder.check_manual_dir(type(self), manual_dir)
    table = archives.find_table(folder, _LABELS, _SOURCE)
    labels = archives.read_one_hot(table, _COLUMNS)
    unknown = sorted(image for image in labels if labels[image] == 'UNK')
    if unknown:
      raise errors.UserError(
        f'{table} has {archives.count(unknown, "image")} of the class UNK '
        f'({archives.name_some(unknown)}), which no training image has; '
        f'download it again from {_SOURCE}'
      )
    table = archives.find_table(folder, _METADATA, _SOURCE)
    rows = archives.read_table(
      table, 'image', ('image', 'lesion_id'), _check_row
    )
    without = sorted(set(labels) - set(rows))
    if without:
      raise errors.UserError(
        f'{table} lacks {archives.count(without, "image")} '
        f'({archives.name_some(without)}); download it again from {_SOURCE}'
      )
    files = archives.find_part(folder, _INPUT, archives.JPEG_SUFFIXES, _SOURCE)
    archives.check_complete(
      folder, labels, files, f'{_INPUT}.zip from {_SOURCE}', _LABELS
    )
    groups = ham10000.group_lesions(
      {image: rows[image]['lesion_id'] or image for image in labels}
    )
    return [
      builder.Record(
        id=image,
        label=labels[image].lower(),
        group=groups[image],
        source=files[image],
      )
      for image in sorted(labels)
    ]


def _check_row(where: str, row: archives.Row) -> None:
  archives.check_id(where, 'image', row['image'])
  if row['lesion_id']:
    archives.check_id(where, 'lesion_id', row['lesion_id'])
