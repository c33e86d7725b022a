"""Tests of DICOM files, which need pydicom."""

import io

import numpy as np
import pytest
import test_images
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.data import images, reading
from dermvq_jax.data.datasets import archives

pydicom = pytest.importorskip('pydicom')
_CLASS = '1.2.840.10008.5.1.4.1.1.77.1.4'  # a photograph in visible light


def dataset(pixels, jpeg=True):
  """A DICOM image, compressed as a JPEG or not at all."""
  made = pydicom.Dataset()
  made.file_meta = pydicom.dataset.FileMetaDataset()
  syntax = 'JPEGBaseline8Bit' if jpeg else 'ExplicitVRLittleEndian'
  made.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
  made.SOPClassUID, made.SOPInstanceUID = _CLASS, '1.2.3'
  made.Rows, made.Columns, made.SamplesPerPixel = pixels.shape
  made.PhotometricInterpretation = 'YBR_FULL_422' if jpeg else 'RGB'
  made.PlanarConfiguration = made.PixelRepresentation = 0
  made.BitsAllocated = made.BitsStored = 8 * pixels.itemsize
  made.HighBit = made.BitsStored - 1
  made.PixelData = pixels.tobytes()
  if jpeg:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', quality=95)
    made.PixelData = pydicom.encaps.encapsulate([file.getvalue()])
    made['PixelData'].is_undefined_length = True
  return made


def write(path, made):
  pydicom.dcmwrite(path, made, enforce_file_format=True)


@pytest.fixture
def pixels():
  y, x = np.mgrid[:20, :32]
  return np.stack([x * 7, y * 12, 250 - x * 7], -1).astype(np.uint8)


@pytest.mark.parametrize('jpeg', [True, False])
def test_colour_images(tmp_path, pixels, jpeg):
  write(tmp_path / 'a.dcm', dataset(pixels, jpeg))
  [file] = archives.list_files(tmp_path, images.SUFFIXES)
  result = images.read_square(file, 20).astype(int)
  assert np.abs(result - pixels[:, 6:26]).max() <= (9 if jpeg else 0)
  square = next(reading.read([file], 20, 2))
  np.testing.assert_array_equal(square.pixels, result)


def test_the_profile_is_applied(tmp_path, pixels):
  made = dataset(pixels, jpeg=False)
  made.ICCProfile = test_images.swapped_profile()
  write(tmp_path / 'a.dcm', made)
  result = images.read_square(tmp_path / 'a.dcm', 20).astype(int)
  assert np.abs(result - pixels[:, 6:26][..., [1, 0, 2]]).max() <= 3


def test_other_images_are_refused(tmp_path, pixels):
  path = tmp_path / 'a.dcm'
  made = dataset(pixels, jpeg=False)
  made.NumberOfFrames = 2
  grey = dataset(pixels[..., :1].astype(np.uint16), jpeg=False)
  grey.PhotometricInterpretation = 'MONOCHROME2'
  for refused, match in ((made, 'and 2 frames'), (grey, '1 channels of 16')):
    write(path, refused)
    with pytest.raises(errors.UserError, match=match):
      images.read_square(path, 20)
  large = dataset(pixels, jpeg=False)
  large.Rows = large.Columns = 60_000
  write(path, large)
  with pytest.raises(errors.UserError, match='has more than 50,000,000 pixels'):
    images.read_square(path, 20)


@pytest.mark.parametrize('size', [0, 10, 132, 300, 1500])
def test_damaged_files(tmp_path, pixels, size):
  path = tmp_path / 'a.dcm'
  write(path, dataset(pixels, jpeg=False))
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(errors.UserError, match='a.dcm is unreadable') as e:
    images.read_square(path, 20)
  assert '\n' not in str(e.value)
