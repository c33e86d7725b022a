"""How a code is chosen from log-probabilities."""

import jax
import jax.numpy as jnp
from jax import lax

from dermvq_jax.models import nearest

Array = jax.Array


def guide(better: Array, worse: Array, scale: Array) -> Array:
  """Guides by a worse estimate (Ho and Salimans 2022, equation 6).

  Args:
    better: b, log-probabilities [..., K]; in classifier-free guidance those
      given the conditions, in autoguidance those of the trained prior.
    worse: w, the same given the null values, or by the weak prior, [..., K].
    scale: scalar s.

  Returns:
    w + s (b - w), [..., K]; not normalised. Codes that are impossible in either
    keep their log-probability in `better`.
  """
  guided = worse + scale * (better - worse)
  possible = jnp.isfinite(better) & jnp.isfinite(worse)
  return jnp.where(possible, guided, better)


def _nucleus_weight(weights: Array, top_k: Array | None, top_p: Array) -> Array:
  """Computes the weight that the nucleus must reach, [B, 1].

  Args:
    weights: weights of the codes, in proportion to their probabilities, [B, K].
    top_k: number of codes to choose from; None: all.
    top_p: share of their weight.
  """
  if top_k is not None:
    falling = -jnp.sort(-weights, axis=-1)
    weights = jnp.where(jnp.arange(weights.shape[-1]) < top_k, falling, 0)
  return top_p * weights.sum(axis=-1, keepdims=True)


def choose(
  scores: Array,
  noise: Array,
  temperature: Array,
  top_k: Array | None = None,
  top_p: Array | None = None,
) -> Array:
  """Samples codes by the Gumbel-max trick.

  The code with the largest log p + T * noise is a sample from p^(1/T). At
  temperature 0 it is the most likely code, the first of them if there are ties.

  Args:
    scores: log-probabilities [B, K]; need not be normalised.
    noise: standard Gumbel [B, K].
    temperature: scalar T >= 0.
    top_k: scalar >= 1, see `Controls`; None: off.
    top_p: scalar in (0, 1], see `Controls`; None: off.

  Returns:
    int32 [B].
  """
  noisy = scores + temperature * noise
  if top_k is None and top_p is None:
    return nearest.argmax(noisy)
  numbers = jnp.arange(scores.shape[-1])
  if top_p is not None:
    # At temperature 0 the most likely codes have all the weight.
    scaled = scores - scores.max(axis=-1, keepdims=True)
    scaled = scaled / jnp.maximum(temperature, jnp.finfo(scores.dtype).tiny)
    weights = jnp.exp(scaled)
    enough = _nucleus_weight(weights, top_k, top_p)

  def propose(carry):
    """Proposes a code; if it is not allowed, excludes it and all less likely.

    Sorting all codes would take longer than the prior itself. Few proposals
    are rejected, and each rejection excludes many codes.
    """
    noisy, _, _ = carry
    code = nearest.argmax(noisy)[:, None]
    score = jnp.take_along_axis(scores, code, axis=-1)
    before = (scores > score) | ((scores == score) & (numbers < code))
    inside = jnp.ones(code.shape, bool)
    if top_k is not None:
      inside &= before.sum(axis=-1, keepdims=True) < top_k
    if top_p is not None:  # The code that reaches top_p is included.
      weight = jnp.where(before, weights, 0).sum(axis=-1, keepdims=True)
      inside &= weight < enough
    inside |= ~before.any(axis=-1, keepdims=True)  # Ends even if all are NaN.
    return jnp.where(inside | before, noisy, -jnp.inf), code, inside

  start = noisy, jnp.zeros((len(scores), 1), jnp.int32), False
  _, code, _ = lax.while_loop(
    lambda carry: ~carry[2].all(), propose, propose(start)
  )
  return code[:, 0]
