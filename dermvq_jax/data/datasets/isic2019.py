"""ISIC 2019: 25,331 dermoscopic images of 8 diagnoses."""

import pathlib

import tensorflow_datasets as tfds

from dermvq_jax import errors
from dermvq_jax.data.datasets import archives, builder, isic

_COLUMNS = ('MEL', 'NV', 'BCC', 'AK', 'BKL', 'DF', 'VASC', 'SCC', 'UNK')
_SOURCE = 'https://challenge.isic-archive.com/data/#2019'
_INPUT = 'ISIC_2019_Training_Input'
_LABELS = 'ISIC_2019_Training_GroundTruth'
_METADATA = 'ISIC_2019_Training_Metadata'


class Builder(builder.ImageBuilder):
  """ISIC 2019's training images: 25,331 of 8 diagnoses.

  Tschandl et al., Sci Data 5:180161, 2018 (HAM10000); Codella et al.,
  arXiv:1710.05006 (MSK); Combalia et al., arXiv:1908.02288 (BCN_20000); licence
  CC BY-NC 4.0. Images are cropped to the central square and resized.

  It contains HAM10000 (and so the training images of ISIC 2018), with other
  splits: do not test a model on one of them that was trained on another.
  `group` is the lesion; lesions of HAM10000 that are known to be the same are
  joined. An image whose lesion_id is blank is its own group. The class UNK is
  left out, because no training image has it; so are the challenge's test
  images.
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

  def read_records(self, folder: pathlib.Path | None) -> list[builder.Record]:
    """Returns one record for each image, in the order of the ids."""
    labels = isic.read_labels(folder, _LABELS, _COLUMNS, _SOURCE)
    unknown = sorted(image for image in labels if labels[image] == 'unk')
    if unknown:
      raise errors.UserError(
        f'{_LABELS} in {folder} has {archives.count(unknown, "image")} of the '
        f'class UNK ({archives.name_some(unknown)}), which no training image '
        f'has; download it again from {_SOURCE}'
      )
    groups = isic.read_groups(
      folder, _METADATA, labels, _SOURCE, may_be_blank=True
    )
    files = isic.find_images(folder, _INPUT, labels, _LABELS, _SOURCE)
    return [
      builder.Record(
        id=image,
        label=labels[image],
        group=groups[image],
        source=files[image],
      )
      for image in sorted(labels)
    ]
