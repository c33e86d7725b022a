"""Losses, and the log-probabilities that losses and sampler share."""

import jax
import jax.numpy as jnp

Array = jax.Array


def log_probs(logits: Array) -> Array:
  """Log-probabilities of the codes, in float32 at least.

  Args:
    logits: [..., K].

  Returns:
    [..., K] in nats; exp sums to 1 over the last axis.
  """
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  return jax.nn.log_softmax(logits.astype(dtype), axis=-1)


def cross_entropy(logits: Array, codes: Array) -> Array:
  """Negative log-likelihood of each code.

  Args:
    logits: [..., K].
    codes: int [...], 0 .. K - 1.

  Returns:
    Nats [...], in float32 at least.
  """
  picked = jnp.take_along_axis(log_probs(logits), codes[..., None], axis=-1)
  return -picked[..., 0]


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
