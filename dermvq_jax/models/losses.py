"""Losses, and the log-probabilities that the losses and the sampler share."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dermvq_jax import errors

Array = jax.Array


def at_least_float32(x: Array) -> Array:
  """Converts types below float32, for example bfloat16, to float32."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check(loss: str, label_smoothing: float) -> None:
  """Raises UserError unless `code_loss` accepts these arguments."""
  if loss not in LOSSES:
    raise errors.UserError(
      f'config.loss is {loss!r}; it must be one of '
      + ', '.join(map(repr, LOSSES))
    )
  if not 0 <= label_smoothing < 1:
    raise errors.UserError(
      f'config.label_smoothing is {label_smoothing}; it must be at least 0 and '
      'less than 1'
    )


def log_probs(logits: Array, loss: str = 'cross_entropy') -> Array:
  """Returns the log-probabilities of the codes, at least in float32.

  Args:
    logits: [..., K].
    loss: the loss that the logits were trained with, one of `LOSSES`. With
      'bce' each logit decides 'this code or not', and the sigmoids of the
      logits are normalised.

  Returns:
    [..., K] in nats; the probabilities sum to 1 over the last axis.
  """
  logits = at_least_float32(logits)
  if loss == 'bce':
    logits = jax.nn.log_sigmoid(logits)
  return jax.nn.log_softmax(logits, axis=-1)


def _pick(values: Array, codes: Array) -> Array:
  """Returns the entries of `values` [..., K] at `codes` [...]."""
  return jnp.take_along_axis(values, codes[..., None], axis=-1)[..., 0]


def _mean_of_possible(values: Array, logits: Array) -> Array:
  """Returns the mean of [..., K] over the codes whose logit is not -inf."""
  possible = logits > -jnp.inf
  return jnp.where(possible, values, 0).sum(-1) / possible.sum(-1)


def nll(logits: Array, codes: Array, loss: str = 'cross_entropy') -> Array:
  """Returns the negative log-likelihood of each code under `log_probs`.

  Args:
    logits: [..., K].
    codes: int [...], 0 .. K - 1.
    loss: as in `log_probs`.

  Returns:
    Nats [...], at least in float32.
  """
  return -_pick(log_probs(logits, loss), codes)


def cross_entropy(
  logits: Array, codes: Array, label_smoothing: float = 0.0
) -> Array:
  """Returns the cross-entropy of each code with the distribution over codes.

  Args:
    logits: [..., K].
    codes: int [...], 0 .. K - 1.
    label_smoothing: share s of the target that is spread over all possible
      codes (Szegedy et al. 2016, section 7).

  Returns:
    Nats [...], at least in float32; without smoothing this is `nll`.
  """
  log_p = log_probs(logits)
  hit = -_pick(log_p, codes)
  if not label_smoothing:
    return hit
  everywhere = _mean_of_possible(log_p, logits)
  return (1 - label_smoothing) * hit - label_smoothing * everywhere


def binary_cross_entropy(
  logits: Array, codes: Array, label_smoothing: float = 0.0
) -> Array:
  """Returns the one-vs-rest binary cross-entropy of the one-hot code.

  This is equation 3 of the source report without its misprint. It is summed
  over the K decisions, not averaged, so that its gradients are as large as
  those of `cross_entropy` and suit the same learning rate and clipping.

  Args:
    logits: [..., K].
    codes: int [...], 0 .. K - 1.
    label_smoothing: share of the one-hot target that is spread over all
      possible codes.

  Returns:
    Nats [...], at least in float32.
  """
  logits = at_least_float32(logits)
  # -log sigmoid(-x) = softplus(x), -log sigmoid(x) = softplus(x) - x.
  target_logit = _pick(logits, codes)
  if label_smoothing:
    everywhere = _mean_of_possible(logits, logits)
    target_logit = (
      1 - label_smoothing
    ) * target_logit + label_smoothing * everywhere
  return jax.nn.softplus(logits).sum(axis=-1) - target_logit


def code_loss(
  logits: Array, codes: Array, loss: str, label_smoothing: float = 0.0
) -> Array:
  """Returns the loss of each code, nats [...], by its name in `config.loss`."""
  return LOSSES[loss](logits, codes, label_smoothing)


# The losses of a prior, by their names in config.loss.
LOSSES = {'cross_entropy': cross_entropy, 'bce': binary_cross_entropy}


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
  a, b = at_least_float32(a), at_least_float32(b)
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

# The mean over a batch, a scalar, and the means of its images, [B].
Means = tuple[Array, Array]


def _means(values: Array) -> Means:
  """Returns the means of [B, H, W, C]."""
  return jnp.mean(values), jnp.mean(values, axis=(1, 2, 3))


def _standard_error(prediction: Array, target: Array, variance: float) -> Array:
  """Returns the errors in standard deviations of the training pixels."""
  error = at_least_float32(prediction) - at_least_float32(target)
  return error / math.sqrt(variance)


def _mse(prediction: Array, target: Array, variance: float) -> Means:
  """Mean squared error / variance: the NMSE."""
  return _means(jnp.square(_standard_error(prediction, target, variance)))


def _l1(prediction: Array, target: Array, variance: float) -> Means:
  return _means(jnp.abs(_standard_error(prediction, target, variance)))


def _huber(prediction: Array, target: Array, variance: float) -> Means:
  """Huber 1964, scaled to approach the absolute error."""
  x = _standard_error(prediction, target, variance)
  size, delta = jnp.abs(x), _HUBER_DELTA
  return _means(jnp.where(size < delta, x**2 / (2 * delta), size - delta / 2))


def _ssim(prediction: Array, target: Array, variance: float) -> Means:
  del variance
  similarity = ssim(prediction, target)
  return 1 - similarity.mean(), 1 - similarity


def _gradient(prediction: Array, target: Array, variance: float) -> Means:
  """Absolute errors of the differences of neighbours, vertical + horizontal.

  Mathieu et al. 2016, equation 6, but with the signs of the differences.
  """
  x = _standard_error(prediction, target, variance)
  vertical = _means(jnp.abs(jnp.diff(x, axis=1)))
  horizontal = _means(jnp.abs(jnp.diff(x, axis=2)))
  return vertical[0] + horizontal[0], vertical[1] + horizontal[1]


# The terms of the reconstruction loss, by their names in config.loss: functions
# of prediction [B, H, W, C], target and the variance of the training pixels.
RECONSTRUCTION_TERMS = {
  'mse': _mse,
  'l1': _l1,
  'huber': _huber,
  'ssim': _ssim,
  'gradient': _gradient,
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
) -> tuple[Array, dict[str, Array]]:
  """Returns the reconstruction loss and its terms.

  Args:
    prediction: [B, H, W, C], about in [0, 1].
    target: [B, H, W, C] in [0, 1].
    weights: weights of `RECONSTRUCTION_TERMS` by name; a term of weight 0 is
      not computed.
    variance: variance of the training pixels.

  Returns:
    The loss, a scalar, which is the weighted sum of the terms; and metrics of
    each image, [B]: every term as `<name>_loss`, without its weight, and their
    weighted sum as `reconstruction_loss`.
  """
  total, total_of_image, metrics = 0, 0, {}
  for name, weight in weights.items():
    if weight:
      mean, of_image = RECONSTRUCTION_TERMS[name](prediction, target, variance)
      total += weight * mean
      total_of_image += weight * of_image
      metrics[f'{name}_loss'] = of_image
  return total, metrics | {'reconstruction_loss': total_of_image}
