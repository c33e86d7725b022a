"""Priors over the codes of residual levels: each level has its own codes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax.models.priors import base

Array = jax.Array


class LeveledPrior(base.Prior):
  """A prior in which codes of other levels have no probability.

  Column j of a grid belongs to level j % L; the codes of a level are K/L
  adjacent numbers. The logits of all other codes become -inf; everything else
  is the wrapped prior's.

  Attributes:
    prior: prior over all K codes.
    num_levels: L, which divides K.
  """

  prior: nn.Module
  num_levels: int

  codebook_size = property(lambda self: self.prior.codebook_size)
  conditions = property(lambda self: self.prior.conditions)

  def _mask(self, logits: Array, columns: Array) -> Array:
    """Masks logits [..., K] of the codes in `columns` [...]."""
    numbers = jnp.arange(self.codebook_size)
    level = numbers // (self.codebook_size // self.num_levels)
    possible = level == columns[..., None] % self.num_levels
    return jnp.where(possible, logits, -jnp.inf)

  def __call__(
    self, codes: Array, conditions: base.Conditions, *, train: bool
  ) -> Array:
    """Masks the logits of the wrapped prior."""
    logits = self.prior(codes, conditions, train=train)
    return self._mask(logits, jnp.arange(codes.shape[2]))

  def init_cache(
    self, conditions: base.Conditions, grid: tuple[int, int]
  ) -> base.Cache:
    """Starts the cache of the wrapped prior."""
    return self.prior.init_cache(conditions, grid)

  def start_row(
    self, cache: base.Cache, i: Array, row_above: Array
  ) -> base.Cache:
    """Starts the row of the wrapped prior."""
    return self.prior.start_row(cache, i, row_above)

  def step(
    self, cache: base.Cache, i: Array, j: Array, previous: Array
  ) -> tuple[base.Cache, Array]:
    """Masks the logits of the wrapped prior."""
    cache, logits = self.prior.step(cache, i, j, previous)
    return cache, self._mask(logits, jnp.asarray(j))
