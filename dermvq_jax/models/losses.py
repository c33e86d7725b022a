"""Losses, and the log-probabilities that losses and sampler share."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dermvq_jax import errors

Array = jax.Array


def _at_least_float32(x: Array) -> Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check(loss: str, label_smoothing: float) -> None:
  """Raises `errors.UserError` for values that `code_loss` does not know."""
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
  """Log-probabilities of the codes, in float32 at least.

  Args:
    logits: [..., K].
    loss: what the logits were trained with, one of `LOSSES`. Those of 'bce'
      are of K decisions, 'this code or not': the normalised log-sigmoids.

  Returns:
    [..., K] in nats; exp sums to 1 over the last axis.
  """
  logits = _at_least_float32(logits)
  if loss == 'bce':
    logits = jax.nn.log_sigmoid(logits)
  return jax.nn.log_softmax(logits, axis=-1)


def _pick(values: Array, codes: Array) -> Array:
  """[..., K] -> [...]: the entries at `codes`."""
  return jnp.take_along_axis(values, codes[..., None], axis=-1)[..., 0]


def _mean_of_possible(values: Array, logits: Array) -> Array:
  """Mean of [..., K] over the codes whose logit is not -inf: [...]."""
  possible = logits > -jnp.inf
  return jnp.where(possible, values, 0).sum(-1) / possible.sum(-1)


def nll(logits: Array, codes: Array, loss: str = 'cross_entropy') -> Array:
  """Negative log-likelihood of each code under `log_probs`.

  Args:
    logits: [..., K].
    codes: int [...], 0 .. K - 1.
    loss: as in `log_probs`.

  Returns:
    Nats [...], in float32 at least.
  """
  return -_pick(log_probs(logits, loss), codes)


def cross_entropy(
  logits: Array, codes: Array, label_smoothing: float = 0.0
) -> Array:
  """Cross-entropy of each code with the categorical distribution.

  Args:
    logits: [..., K].
    codes: int [...], 0 .. K - 1.
    label_smoothing: share s of the target that is spread over all possible
      codes (Szegedy et al. 2016, section 7).

  Returns:
    Nats [...], in float32 at least; without smoothing the `nll`.
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
  """One-vs-rest binary cross-entropy over the one-hot code.

  Equation 3 of the source report, there misprinted, as a sum over the K
  decisions instead of their mean: gradients are then as large as those of
  `cross_entropy`, and the same learning rate and clipping serve.

  Args:
    logits: [..., K].
    codes: int [...], 0 .. K - 1.
    label_smoothing: share of the one-hot target that is spread over all
      possible codes.

  Returns:
    Nats [...], in float32 at least.
  """
  logits = _at_least_float32(logits)
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
  """The loss of each code, nats [...], named as in `config.loss`."""
  return LOSSES[loss](logits, codes, label_smoothing)


# What config.loss may be.
LOSSES = {'cross_entropy': cross_entropy, 'bce': binary_cross_entropy}


def squared_error(predictions: Array, targets: Array) -> Array:
  """Squared error of each value; its mean is equation 1 of the source report.

  Args:
    predictions: [...].
    targets: [...], the same shape.

  Returns:
    [...], in float32 at least.
  """
  dtype = jnp.promote_types(predictions.dtype, jnp.float32)
  return (predictions.astype(dtype) - targets.astype(dtype)) ** 2


def ssim(a: Array, b: Array) -> Array:
  """Structural similarity of images in [0, 1] (Wang et al. 2004, section III).

  With the paper's 11x11 Gaussian window of standard deviation 1.5, where it
  lies wholly inside the image, each channel for itself: what scikit-image gives
  for `gaussian_weights=True, use_sample_covariance=False, data_range=1`.

  Args:
    a: [B, H, W, C], H and W at least `SSIM_WINDOW`.
    b: [B, H, W, C].

  Returns:
    [B], in float32 at least; 1 where both are the same.
  """
  a, b = _at_least_float32(a), _at_least_float32(b)
  rows, columns = (_gaussian_windows(n) for n in a.shape[1:3])

  def blur(x: Array) -> Array:  # As matmuls, fast on every backend.
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
  """A weighted mean for every place of the window: [size - 10, size]."""
  offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
  weights = np.exp(-0.5 * (offsets / 1.5) ** 2)
  windows = np.zeros((size - SSIM_WINDOW + 1, size), np.float32)
  for i, row in enumerate(windows):
    row[i : i + SSIM_WINDOW] = weights / weights.sum()
  return windows


# Where the Huber loss turns from squared to absolute, in standard deviations of
# the training pixels: between errors of smooth skin and of hairs.
_HUBER_DELTA = 0.1


def _standardized(term):
  """A term of errors in standard deviations of the training pixels."""

  def of(prediction: Array, target: Array, variance: float) -> Array:
    error = _at_least_float32(prediction) - _at_least_float32(target)
    return jnp.mean(term(error / math.sqrt(variance)))

  return of


def _huber(x: Array) -> Array:
  """Huber 1964, scaled to meet |x| far out."""
  size, delta = jnp.abs(x), _HUBER_DELTA
  return jnp.where(size < delta, x**2 / (2 * delta), size - delta / 2)


def _gradient_difference(x: Array) -> Array:
  """Absolute errors of the gradients along both sides, their means added.

  As Mathieu et al. 2016, equation 6, but that the gradients' signs count too.
  """
  down, right = jnp.diff(x, axis=1), jnp.diff(x, axis=2)
  return jnp.abs(down).mean() + jnp.abs(right).mean()


def _one_minus_ssim(prediction, target, variance) -> Array:
  del variance
  return 1 - ssim(prediction, target).mean()


# The terms of a reconstruction's loss: (prediction [B, H, W, C], target, the
# variance of the training pixels) to a scalar. 'mse' is the NMSE.
RECONSTRUCTION_TERMS = {
  'mse': _standardized(jnp.square),
  'l1': _standardized(jnp.abs),
  'huber': _standardized(_huber),
  'ssim': _one_minus_ssim,
  'gradient': _standardized(_gradient_difference),
}


def check_reconstruction(weights: Mapping[str, float]) -> None:
  """Raises `errors.UserError` for weights that `reconstruction` can't use."""
  unknown = sorted(set(weights) - set(RECONSTRUCTION_TERMS))
  if unknown:
    raise errors.UserError(
      f'config.loss has no {", ".join(unknown)}; there are '
      + ', '.join(RECONSTRUCTION_TERMS)
    )
  if not (all(w >= 0 for w in weights.values()) and any(weights.values())):
    raise errors.UserError(
      f'the weights in config.loss are {dict(weights)}; give numbers that are '
      '0 or more, at least one above 0'
    )


def reconstruction(
  prediction: Array,
  target: Array,
  weights: Mapping[str, float],
  variance: float,
) -> Array:
  """A weighted sum of `RECONSTRUCTION_TERMS`, a scalar.

  Args:
    prediction: [B, H, W, C], around [0, 1].
    target: [B, H, W, C] in [0, 1].
    weights: of the terms by name; those of weight 0 cost nothing.
    variance: of the training pixels.
  """
  return sum(
    weight * RECONSTRUCTION_TERMS[name](prediction, target, variance)
    for name, weight in weights.items()
    if weight
  )
