"""Losses, and the log-probabilities that losses and sampler share."""

import jax
import jax.numpy as jnp

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
    label_smoothing: share s of the target that is spread over all K codes
      (Szegedy et al. 2016, section 7).

  Returns:
    Nats [...], in float32 at least; without smoothing the `nll`.
  """
  log_p = log_probs(logits)
  hit = -_pick(log_p, codes)
  if not label_smoothing:  # Impossible codes would be infinitely wrong.
    return hit
  return (1 - label_smoothing) * hit - label_smoothing * log_p.mean(axis=-1)


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
    label_smoothing: share of the one-hot target that is spread over all K.

  Returns:
    Nats [...], in float32 at least.
  """
  logits = _at_least_float32(logits)
  # -log sigmoid(-x) = softplus(x), -log sigmoid(x) = softplus(x) - x.
  target_logit = _pick(logits, codes)
  if label_smoothing:
    target_logit = (
      1 - label_smoothing
    ) * target_logit + label_smoothing * logits.mean(axis=-1)
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
