"""LPIPS against a NumPy implementation with strided convolutions."""

import ast
import functools
import pathlib

import image_references
import jax
import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.models import perceptual

_FEATURES = [64, 192, 384, 256, 256]  # of AlexNet


@pytest.fixture(scope='module')
def alexnet():
  """The arrays that the package ships."""
  with np.load(perceptual.ALEXNET) as arrays:
    return dict(arrays)


def _vgg16():
  """Random arrays with the structure of VGG16, but 2 to 4 channels."""
  widths = [3, 2, 2, 3, 3, 2, 2, 4, 3, 3, 4, 2, 2, 3]
  return image_references.random_weights(widths, [3] * 13)


@functools.partial(jax.jit, static_argnums=0)
def _run(name, convs, heads, a, b):
  network = perceptual.Network(name, convs, heads)
  return perceptual.features(network, a), perceptual.lpips(network, a, b)


def _images(height, width, number=2):
  """Random images, from smooth to rough."""
  rng = np.random.default_rng(height)
  y, x = np.mgrid[:height, :width][..., None] / height
  smooth = 0.5 + 0.4 * np.sin(9 * x + 4 * y + np.arange(3))
  return np.float32(
    [
      np.clip(smooth + i / 5 * rng.normal(size=smooth.shape), 0, 1)
      for i in range(number)
    ]
  )


def test_the_shipped_weights(alexnet):
  shapes = {name: values.shape for name, values in alexnet.items()}
  expected = {}
  sizes, inputs = (11, 5, 3, 3, 3), [3, *_FEATURES]
  for i, (size, width) in enumerate(zip(sizes, _FEATURES)):
    expected[f'conv_{i}/kernel'] = (size, size, inputs[i], width)
    expected[f'conv_{i}/bias'] = expected[f'head_{i}'] = (width,)
  assert shapes == expected
  assert all(np.isfinite(values).all() for values in alexnet.values())
  # Otherwise more difference could be less distance.
  assert all(alexnet[f'head_{i}'].min() >= 0 for i in range(5))


@pytest.mark.parametrize('size', [(31, 31), (64, 64), (67, 45)])
def test_alexnet_against_numpy(size, alexnet):
  a, b = _images(*size), _images(*size)[::-1]
  network = perceptual.load()

  features, distance = _run(*network, a, b)
  expected = [image_references.features(alexnet, image) for image in a]
  for actual, *of_images in zip(features, *expected, strict=True):
    scale = np.abs(of_images).max()
    np.testing.assert_allclose(actual, of_images, atol=1e-4 * scale)
  expected = image_references.lpips(alexnet, a, b)
  np.testing.assert_allclose(distance, expected, rtol=1e-4)
  assert expected.min() > 0.05


def test_vgg16_against_numpy(tmp_path):
  arrays = _vgg16()
  np.savez(tmp_path / 'vgg16.npz', **arrays)
  network = perceptual.load(tmp_path / 'vgg16.npz')
  assert network.name == 'vgg16'
  a, b = _images(37, 48), _images(37, 48)[::-1]

  features, distance = _run(*network, a, b)
  assert [f.shape[1:3] for f in features] == [
    (37, 48),
    (18, 24),
    (9, 12),
    (4, 6),
    (2, 3),
  ]
  expected = [image_references.features(arrays, image) for image in a]
  for actual, *of_images in zip(features, *expected):
    np.testing.assert_allclose(actual, of_images, rtol=1e-3, atol=1e-4)
    assert np.ptp(of_images) > 0.1
  expected = image_references.lpips(arrays, a, b)
  np.testing.assert_allclose(distance, expected, rtol=1e-3)
  assert expected.min() > 0.01


def test_distance_is_symmetric_grows_and_is_zero_for_the_same():
  images = _images(31, 31, 4)
  first = np.broadcast_to(images[:1], images.shape)
  network = perceptual.load()
  _, distances = _run(*network, first, images)
  _, reverse = _run(*network, images, first)
  np.testing.assert_allclose(reverse, distances, rtol=1e-5)
  assert distances[0] == 0
  assert np.all(np.diff(distances) > 0)


def test_an_image_of_the_least_size_has_features_everywhere():
  network = perceptual.load()
  for size, places in ((perceptual.MIN_SIZE, 1), (perceptual.MIN_SIZE - 1, 0)):
    features = jax.eval_shape(
      lambda x: perceptual.features(network, x),
      jax.ShapeDtypeStruct((1, size, size, 3), np.float32),
    )
    assert features[-1].shape[1:3] == (places, places)


def _cut_heads(arrays):
  return arrays | {'head_2': arrays['head_2'][1:]}


def _without(*names):
  return lambda arrays: {k: v for k, v in arrays.items() if k not in names}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (_cut_heads, 'the heads do not fit'),
    (_without('head_4'), 'head_4'),
    (_without('conv_12/kernel'), '12 convolutions'),
    (_without('conv_3/bias'), 'conv_3/bias'),
    (lambda arrays: {}, '0 convolutions'),
    (lambda arrays: arrays | {'head_0': np.array(['a', 'b'])}, 'a'),
    (lambda arrays: arrays | {'head_0': np.array([{}])}, 'pickle'),
  ],
)
def test_files_without_the_right_arrays(tmp_path, change, message):
  file = tmp_path / 'vgg16.npz'
  np.savez(file, **change(_vgg16()))
  with pytest.raises(errors.UserError, match=message) as e:
    perceptual.load(file)
  text = str(e.value)
  assert text.startswith(f'{file} does not hold the weights of LPIPS')
  assert 'experiments/lpips_weights.py' in text and '\n' not in text


def _write_npy(file):
  with file.open('wb') as f:
    np.save(f, np.zeros(3))


def _write_half(file):
  np.savez(file, **_vgg16())
  file.write_bytes(file.read_bytes()[:2000])


@pytest.mark.parametrize(
  'write',
  [
    lambda file: None,
    lambda file: file.mkdir(),
    lambda file: file.write_bytes(b''),
    lambda file: file.write_text('this is no archive\n'),
    _write_npy,
    _write_half,
  ],
)
def test_files_that_are_no_npz(tmp_path, write):
  file = tmp_path / 'weights.npz'
  write(file)
  with pytest.raises(errors.UserError, match='weights.npz does not') as e:
    perceptual.load(file)
  assert '\n' not in str(e.value)


def test_weights_and_their_licence_are_in_the_package():
  """setup.py names them, so that a wheel has them."""
  setup = pathlib.Path(__file__).parents[2] / 'setup.py'
  [call] = [
    node
    for node in ast.walk(ast.parse(setup.read_text()))
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('.setup')
  ]
  [data] = [k.value for k in call.keywords if k.arg == 'package_data']
  patterns = ast.literal_eval(data)['dermvq_jax.models']
  models = pathlib.Path(perceptual.__file__).parent
  shipped = {file for pattern in patterns for file in models.glob(pattern)}
  assert perceptual.ALEXNET in shipped
  [readme] = [file for file in shipped if file.name == 'README.md']
  assert 'BSD' in readme.read_text()
