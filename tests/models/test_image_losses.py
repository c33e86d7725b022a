"""The losses of images against NumPy; how the terms of the sum behave."""

import functools

import image_references
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from dermvq_jax import errors
from dermvq_jax.models import image_losses, perceptual


def test_squared_error():
  a, b = np.random.default_rng(0).normal(size=(2, 2, 3, 3, 3))
  actual = image_losses.squared_error(jnp.float32(a), jnp.float32(b))
  np.testing.assert_allclose(actual, (a - b) ** 2, rtol=1e-5)
  half = image_losses.squared_error(jnp.bfloat16(a), jnp.bfloat16(b))
  assert half.dtype == jnp.float32


def _pictures(size=24, channels=3):
  """Smooth pictures in [0, 1], and noisy copies: [2, H, W, C] each."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:size, : size + 4] / size
  smooth = 0.5 + 0.4 * np.sin(5 * x + 3 * y)
  a = np.stack([np.roll(smooth, i, 1) for i in range(2 * channels)], -1)
  a = np.moveaxis(a.reshape(size, size + 4, 2, channels), 2, 0)
  b = np.clip(a + rng.normal(0, [[[[0.05]]], [[[0.2]]]], a.shape), 0, 1)
  return np.float32(a), np.float32(b)


def test_ssim_equals_that_of_scikit_image():
  a, b = _pictures()
  expected = [
    skimage_metrics.structural_similarity(
      np.float64(x),
      np.float64(y),
      gaussian_weights=True,
      use_sample_covariance=False,
      sigma=1.5,
      data_range=1,
      channel_axis=-1,
    )
    for x, y in zip(a, b)
  ]
  assert 0.05 < expected[1] < expected[0] < 0.95
  np.testing.assert_allclose(
    jax.jit(image_losses.ssim)(a, b), expected, atol=1e-5
  )
  np.testing.assert_allclose(image_losses.ssim(a, a), 1, atol=1e-5)


# LPIPS needs images of 31 px.
_lpips_pictures = functools.partial(_pictures, 32)


_ALEXNET = image_references.random_weights([3, 4, 6, 5, 4, 3], [11, 5, 3, 3, 3])


def test_lpips_is_that_of_the_shipped_network():
  shipped, used = perceptual.load(), perceptual.View().load()
  assert (used.name, len(used.convs)) == ('alexnet', 5)
  for a, b in zip(jax.tree.leaves(used[1:]), jax.tree.leaves(shipped[1:])):
    np.testing.assert_array_equal(a, b)


@pytest.fixture
def small_alexnet(tmp_path):
  """LPIPS with few channels, which is compiled fast."""
  np.savez(tmp_path / 'alexnet.npz', **_ALEXNET)
  return perceptual.View(str(tmp_path / 'alexnet.npz'))


def _numpy_terms(prediction, target, variance):
  """The reconstruction terms by their definitions, in float64."""
  error = np.float64(prediction) - np.float64(target)
  x = error / np.sqrt(variance)
  near = np.abs(x) < 0.1
  made, real = (
    np.log(image_references.octave_powers(images) + 1e-9)
    for images in (prediction, target)
  )
  return {
    'mse': np.mean(error**2) / variance,
    'l1': np.mean(np.abs(x)),
    'huber': np.mean(np.where(near, x**2 / 0.2, np.abs(x) - 0.05)),
    'ssim': 1 - float(image_losses.ssim(prediction, target).mean()),
    'gradient': np.mean(np.abs(x[:, 1:] - x[:, :-1]))
    + np.mean(np.abs(x[:, :, 1:] - x[:, :, :-1])),
    'lpips': image_references.lpips(_ALEXNET, prediction, target).mean(),
    'spectrum': np.mean((made - real) ** 2),
  }


# Long sums in float32 are less exact.
_RTOL = dict.fromkeys(image_losses.RECONSTRUCTION_TERMS, 1e-5)
_RTOL |= {'lpips': 1e-4, 'spectrum': 1e-4}
every_term = pytest.mark.parametrize('name', image_losses.RECONSTRUCTION_TERMS)


def _loss_of(name, view):
  """A term alone, with weight 2, as a function of prediction and target."""
  weights = dict.fromkeys(image_losses.RECONSTRUCTION_TERMS, 0.0) | {name: 2.0}

  def loss(prediction, target, rng=None):
    return image_losses.reconstruction(
      prediction, target, weights, 0.04, rng, view
    )[0]

  return loss


@every_term
def test_reconstruction_terms(name, small_alexnet):
  target, prediction = _lpips_pictures()
  expected = _numpy_terms(prediction, target, 0.04)
  assert expected.keys() == image_losses.RECONSTRUCTION_TERMS.keys()
  run = jax.jit(jax.value_and_grad(_loss_of(name, small_alexnet)))
  value, gradient = run(prediction, target)
  np.testing.assert_allclose(value, 2 * expected[name], rtol=_RTOL[name])
  # A step against the gradient moves towards the target.
  step = 1e-3 * gradient / jnp.linalg.norm(gradient)
  assert run(prediction - step, target)[0] < value
  np.testing.assert_allclose(run(target, target)[0], 0, atol=1e-5)


@every_term
def test_gradients_are_finite_where_images_are_equal_or_black(
  name, small_alexnet
):
  """Roots and logarithms have no gradient at 0."""
  picture, other = _lpips_pictures()
  black = np.zeros_like(picture)
  grad = jax.jit(jax.grad(_loss_of(name, small_alexnet)))
  for prediction, target in (
    (picture, picture),
    (black, black),
    (black, other),
    (other, black),
  ):
    assert np.isfinite(grad(prediction, target)).all()


def test_reconstruction_is_the_weighted_sum_of_its_terms(small_alexnet):
  target, prediction = _lpips_pictures()
  terms = _numpy_terms(prediction, target, 0.04)
  weights = {name: 0.5 + i for i, name in enumerate(terms)}
  value, metrics = jax.jit(
    lambda a, b: image_losses.reconstruction(
      a, b, weights, 0.04, view=small_alexnet
    )
  )(prediction, target)
  expected = sum(weights[name] * terms[name] for name in weights)
  np.testing.assert_allclose(value, expected, rtol=1e-4)
  # The metrics have one value per image; the terms are not weighted.
  assert {value.shape for value in metrics.values()} == {(2,)}
  reconstruction_loss = metrics.pop('reconstruction_loss')
  np.testing.assert_allclose(reconstruction_loss.mean(), expected, rtol=1e-4)
  assert metrics.keys() == {f'{name}_loss' for name in terms}
  for i in range(2):
    alone = _numpy_terms(prediction[i : i + 1], target[i : i + 1], 0.04)
    for name, value in alone.items():
      np.testing.assert_allclose(
        metrics[f'{name}_loss'][i], value, rtol=_RTOL[name]
      )


def test_lpips_sees_both_images_after_the_same_shift(small_alexnet):
  target, prediction = (x[:1] for x in _lpips_pictures())

  def shifted(images, i, j):
    """Moved down and right by up to 7 pixels; the border mirrors."""
    wide = np.pad(images, ((0, 0), (7, 0), (7, 0), (0, 0)), mode='reflect')
    height, width = images.shape[1:3]
    return wide[0, i : i + height, j : j + width]

  offsets = [(i, j) for i in range(8) for j in range(8)]
  pairs = (
    np.stack([shifted(images, *offset) for offset in offsets])
    for images in (prediction, target)
  )
  network = small_alexnet.load()
  possible = jax.jit(lambda a, b: perceptual.lpips(network, a, b))(*pairs)
  run = jax.jit(_loss_of('lpips', small_alexnet))
  keys = jax.random.split(jax.random.key(0), 4)
  values = [float(run(prediction, target, key)) / 2 for key in keys]
  for value in values:
    assert np.abs(possible / value - 1).min() < 1e-5
    # Other shifts give other values.
    assert np.median(np.abs(possible / value - 1)) > 1e-3
  assert len(set(values)) > 1
  assert run(target, target, keys[0]) == 0


def test_lpips_sees_the_same_square_of_both_images(tmp_path):
  """Of whole images in evaluation."""
  arrays = image_references.random_weights([3, 2, 3, 4, 2], [3] * 4)
  np.savez(tmp_path / 'vgg16.npz', **arrays)
  view = perceptual.View(str(tmp_path / 'vgg16.npz'), crop=31)
  target, prediction = (x[:1] for x in _lpips_pictures())
  run = jax.jit(_loss_of('lpips', view))
  whole = image_references.lpips(arrays, prediction, target)
  np.testing.assert_allclose(run(prediction, target), 2 * whole, rtol=1e-4)
  keys = jax.random.split(jax.random.key(0), 4)
  values = {float(run(prediction, target, key)) for key in keys}
  assert len(values) > 1
  assert run(target, target, keys[0]) == 0


@pytest.mark.parametrize(
  'name', sorted(set(image_losses.RECONSTRUCTION_TERMS) - {'lpips'})
)
def test_other_terms_are_not_random(name):
  target, prediction = _pictures()
  loss = jax.jit(_loss_of(name, perceptual.View()))
  expected = loss(prediction, target)
  assert loss(prediction, target, jax.random.key(0)) == expected


def test_terms_of_weight_zero_are_not_computed():
  target, prediction = _pictures()
  _, metrics = image_losses.reconstruction(
    prediction, target, {'mse': 1.0, 'ssim': 0.0}, 0.04
  )
  assert metrics.keys() == {'mse_loss', 'reconstruction_loss'}


@pytest.mark.parametrize(
  'weights, message',
  [
    ({'mse': 1.0, 'l3': 1.0}, 'config.loss has no l3; there are mse'),
    ({'mse': 0.0, 'l1': 0.0}, 'at least one above 0'),
    ({'mse': 1.0, 'l1': -1.0}, '0 or more'),
    ({'mse': float('nan')}, '0 or more'),
  ],
)
def test_wrong_weights_are_refused(weights, message):
  with pytest.raises(errors.UserError, match=message):
    image_losses.check_reconstruction(weights)
