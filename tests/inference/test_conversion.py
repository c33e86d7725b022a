"""Images as people have them."""

import numpy as np
import pytest
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.data import images as images_lib
from dermvq_jax.inference import conversion

_SIZE = 8
_IMAGE = np.random.default_rng(0).integers(0, 256, (_SIZE, _SIZE, 3), np.uint8)


@pytest.fixture
def file(tmp_path):
  Image.fromarray(_IMAGE).save(tmp_path / 'a.png')
  return tmp_path / 'a.png'


def test_all_kinds_of_one_image(file, monkeypatch):
  monkeypatch.setenv('HOME', str(file.parent))
  pil = Image.fromarray(_IMAGE)
  for given in (
    file,
    str(file),
    '~/a.png',
    pil,
    pil.convert('RGBA'),
    _IMAGE,
    _IMAGE[None],
    _IMAGE / 255,
    np.float32(_IMAGE / 255)[None],
    np.float16(_IMAGE / 255),
    [file],
    [pil],
    [_IMAGE],
    (_IMAGE / 255,),
  ):
    found = conversion.read(given, _SIZE)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, _IMAGE[None])


def test_several_kinds_in_one_list(file):
  found = conversion.read(
    [file, Image.fromarray(_IMAGE[::-1]), _IMAGE[:, ::-1] / 255], _SIZE
  )
  expected = np.stack([_IMAGE, _IMAGE[::-1], _IMAGE[:, ::-1]])
  np.testing.assert_array_equal(found, expected)


def test_files_and_pil_images_are_read_as_in_training(tmp_path):
  """Cropped, resized, in sRGB, turned; arrays are taken as they are."""
  large = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
  Image.fromarray(large).save(tmp_path / 'large.png')
  expected = images_lib.read_square(tmp_path / 'large.png', _SIZE)
  for given in (tmp_path / 'large.png', Image.fromarray(large)):
    np.testing.assert_array_equal(conversion.read(given, _SIZE)[0], expected)
  np.testing.assert_array_equal(conversion.read(large, _SIZE)[0], large)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (np.full((2, 2, 3), 1.5), r'in \[0, 1\]; these are from 1.5 to 1.5'),
    (np.full((2, 2, 3), -0.1), r'in \[0, 1\]'),
    (np.full((2, 2, 3), np.nan), r'in \[0, 1\]; these are from nan'),
    (np.float32(_IMAGE), r'in \[0, 1\]; these are from 0 to'),
    ([[1], [1, 2]], 'cannot become an array'),
    ([Image.fromarray(_IMAGE), _IMAGE[:4]], r'\[4, 8, 3\] and \[8, 8, 3\] can'),
    ('.', 'is a folder, not an image; give the files in it'),
  ],
)
def test_what_is_no_image(given, message):
  with pytest.raises(errors.UserError, match=message) as e:
    conversion.read(given, _SIZE)
  assert '\n' not in str(e.value)


def test_files_that_are_missing_or_damaged(tmp_path):
  for missing in (tmp_path / 'b.png', [_IMAGE, 'b.png']):
    with pytest.raises(FileNotFoundError, match='there is no file .*b.png'):
      conversion.read(missing, _SIZE)
  with pytest.raises(FileNotFoundError, match="no mask .*'; give left, right"):
    conversion.read_mask(tmp_path / 'b.png', (_SIZE, _SIZE), _SIZE)
  (tmp_path / 'c.png').write_bytes(b'none')
  with pytest.raises(errors.UserError, match='c.png is unreadable'):
    conversion.read(tmp_path / 'c.png', _SIZE)
  Image.fromarray(_IMAGE).save(tmp_path / 'd.png')
  half = (tmp_path / 'd.png').read_bytes()[:150]
  (tmp_path / 'd.png').write_bytes(half)
  with (
    Image.open(tmp_path / 'd.png') as opened,
    pytest.raises(errors.UserError, match='PIL image is unreadable'),
  ):
    conversion.read(opened, _SIZE)


def test_all_kinds_of_a_mask(tmp_path):
  expected = np.zeros((_SIZE, _SIZE), bool)
  expected[_SIZE // 2 :] = True
  pil = Image.fromarray(np.uint8(255) * expected.astype(np.uint8))
  pil.save(tmp_path / 'mask.png')
  for given in (
    'bottom',
    tmp_path / 'mask.png',
    str(tmp_path / 'mask.png'),
    pil,
    expected,
    expected.tolist(),
  ):
    found = conversion.read_mask(given, (_SIZE, _SIZE), _SIZE)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected)
  with pytest.raises(errors.UserError, match='for square images; .* 8x4 px'):
    conversion.read_mask('bottom', (4, 8), _SIZE)


def test_output():
  images = np.stack([_IMAGE, _IMAGE[::-1]])
  assert conversion.as_output(images, 'array') is images
  pils = conversion.as_output(images, 'pil')
  assert [image.mode for image in pils] == ['RGB', 'RGB']
  np.testing.assert_array_equal(np.stack(pils), images)
  for wrong in ('PIL', 'np', None):
    with pytest.raises(errors.UserError, match="give 'array' or 'pil'"):
      conversion.as_output(images, wrong)
