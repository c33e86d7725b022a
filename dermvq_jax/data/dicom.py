"""Reads DICOM files; needs pydicom (the extra `dicom`)."""

import importlib.util
import os
from typing import BinaryIO

from PIL import Image

SUFFIX = '.dcm'
IS_INSTALLED = importlib.util.find_spec('pydicom') is not None


def read(file: BinaryIO, max_pixels: int) -> Image.Image:
  """Reads a colour image of 8 bits, with its ICC profile.

  Args:
    file: a DICOM file with one frame, for example of a dermoscope.
    max_pixels: an image must not have more.

  Raises:
    ValueError: it is not such a file, or it is damaged.
    DecompressionBombError: it has more pixels.
  """
  if file.seek(0, os.SEEK_END) > 4 * max_pixels:
    raise ValueError('the file is larger than such an image can be')
  file.seek(0)
  import pydicom
  from pydicom import pixels

  try:
    dataset = pydicom.dcmread(file)
    size = dataset.Columns, dataset.Rows
    kind = dataset.SamplesPerPixel, dataset.BitsStored
    frames = int(dataset.get('NumberOfFrames') or 1)
  except Exception as e:  # pydicom raises many kinds.
    raise ValueError(f'it is no DICOM image: {e}') from e
  if size[0] * size[1] > max_pixels:
    raise Image.DecompressionBombError(f'{size[0]}x{size[1]}')
  if kind != (3, 8) or frames != 1:
    raise ValueError(
      f'it has {kind[0]} channels of {kind[1]} bits and {frames} frames; only '
      'colour images of 8 bits and 1 frame are read'
    )
  try:
    image = Image.fromarray(pixels.pixel_array(dataset))
    profile = dataset.get('ICCProfile')
  except Exception as e:
    raise ValueError(str(e)) from e
  if profile:
    image.info['icc_profile'] = bytes(profile)
  return image
