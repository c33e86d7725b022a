"""Image files in all forms that are read, damaged."""

import io

import fuzzing
import hypothesis
import numpy as np
import pytest
from PIL import Image, ImageCms

from dermvq_jax.data import images

_SIZE = 16


def _files():
  """Small images, as bytes."""
  rng = np.random.default_rng(0)
  colours = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
  rgb = Image.fromarray(colours).resize((40, 30), Image.Resampling.BILINEAR)
  grey16 = Image.fromarray(np.asarray(rgb.convert('L')).astype(np.uint16) * 257)
  exif = Image.Exif()
  exif[274] = 6
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  kinds = (
    (rgb, {'format': 'JPEG', 'quality': 95, 'exif': exif}),
    (rgb, {'format': 'JPEG', 'progressive': True}),
    (rgb.convert('CMYK'), {'format': 'JPEG'}),
    (rgb, {'format': 'JPEG', 'icc_profile': profile}),
    (rgb, {'format': 'PNG', 'icc_profile': profile}),
    (rgb.quantize(8), {'format': 'PNG', 'transparency': 3}),
    (rgb.convert('RGBA'), {'format': 'PNG', 'exif': exif}),
    (grey16, {'format': 'PNG'}),
    (rgb.convert('1'), {'format': 'PNG'}),
  )
  made = []
  for image, options in kinds:
    file = io.BytesIO()
    image.save(file, **options)
    made.append(file.getvalue())
  return made


_FILES = _files()


@pytest.mark.parametrize('read', [images.read_square, images.read_mask])
@fuzzing.inputs(few=40, share=0.1)
@hypothesis.given(rng=fuzzing.dice())
def test_image_files(tally, tmp_path, read, rng):
  path = tmp_path / 'image'
  path.write_bytes(fuzzing.damaged(rng.choice(_FILES), rng))
  found = tally.call(read, path, _SIZE)
  if found is not None:
    assert found.shape[:2] == (_SIZE, _SIZE)
    assert found.dtype in (np.uint8, bool)


def test_the_images_themselves_are_read(tmp_path):
  for data in _FILES:
    (tmp_path / 'image').write_bytes(data)
    assert images.read_square(tmp_path / 'image', _SIZE).shape == (16, 16, 3)
