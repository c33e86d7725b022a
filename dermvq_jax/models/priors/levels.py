"""Priors over the codes of several levels: which codes are possible where."""

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class LeveledPrior(nn.Module):
  """A prior that gives no probability to codes of another level.

  Column j of a grid holds level j % L, whose codes are K/L adjacent numbers.
  Keeps the contract of `gated_pixelcnn`, and leaves the prior as it is but for
  the logits of impossible codes, which are -inf.

  Attributes:
    prior: over all K codes.
    num_levels: L, which divides K.
  """

  prior: nn.Module
  num_levels: int

  codebook_size = property(lambda self: self.prior.codebook_size)
  num_classes = property(lambda self: self.prior.num_classes)

  def _mask(self, logits: Array, columns: Array) -> Array:
    """[..., K] of these columns, [...]; the others become -inf."""
    numbers = jnp.arange(self.codebook_size)
    level = numbers // (self.codebook_size // self.num_levels)
    possible = level == columns[..., None] % self.num_levels
    return jnp.where(possible, logits, -jnp.inf)

  def __call__(self, codes: Array, labels: Array, *, train: bool) -> Array:
    """Codes [B, h, w] and labels [B] to logits [B, h, w, K]."""
    logits = self.prior(codes, labels, train=train)
    return self._mask(logits, jnp.arange(codes.shape[2]))

  def init_cache(self, labels: Array, grid: tuple[int, int]):
    """See `gated_pixelcnn`."""
    return self.prior.init_cache(labels, grid)

  def start_row(self, cache, i: Array, row_above: Array):
    """See `gated_pixelcnn`."""
    return self.prior.start_row(cache, i, row_above)

  def step(self, cache, i: Array, j: Array, previous: Array):
    """See `gated_pixelcnn`; logits [B, K] of column j."""
    cache, logits = self.prior.step(cache, i, j, previous)
    return cache, self._mask(logits, jnp.asarray(j))
