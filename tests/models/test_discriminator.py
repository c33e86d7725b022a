"""The discriminator, its views of images, and its losses against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax.models import discriminator

# Number of parameters by (features, num_stages).
GOLDEN = {
  (8, 1): 2_017,
  (8, 2): 6_745,
  (32, 3): 232_993,
}


def _images(shape=(2, 24, 32, 3), seed=0):
  return np.float32(np.random.default_rng(seed).random(shape))


@functools.cache
def _made(features=8, num_stages=2, dtype=jnp.float32):
  """A discriminator with random parameters, without a zero among them."""
  model = discriminator.Discriminator(features, num_stages, dtype)
  shapes = jax.eval_shape(model.init, jax.random.key(0), _images())
  rng = np.random.default_rng(0)

  def draw(leaf):
    fan_in = max(1, np.prod(leaf.shape[:-1]))
    return np.asarray(rng.normal(size=leaf.shape) / fan_in**0.5, leaf.dtype)

  variables = jax.tree.map(draw, shapes)
  return variables, jax.jit(functools.partial(model.apply, variables))


@pytest.mark.parametrize(('features', 'num_stages'), GOLDEN)
def test_shapes_and_number_of_parameters(features, num_stages):
  model = discriminator.Discriminator(features, num_stages)
  images = _images((2, 24, 32, 3))
  (logits, stages), variables = jax.eval_shape(
    model.init_with_output, jax.random.key(0), images
  )
  sizes = [(24 >> i, 32 >> i) for i in range(1, num_stages + 1)]
  assert [x.shape for x in stages] == [
    (2, *size, features << i) for i, size in enumerate(sizes)
  ]
  assert logits.shape == (2, *sizes[-1])
  leaves = jax.tree.leaves(variables)
  assert {x.dtype for x in leaves} == {jnp.dtype('float32')}
  count = sum(x.size for x in leaves)
  assert count == GOLDEN[features, num_stages]


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
    logits = apply(images)[0]
    return jnp.abs(logits[0]).sum(), logits

  gradient, logits = jax.grad(judge, has_aux=True)(images)
  assert logits.shape == (2, 4, 4)
  assert np.all(gradient[0] != 0)
  assert np.all(gradient[1] == 0)


def test_a_shift_by_a_pixel_changes_the_logits():
  _, apply = _made()
  images = _images()
  logits, _ = apply(images)
  for axis in (1, 2):
    other, _ = apply(np.roll(images, 1, axis))
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
    jax.grad(lambda v, x: jnp.square(model.apply(v, x)[0]).sum(), (0, 1))
  )
  for gradient in jax.tree.leaves(grad(variables, _images())):
    assert np.any(gradient != 0) and np.isfinite(gradient).all()


def test_a_black_image_has_finite_gradients():
  model = discriminator.Discriminator(8, 2)
  variables, _ = _made()
  grad = jax.jit(jax.grad(lambda x: model.apply(variables, x)[0].sum()))
  assert np.isfinite(grad(np.zeros((1, 16, 16, 3), np.float32))).all()


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
  gradient = jax.grad(
    lambda x: jnp.square(discriminator.augment(jax.random.key(0), x)).sum()
  )(images)
  # At most 8 pixels are shifted out of the image.
  assert np.all(gradient[:, 8:-8, 8:-8] != 0)
  assert np.any(gradient == 0)


# Losses.


def test_hinge_loss_against_numpy():
  real, made = 2 * np.random.default_rng(0).normal(size=(2, 3, 4, 5))
  actual = discriminator.hinge_loss(jnp.float32(real), jnp.float32(made))
  expected = np.maximum(1 - real, 0) + np.maximum(1 + made, 0)
  np.testing.assert_allclose(actual, expected.mean((1, 2)), rtol=1e-5)
  zeros, ones = jnp.zeros((1, 2, 2)), jnp.ones((1, 2, 2))
  assert discriminator.hinge_loss(zeros, zeros) == 2
  assert discriminator.hinge_loss(ones, -ones) == 0
  assert discriminator.hinge_loss(5 * ones, -5 * ones) == 0


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
