"""DermaMNIST: HAM10000 in arrays of small images.

Yang et al.: MedMNIST v2, Sci Data 10:41, 2023.
"""

import pathlib
import zipfile

import numpy as np
import tensorflow_datasets as tfds

from dermvq_jax import errors
from dermvq_jax.data import images, splits
from dermvq_jax.data.datasets import builder

_SOURCE = 'https://doi.org/10.5281/zenodo.10519652'
# Twice the size of the largest published array: 7,007 images of 224 px.
MAX_ARRAY_BYTES = 2 * 1024**3
_HEADER_READERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


class Builder(builder.ImageBuilder):
  """DermaMNIST: 7,007 training, 1,003 validation and 2,005 test images.

  Yang et al.: MedMNIST v2, a large-scale lightweight benchmark for 2D and 3D
  biomedical image classification, Sci Data 10:41, 2023; the images of HAM10000
  (Tschandl et al. 2018), licence CC BY-NC 4.0. They are stored at their size.

  The published splits are kept, so that results can be compared. They ignore
  lesions: about a third of the test images show a lesion that is in training
  too, so results are too optimistic (Abhishek et al., Sci Data 12:196, 2025);
  `ham10000` has the same images without this leak. The lesions are not
  published: each image is its own `group`.
  """

  name = 'dermamnist'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    builder.ImageConfig(name='28', size=28),
    builder.ImageConfig(name='64', size=64),
    builder.ImageConfig(name='128', size=128),
    builder.ImageConfig(name='224', size=224),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download dermamnist.npz (28 pixels), dermamnist_64.npz, dermamnist_128.npz or
  dermamnist_224.npz, depending on the dataset's size, from
  https://doi.org/10.5281/zenodo.10519652 (licence CC BY-NC 4.0, not for
  commercial use), into a folder.
  """

  # The images of the split that was read last, and its name.
  _images: np.ndarray | None = None
  _split = ''

  def read_records(self, folder: pathlib.Path | None) -> list[builder.Record]:
    """Returns one record for each image, in the order of the file."""
    size = self.builder_config.size
    name = 'dermamnist' + (f'_{size}' if size != 28 else '') + '.npz'
    path = folder / name
    if not path.is_file():
      raise errors.UserError(
        f'{folder} has no {name}; download it from {_SOURCE} into that folder'
      )
    records = []
    for split in splits.SPLITS:
      labels = _read_labels(path, split, size, len(self.class_names))
      for i, label in enumerate(labels):
        image = f'{split}_{i:05d}'
        records.append(
          builder.Record(
            id=image,
            label=self.class_names[label],
            group=image,
            source=(path, split, i),
            split=split,
          )
        )
    return records

  def read_image(self, record: builder.Record) -> np.ndarray:
    """Returns the stored image, uint8 `[size, size, 3]`.

    Raises:
      UserError: the file is damaged.
    """
    path, split, i = record.source
    if self._split != split:
      self._images = None  # Two splits need not be in memory together.
      self._images = _read_array(path, f'{split}_images')
      self._split = split
    return self._images[i]


def _read_labels(
  path: pathlib.Path, split: str, size: int, num_classes: int
) -> list[int]:
  """Returns the classes of a split; checks the form of its images too."""
  shape, dtype = _read_header(path, f'{split}_images')
  if shape[1:] != (size, size, 3) or dtype != np.uint8 or not shape[0]:
    raise errors.UserError(
      f'{path}: {split}_images are {dtype} {list(shape)}, not uint8 '
      f'[images, {size}, {size}, 3]; download it again from {_SOURCE}'
    )
  num_images = shape[0]
  shape, dtype = _read_header(path, f'{split}_labels')
  if shape not in ((num_images,), (num_images, 1)) or dtype.kind not in 'iu':
    raise errors.UserError(
      f'{path}: {split}_labels are {dtype} {list(shape)}, not one whole number '
      f'for each of {num_images} images; download it again from {_SOURCE}'
    )
  labels = _read_array(path, f'{split}_labels').ravel().tolist()
  unknown = sorted(set(labels) - set(range(num_classes)))
  if unknown:
    raise errors.UserError(
      f'{path}: {split}_labels has {unknown[0]}, but the classes are 0 to '
      f'{num_classes - 1}; download it again from {_SOURCE}'
    )
  return labels


def _read_header(
  path: pathlib.Path, name: str
) -> tuple[tuple[int, ...], np.dtype]:
  """Returns an array's shape and dtype without reading it."""
  try:
    with zipfile.ZipFile(path) as archive, archive.open(f'{name}.npy') as file:
      version = np.lib.format.read_magic(file)
      shape, _, dtype = _HEADER_READERS[version](file)
  except images.DAMAGES as e:
    raise _unreadable(path, name, e) from None
  # Only the header has been read so far.
  if np.prod([dtype.itemsize, *shape], dtype=object) > MAX_ARRAY_BYTES:
    raise errors.UserError(
      f'{path}: {name} would take more than {MAX_ARRAY_BYTES:,} bytes; this is '
      f'not the published file, download it again from {_SOURCE}'
    )
  return shape, dtype


def _read_array(path: pathlib.Path, name: str) -> np.ndarray:
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return arrays[name]
  except images.DAMAGES as e:
    raise _unreadable(path, name, e) from None


def _unreadable(
  path: pathlib.Path, name: str, error: Exception
) -> errors.UserError:
  return errors.UserError(
    f'{path}: {name} is unreadable ({errors.one_line(error)}); download it '
    f'again from {_SOURCE}'
  )
