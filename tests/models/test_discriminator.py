"""The discriminator, its views of images, and its losses against NumPy."""

import functools

import image_references
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax.models import discriminator, perceptual

_ALEXNET = perceptual.View()
# Number of parameters by (features, num_stages, view).
GOLDEN = {
  (8, 1, None): 1_809,
  (8, 2, None): 6_537,
  (32, 3, None): 377_313,
  (32, 3, _ALEXNET): 377_313 + 5 * (64 * 64 * 9 + 4 * 64 + 64 + 1) + 64 * 1152,
}


def _images(shape=(2, 24, 32, 3), seed=0):
  return np.float32(np.random.default_rng(seed).random(shape))


@functools.cache
def _made(features=8, num_stages=2, view=None, dtype=jnp.float32):
  """A discriminator with random parameters, without a zero among them."""
  model = discriminator.Discriminator(features, num_stages, view, dtype)
  shapes = jax.eval_shape(model.init, jax.random.key(0), _images())
  rng = np.random.default_rng(0)

  def draw(leaf):
    fan_in = max(1, np.prod(leaf.shape[:-1]))
    return np.asarray(rng.normal(size=leaf.shape) / fan_in**0.5, leaf.dtype)

  variables = jax.tree.map(draw, shapes)
  return variables, jax.jit(functools.partial(model.apply, variables))


@pytest.mark.parametrize(('features', 'num_stages', 'view'), GOLDEN)
def test_shapes_and_number_of_parameters(features, num_stages, view):
  model = discriminator.Discriminator(features, num_stages, view)
  images = _images((2, 48, 64, 3))
  (logits, stages), variables = jax.eval_shape(
    model.init_with_output, jax.random.key(0), images
  )
  sizes = [(48 >> i, 64 >> i) for i in range(1, num_stages + 1)]
  assert [x.shape for x in stages] == [
    (2, *size, features << i) for i, size in enumerate(sizes)
  ]
  of_features = [(11, 15), (5, 7), (2, 3), (2, 3), (2, 3)]
  assert [x.shape for x in logits] == [
    (2, *size) for size in [sizes[-1]] + (of_features if view else [])
  ]
  leaves = jax.tree.leaves(variables)
  assert {x.dtype for x in leaves} == {jnp.dtype('float32')}
  count = sum(x.size for x in leaves)
  assert count == GOLDEN[features, num_stages, view]


def test_bfloat16_is_used_inside_only():
  _, exact = _made()
  variables, half = _made(dtype=jnp.bfloat16)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype('float32')}
  pairs = zip(
    jax.tree.leaves(half(_images())), jax.tree.leaves(exact(_images()))
  )
  for rough, fine in pairs:
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - fine).max() < 0.1 * np.abs(fine).max()


def test_every_pixel_and_channel_is_seen():
  """By the logit of its own patch at least; other images are not seen."""
  _, apply = _made()
  images = _images((2, 16, 16, 3))

  def judge(images):
    [logits] = apply(images)[0]
    return jnp.abs(logits[0]).sum(), logits

  gradient, logits = jax.jit(jax.grad(judge, has_aux=True))(images)
  assert logits.shape == (2, 4, 4)
  assert np.all(gradient[0] != 0)
  assert np.all(gradient[1] == 0)


def test_a_shift_by_a_pixel_changes_the_logits():
  _, apply = _made()
  images = _images()
  [logits], _ = apply(images)
  for axis in (1, 2):
    [other], _ = apply(np.roll(images, 1, axis))
    assert np.abs(other - logits).max() > 0.01 * np.abs(logits).max()


def test_first_stage_against_numpy():
  """It sees the pixels, and their difference to the mean of 3x3 pixels."""
  variables, apply = _made(8, 1)
  images = np.float64(_images((1, 6, 8, 3)))
  wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
  windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (1, 2))
  detail = 12 * (images - windows.mean((-2, -1)))
  [x] = np.concatenate([2 * images - 1, detail], -1)
  # Blocks of 2x2 pixels are channels; the kernel sees 3x3 blocks.
  x = x.reshape(3, 2, 4, 2, 6).transpose(0, 2, 1, 3, 4).reshape(3, 4, 24)
  x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (0, 1))
  params = variables['params']['Conv_0']
  x = np.einsum('hwcij,ijco->hwo', windows, params['kernel']) + params['bias']
  expected = np.where(x > 0, x, 0.2 * x)
  _, [actual] = apply(np.float32(images))
  np.testing.assert_allclose(actual[0], expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_all_parameters_and_the_images():
  model = discriminator.Discriminator(8, 2)
  variables, _ = _made()
  grad = jax.jit(
    jax.grad(lambda v, x: jnp.square(model.apply(v, x)[0][0]).sum(), (0, 1))
  )
  for gradient in jax.tree.leaves(grad(variables, _images())):
    assert np.any(gradient != 0) and np.isfinite(gradient).all()
  black = np.zeros_like(_images())
  for gradient in jax.tree.leaves(grad(variables, black)):
    assert np.isfinite(gradient).all()


def test_features_of_alexnet_are_judged(monkeypatch):
  """Each by its own head, here against NumPy."""
  rng = np.random.default_rng(0)

  def features(network, images):
    assert network is _ALEXNET.load()
    mean = images.mean((1, 2), keepdims=True)
    return [jnp.tile(mean, (1, 1, 2, 2)), jnp.tile(mean, (1, 2, 3, 4))]

  monkeypatch.setattr(perceptual, 'features', features)
  model = discriminator.Discriminator(8, 1, _ALEXNET)
  images = _images()
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  variables = jax.tree.map(
    lambda x: np.float32(rng.normal(size=x.shape)), shapes
  )
  (_, *logits), _ = model.apply(variables, images)
  assert [x.shape for x in logits] == [(2, 1, 2), (2, 2, 3)]
  # The last head, after the convolutions of stage, patches and first head.
  kernels = [variables['params'][f'Conv_{i}'] for i in range(5, 8)]
  x = np.tile(images.mean((1, 2), keepdims=True), (1, 2, 3, 4))
  x = np.float64(x) / np.linalg.norm(x, axis=-1, keepdims=True) * 12**0.5
  x = x @ kernels[0]['kernel'][0, 0] + kernels[0]['bias']
  groups = x.reshape(2, 6, 8, 2)
  mean = groups.mean((1, 3), keepdims=True)
  groups = (groups - mean) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-6)
  norm = variables['params']['GroupNorm_1']
  x = groups.reshape(2, 2, 3, 16) * norm['scale'] + norm['bias']
  x = np.where(x > 0, x, 0.2 * x)
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
  x = np.einsum('bhwcij,ijco->bhwo', windows, kernels[1]['kernel'])
  x = x + kernels[1]['bias']
  x = np.where(x > 0, x, 0.2 * x)
  expected = x @ kernels[2]['kernel'][0, 0] + kernels[2]['bias']
  np.testing.assert_allclose(logits[1], expected[..., 0], rtol=1e-3, atol=1e-3)


def test_the_network_sees_a_random_square(tmp_path):
  arrays = image_references.random_weights([3, 2, 3, 4, 2], [3] * 4)
  np.savez(tmp_path / 'vgg16.npz', **arrays)
  path = str(tmp_path / 'vgg16.npz')
  images = _images((1, 40, 40, 3))
  variables, judge = _made(view=perceptual.View(path, crop=32))
  assert [x.shape[1:] for x in judge(images)[0]] == [
    (10, 10),
    (40, 40),
    (20, 20),
  ]

  (_, *seen), _ = judge(images, jax.random.key(0))
  assert [x.shape[1:] for x in seen] == [(32, 32), (16, 16)]
  whole = discriminator.Discriminator(8, 2, perceptual.View(path))
  squares = np.concatenate(
    [images[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
  )
  (_, *possible), _ = jax.jit(whole.apply)(variables, squares)
  distances = np.abs(possible[0] - seen[0]).max((1, 2))
  assert distances.min() < 1e-4 < 1e-2 < np.median(distances)
  (_, *others), _ = judge(images, jax.random.key(1))
  assert np.abs(others[0] - seen[0]).max() > 1e-2


# Views.


def _standard(images):
  """Brightness and contrast taken away."""
  images = np.float64(images)
  images = images - images.mean((-3, -2, -1), keepdims=True)
  return images / images.std((-3, -2, -1), keepdims=True)


def _crops(image):
  """All crops `[17 * 17, H, W, 3]` of the image with mirrored borders."""
  n = discriminator.MAX_SHIFT
  height, width = image.shape[:2]
  wide = np.pad(image, ((n, n), (n, n), (0, 0)), mode='reflect')
  return np.stack(
    [
      wide[i : i + height, j : j + width]
      for i in range(2 * n + 1)
      for j in range(2 * n + 1)
    ]
  )


def test_views_are_crops_with_another_brightness_and_contrast():
  images = np.repeat(_images((1, 12, 14, 3)), 64, 0)
  views = np.asarray(jax.jit(discriminator.augment)(jax.random.key(0), images))
  assert views.shape == images.shape
  crops = _crops(images[0])
  distances = np.square(
    _standard(views)[:, None] - _standard(crops)[None]
  ).mean((2, 3, 4))
  found = distances.argmin(1)
  assert distances.min(1).max() < 1e-6  # Nothing else was done to them.
  # Each image has its own shift, all over the range.
  assert len(set(found)) > 40
  for axis in np.divmod(found, 17):
    assert axis.min() <= 2 and axis.max() >= 14
  brightness = views.mean((1, 2, 3)) - crops[found].mean((1, 2, 3))
  assert np.abs(brightness).max() <= 0.1 + 1e-6
  contrast = views.std((1, 2, 3)) / crops[found].std((1, 2, 3))
  assert contrast.min() >= 0.8 - 1e-5 and contrast.max() <= 1.25 + 1e-5
  for values, spread in ((brightness, 0.15), (contrast, 0.3)):
    assert len(set(values)) == 64 and np.ptp(values) > spread


def test_views_are_the_same_for_the_same_key():
  a, b = _images((4, 12, 12, 3)), _images((4, 12, 12, 3), seed=1)
  augment = jax.jit(discriminator.augment)
  views = [np.asarray(augment(jax.random.key(0), x)) for x in (a, b)]
  found = [
    [
      int(np.square(_standard(crops) - _standard(view)).sum((1, 2, 3)).argmin())
      for view, crops in zip(of_one, map(_crops, images))
    ]
    for of_one, images in zip(views, (a, b))
  ]
  assert found[0] == found[1]  # real and made images alike
  again = augment(jax.random.key(0), a)
  np.testing.assert_array_equal(again, views[0])
  assert np.any(augment(jax.random.key(1), a) != views[0])


def test_gradients_flow_through_views():
  images = _images((4, 24, 24, 3))
  grad = jax.jit(
    jax.grad(
      lambda x: jnp.square(discriminator.augment(jax.random.key(0), x)).sum()
    )
  )
  gradient = grad(images)
  # At most 8 pixels are shifted out of the image.
  assert np.all(gradient[:, 8:-8, 8:-8] != 0)
  assert np.any(gradient == 0)


# Losses.


def _two_heads():
  """Logits of real and of made images, of two arrays each."""
  rng = np.random.default_rng(0)
  shapes = [(3, 4, 5), (3, 2, 2)]
  return ([2 * rng.normal(size=s) for s in shapes] for _ in range(2))


def test_hinge_loss_against_numpy():
  real, made = _two_heads()
  actual = discriminator.hinge_loss(
    *([jnp.float32(x) for x in logits] for logits in (real, made))
  )
  expected = [
    (np.maximum(1 - a, 0) + np.maximum(1 + b, 0)).reshape(3, -1).mean(1)
    for a, b in zip(real, made)
  ]
  np.testing.assert_allclose(actual, np.mean(expected, 0), rtol=1e-5)
  zeros, ones = jnp.zeros((1, 2, 2)), jnp.ones((1, 2, 2))
  assert discriminator.hinge_loss([zeros], [zeros]) == 2
  assert discriminator.hinge_loss([ones], [-ones]) == 0
  assert discriminator.hinge_loss([5 * ones], [-5 * ones]) == 0


def test_accuracy_against_numpy():
  real, made = _two_heads()
  right = [
    (np.concatenate([a.reshape(3, -1) > 0, b.reshape(3, -1) < 0], 1)).mean(1)
    for a, b in zip(real, made)
  ]
  actual = discriminator.accuracy(real, made)
  np.testing.assert_allclose(actual, np.mean(right, 0), rtol=1e-5)


def test_feature_matching_loss_against_numpy():
  rng = np.random.default_rng(0)
  shapes = [(3, 4, 5, 2), (3, 2, 2, 8)]
  real, made = ([rng.normal(size=s) for s in shapes] for _ in range(2))
  actual = discriminator.feature_matching_loss(
    *([jnp.float32(x) for x in features] for features in (real, made))
  )
  expected = np.mean(
    [np.abs(a - b).reshape(3, -1).mean(1) for a, b in zip(real, made)], 0
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  same = [jnp.float32(x) for x in real]
  np.testing.assert_array_equal(
    discriminator.feature_matching_loss(same, same), 0
  )
