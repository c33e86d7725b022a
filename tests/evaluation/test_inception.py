"""Tests that Inception-v3 is the network of the standard FID."""

import zlib

import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.evaluation import feature_spaces, inception

# Each block's convolutions: outputs, kernel height and width, and the
# convolution that it follows (None: it takes the block's input).
_STEM = {
  'Conv2d_1a_3x3': (3, 32, 3, 3),
  'Conv2d_2a_3x3': (32, 32, 3, 3),
  'Conv2d_2b_3x3': (32, 64, 3, 3),
  'Conv2d_3b_1x1': (64, 80, 1, 1),
  'Conv2d_4a_3x3': (80, 192, 3, 3),
}


def _a(pool):
  return {
    'branch1x1': (64, 1, 1, None),
    'branch5x5_1': (48, 1, 1, None),
    'branch5x5_2': (64, 5, 5, 'branch5x5_1'),
    'branch3x3dbl_1': (64, 1, 1, None),
    'branch3x3dbl_2': (96, 3, 3, 'branch3x3dbl_1'),
    'branch3x3dbl_3': (96, 3, 3, 'branch3x3dbl_2'),
    'branch_pool': (pool, 1, 1, None),
  }


def _c(c):
  return {
    'branch1x1': (192, 1, 1, None),
    'branch7x7_1': (c, 1, 1, None),
    'branch7x7_2': (c, 1, 7, 'branch7x7_1'),
    'branch7x7_3': (192, 7, 1, 'branch7x7_2'),
    'branch7x7dbl_1': (c, 1, 1, None),
    'branch7x7dbl_2': (c, 7, 1, 'branch7x7dbl_1'),
    'branch7x7dbl_3': (c, 1, 7, 'branch7x7dbl_2'),
    'branch7x7dbl_4': (c, 7, 1, 'branch7x7dbl_3'),
    'branch7x7dbl_5': (192, 1, 7, 'branch7x7dbl_4'),
    'branch_pool': (192, 1, 1, None),
  }


_B = {
  'branch3x3': (384, 3, 3, None),
  'branch3x3dbl_1': (64, 1, 1, None),
  'branch3x3dbl_2': (96, 3, 3, 'branch3x3dbl_1'),
  'branch3x3dbl_3': (96, 3, 3, 'branch3x3dbl_2'),
}
_D = {
  'branch3x3_1': (192, 1, 1, None),
  'branch3x3_2': (320, 3, 3, 'branch3x3_1'),
  'branch7x7x3_1': (192, 1, 1, None),
  'branch7x7x3_2': (192, 1, 7, 'branch7x7x3_1'),
  'branch7x7x3_3': (192, 7, 1, 'branch7x7x3_2'),
  'branch7x7x3_4': (192, 3, 3, 'branch7x7x3_3'),
}
_E = {
  'branch1x1': (320, 1, 1, None),
  'branch3x3_1': (384, 1, 1, None),
  'branch3x3_2a': (384, 1, 3, 'branch3x3_1'),
  'branch3x3_2b': (384, 3, 1, 'branch3x3_1'),
  'branch3x3dbl_1': (448, 1, 1, None),
  'branch3x3dbl_2': (384, 3, 3, 'branch3x3dbl_1'),
  'branch3x3dbl_3a': (384, 1, 3, 'branch3x3dbl_2'),
  'branch3x3dbl_3b': (384, 3, 1, 'branch3x3dbl_2'),
  'branch_pool': (192, 1, 1, None),
}
_BLOCKS = {
  'Mixed_5b': (192, _a(32)),
  'Mixed_5c': (256, _a(64)),
  'Mixed_5d': (288, _a(64)),
  'Mixed_6a': (288, _B),
  'Mixed_6b': (768, _c(128)),
  'Mixed_6c': (768, _c(160)),
  'Mixed_6d': (768, _c(160)),
  'Mixed_6e': (768, _c(192)),
  'Mixed_7a': (768, _D),
  'Mixed_7b': (1280, _E),
  'Mixed_7c': (2048, _E),
}


def _numbers(key, shape):
  """Numbers in [0, 1) that are the same in every library, float64."""
  start = zlib.crc32(key.encode()) % 1000
  x = np.sin(np.arange(np.prod(shape)) * 12.9898 + start) * 43758.5453
  return (x - np.floor(x)).reshape(shape)


def random_weights():
  """Made-up weights in the layout of the published ones."""
  shapes = {
    name: (out, inputs, h, w) for name, (inputs, out, h, w) in _STEM.items()
  }
  for block, (inputs, convs) in _BLOCKS.items():
    for name, (out, h, w, before) in convs.items():
      given = inputs if before is None else convs[before][0]
      shapes[f'{block}.{name}'] = out, given, h, w
  arrays = {}
  for name, shape in shapes.items():
    key, n = f'{name}.conv.weight', shape[:1]
    scale = np.sqrt(24 / np.prod(shape[1:]))
    arrays[key] = np.float32(scale * (_numbers(key, shape) - 0.5))
    for part, low, width in (
      ('weight', 0.7, 0.6),
      ('bias', -0.1, 0.2),
      ('running_mean', -0.1, 0.2),
      ('running_var', 0.5, 1.0),
    ):
      key = f'{name}.bn.{part}'
      arrays[key] = np.float32(low + width * _numbers(key, n))
  return arrays


def some_images():
  y, x = np.mgrid[:40, :40]
  return np.uint8(
    [
      np.stack([x * 6 + c, y * 5 + c, (x + y) * 3], axis=-1) % 256
      for c in (0, 30)
    ]
  )


# From pytorch-fid 0.3.0 (torch 2.13, CPU) with these weights and images, scaled
# to [0, 1]: features 0, 400, 800, 1200, 1600 and 2000, and the mean of all.
_GOLDEN = np.array(
  [
    [2.54322, 1.852988, 0.925077, 2.45686, 5.187105, 0.0, 1.876518],
    [3.006845, 2.700229, 1.196068, 3.088537, 6.889724, 0.0, 2.410273],
  ]
)


@pytest.fixture(scope='module')
def weights_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('inception') / 'inception.npz'
  np.savez(path, **random_weights())
  return path


@pytest.mark.slow
def test_features_are_those_of_the_standard_fid(weights_file):
  made = feature_spaces.Inception(weights_file)(some_images())
  assert made.shape == (2, 2048)
  found = np.concatenate([made[:, :2001:400], made.mean(1)[:, None]], axis=1)
  np.testing.assert_allclose(found, _GOLDEN, rtol=1e-4)


@pytest.mark.parametrize('kind', ['missing', 'pickle', 'text', 'others'])
def test_other_files_are_refused(kind, tmp_path):
  path = tmp_path / ('weights.pth' if kind == 'pickle' else 'weights.npz')
  if kind in ('pickle', 'text'):
    path.write_text('no weights')
  elif kind == 'others':
    np.savez(path, **{'Conv2d_1a_3x3.conv.weight': np.zeros((32, 3, 3, 3))})
  with pytest.raises(errors.UserError, match='pt_inception-2015-12-05'):
    inception.load(path)


def test_objects_are_not_unpickled(tmp_path):
  path = tmp_path / 'weights.npz'
  np.savez(path, a=np.array([{}], object))
  with pytest.raises(errors.UserError, match='does not hold the weights'):
    inception.load(path)
