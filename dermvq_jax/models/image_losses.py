"""Losses and measures of reconstructed images, by name."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dermvq_jax import errors
from dermvq_jax.models import losses, perceptual, spectrum

Array = jax.Array


def squared_error(predictions: Array, targets: Array) -> Array:
  """Returns the squared errors, whose mean is equation 1 of the source report.

  Args:
    predictions: [...].
    targets: [...], the same shape.

  Returns:
    [...], at least in float32.
  """
  dtype = jnp.promote_types(predictions.dtype, jnp.float32)
  return (predictions.astype(dtype) - targets.astype(dtype)) ** 2


def ssim(a: Array, b: Array) -> Array:
  """Structural similarity of images in [0, 1] (Wang et al. 2004, section III).

  It is averaged over all channels and over all places where the paper's 11x11
  Gaussian window of standard deviation 1.5 lies inside the image. scikit-image
  computes the same with `gaussian_weights=True, use_sample_covariance=False,
  data_range=1`.

  Args:
    a: [B, H, W, C], H and W at least `SSIM_WINDOW`.
    b: [B, H, W, C].

  Returns:
    [B], at least in float32; 1 if the images are the same.
  """
  a, b = losses.at_least_float32(a), losses.at_least_float32(b)
  rows, columns = (_gaussian_windows(n) for n in a.shape[1:3])

  def blur(x: Array) -> Array:  # matmuls are fast on every backend
    x = jnp.einsum('ih,bhwc->biwc', rows, x)
    return jnp.einsum('jw,biwc->bijc', columns, x)

  mean_a, mean_b = blur(a), blur(b)
  variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
  covariance = blur(a * b) - mean_a * mean_b
  c1, c2 = 0.01**2, 0.03**2
  luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
  structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
  return (luminance * structure).mean(axis=(1, 2, 3))


SSIM_WINDOW = 11


def _gaussian_windows(size: int) -> np.ndarray:
  """Returns the window's weights at each of its places: [size - 10, size]."""
  offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
  weights = np.exp(-0.5 * (offsets / 1.5) ** 2)
  windows = np.zeros((size - SSIM_WINDOW + 1, size), np.float32)
  for i, row in enumerate(windows):
    row[i : i + SSIM_WINDOW] = weights / weights.sum()
  return windows


# Size of an error, in standard deviations of the training pixels, at which the
# Huber loss turns from squared to absolute. Smooth skin has smaller errors,
# hairs have larger ones.
_HUBER_DELTA = 0.1

# The network that comes with the package.
_DEFAULT_VIEW = perceptual.View()
# LPIPS' first stages repeat every 8 pixels.
_MAX_SHIFT = 7
# Far below the power of the finest octave of real images, which is about 1e-6.
_LEAST_POWER = 1e-9

# The mean over a batch, a scalar, and the means of its images, [B].
Means = tuple[Array, Array]


def _means(values: Array) -> Means:
  """Returns the means of [B, H, W, C]."""
  return jnp.mean(values), jnp.mean(values, axis=(1, 2, 3))


def _standard_error(prediction: Array, target: Array, variance: float) -> Array:
  """Returns the errors in standard deviations of the training pixels."""
  error = losses.at_least_float32(prediction) - losses.at_least_float32(target)
  return error / math.sqrt(variance)


def _mse(
  prediction: Array, target: Array, variance: float, rng: Array | None
) -> Means:
  """Mean squared error / variance: the NMSE."""
  del rng
  return _means(jnp.square(_standard_error(prediction, target, variance)))


def _l1(
  prediction: Array, target: Array, variance: float, rng: Array | None
) -> Means:
  """Mean absolute error, in standard deviations of the training pixels."""
  del rng
  return _means(jnp.abs(_standard_error(prediction, target, variance)))


def _huber(
  prediction: Array, target: Array, variance: float, rng: Array | None
) -> Means:
  """Huber 1964, scaled to approach the absolute error."""
  del rng
  x = _standard_error(prediction, target, variance)
  size, delta = jnp.abs(x), _HUBER_DELTA
  return _means(jnp.where(size < delta, x**2 / (2 * delta), size - delta / 2))


def _ssim(
  prediction: Array, target: Array, variance: float, rng: Array | None
) -> Means:
  """1 - structural similarity."""
  del variance, rng
  similarity = ssim(prediction, target)
  return 1 - similarity.mean(), 1 - similarity


def _gradient(
  prediction: Array, target: Array, variance: float, rng: Array | None
) -> Means:
  """Absolute errors of the differences of neighbours, vertical + horizontal.

  Mathieu et al. 2016, equation 6, but with the signs of the differences.
  """
  del rng
  x = _standard_error(prediction, target, variance)
  vertical = _means(jnp.abs(jnp.diff(x, axis=1)))
  horizontal = _means(jnp.abs(jnp.diff(x, axis=2)))
  return vertical[0] + horizontal[0], vertical[1] + horizontal[1]


def lpips(a: Array, b: Array, view: perceptual.View = _DEFAULT_VIEW) -> Array:
  """LPIPS by AlexNet, whose weights come with the package, or another network.

  Args:
    a: `[B, H, W, 3]` in [0, 1]; H and W at least `perceptual.MIN_SIZE`.
    b: the same shape.
    view: the network; its `crop` does not count, whole images are compared.

  Returns:
    `[B]`, 0 if the images are the same.
  """
  return perceptual.lpips(view.load(), a, b)


def _lpips(
  prediction: Array,
  target: Array,
  variance: float,
  rng: Array | None,
  view: perceptual.View = _DEFAULT_VIEW,
) -> Means:
  """LPIPS of the same part of both images, after the same random shift.

  The network's strides would print a grid on images that are never shifted.
  """
  del variance
  if rng is not None:
    offset = jax.random.randint(rng, (2,), 0, _MAX_SHIFT + 1)
    prediction, target = (_shift(x, offset) for x in (prediction, target))
    cut_rng = jax.random.fold_in(rng, 3)
    prediction, target = view.cut(cut_rng, prediction, target)
  of_image = lpips(prediction, target, view)
  return of_image.mean(), of_image


def _shift(images: Array, offset: Array) -> Array:
  """Moves images `[B, H, W, C]` by 0 to `_MAX_SHIFT` pixels; borders mirror."""
  height, width = images.shape[1:3]
  pad = ((0, 0), (_MAX_SHIFT, 0), (_MAX_SHIFT, 0), (0, 0))
  wide = jnp.pad(images, pad, mode='reflect')
  wide = jax.lax.dynamic_slice_in_dim(wide, offset[0], height, 1)
  return jax.lax.dynamic_slice_in_dim(wide, offset[1], width, 2)


def _spectrum(
  prediction: Array, target: Array, variance: float, rng: Array | None
) -> Means:
  """Squared differences of the logarithms of the octaves' powers."""
  del variance, rng
  made, real = (
    jnp.log(spectrum.octave_powers(x) + _LEAST_POWER)
    for x in (prediction, target)
  )
  of_image = jnp.square(made - real).mean(-1)
  return of_image.mean(), of_image


# The terms of the reconstruction loss, by their names in config.loss: functions
# of prediction [B, H, W, C], target, the variance of the training pixels and a
# random key, which is None in evaluation.
RECONSTRUCTION_TERMS = {
  'mse': _mse,
  'l1': _l1,
  'huber': _huber,
  'ssim': _ssim,
  'gradient': _gradient,
  'lpips': _lpips,
  'spectrum': _spectrum,
}


def check_reconstruction(weights: Mapping[str, float]) -> None:
  """Raises UserError unless `reconstruction` accepts these weights."""
  unknown = sorted(set(weights) - set(RECONSTRUCTION_TERMS))
  if unknown:
    raise errors.UserError(
      f'config.loss has no {", ".join(unknown)}; there are '
      + ', '.join(RECONSTRUCTION_TERMS)
    )
  if not (
    all(0 <= w < math.inf for w in weights.values()) and any(weights.values())
  ):
    raise errors.UserError(
      f'the weights in config.loss are {dict(weights)}; give numbers that are '
      '0 or more, at least one above 0'
    )


def reconstruction(
  prediction: Array,
  target: Array,
  weights: Mapping[str, float],
  variance: float,
  rng: Array | None = None,
  view: perceptual.View = _DEFAULT_VIEW,
) -> tuple[Array, dict[str, Array]]:
  """Returns the reconstruction loss and its terms.

  Args:
    prediction: [B, H, W, C], about in [0, 1].
    target: [B, H, W, C] in [0, 1].
    weights: weights of `RECONSTRUCTION_TERMS` by name; a term of weight 0 is
      not computed.
    variance: variance of the training pixels.
    rng: random key, in training.
    view: how LPIPS sees the images; in training a part of them, in evaluation
      whole images.

  Returns:
    The loss, a scalar, which is the weighted sum of the terms; and metrics of
    each image, [B]: every term as `<name>_loss`, without its weight, and their
    weighted sum as `reconstruction_loss`.
  """
  total, total_of_image, metrics = 0, 0, {}
  for name, weight in weights.items():
    if weight:
      seen = {'view': view} if name == 'lpips' else {}
      mean, of_image = RECONSTRUCTION_TERMS[name](
        prediction, target, variance, rng, **seen
      )
      total += weight * mean
      total_of_image += weight * of_image
      metrics[f'{name}_loss'] = of_image
  return total, metrics | {'reconstruction_loss': total_of_image}
