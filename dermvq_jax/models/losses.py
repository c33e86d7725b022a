"""Losses of codes, and the log-probabilities that the sampler shares."""

import jax
import jax.numpy as jnp

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


def alignment(
  ratio: Array,
  negative_ratio: Array,
  beta: float,
  negative_weight: Array | float,
) -> Array:
  """Condition contrastive alignment: Chen et al. 2024, arXiv 2410.09347.

  Its gradient raises the likelihood of grids given their own label, and lowers
  it given another one. A ratio is the log-likelihood of a grid under the prior
  that is trained, minus that under the prior as it was before.

  Args:
    ratio: of the label of each grid, in nats, `[B]`.
    negative_ratio: of another label, in nats, `[B]`.
    beta: above 0, per nat; the higher, the less the prior changes.
    negative_weight: weight of the second ratio's part, `[B]` or one for all.

  Returns:
    `[B]`; log(2) * (1 + negative_weight) if nothing was trained.
  """
  own = jax.nn.log_sigmoid(beta * ratio)
  negative = jax.nn.log_sigmoid(-beta * negative_ratio)
  return -own - negative_weight * negative


# The losses of a prior, by their names in config.loss.
LOSSES = {'cross_entropy': cross_entropy, 'bce': binary_cross_entropy}
