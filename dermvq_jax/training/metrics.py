"""Metrics as sums, so that they add up over steps, devices and hosts.

Each is a `clu.metrics.Metric` whose leaves are additive: `merge` is `+`, and
a sum over devices is the metric of the global batch. Dividing comes last.
"""

from typing import Self

import flax
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics


@flax.struct.dataclass
class Mean(clu_metrics.Metric):
  """Weighted mean. total, count: float32 scalars."""

  total: jax.Array
  count: jax.Array

  @classmethod
  def of(cls, values: jax.Array, mask: jax.Array | None = None) -> Self:
    """Mean over all of `values`, `[B, ...]`, of examples with `mask` 1."""
    values = values.astype(jnp.float32)
    if mask is None:
      mask = jnp.ones(values.shape[0])
    mask = mask.reshape((-1,) + (1,) * (values.ndim - 1))
    weights = jnp.broadcast_to(mask, values.shape)
    return cls(jnp.sum(values * weights), jnp.sum(weights))

  def merge(self, other: Self) -> Self:
    """Adds another part."""
    return jax.tree.map(jnp.add, self, other)

  def compute(self) -> jax.Array:
    """The mean."""
    return self.total / self.count


@flax.struct.dataclass
class Psnr(Mean):
  """PSNR in dB of the mean squared error over all values in [0, 1]."""

  def compute(self) -> jax.Array:
    """10 log10(1 / MSE)."""
    return -10 * jnp.log10(self.total / self.count)


@flax.struct.dataclass
class Count(clu_metrics.Metric):
  """How often something happened. count: int32 scalar."""

  count: jax.Array

  def merge(self, other: Self) -> Self:
    """Adds another part."""
    return jax.tree.map(jnp.add, self, other)

  def compute(self) -> jax.Array:
    """The number."""
    return self.count


@flax.struct.dataclass
class ClassMean(clu_metrics.Metric):
  """Mean of the classes' means, over the classes that occur.

  total, count: float32 `[C]`.
  """

  total: jax.Array
  count: jax.Array

  @classmethod
  def of(
    cls,
    values: jax.Array,
    labels: jax.Array,
    num_classes: int,
    mask: jax.Array | None = None,
  ) -> Self:
    """Means of `values` `[B]` by `labels`, int32 `[B]`, with `mask` 1."""
    weights = jnp.ones(labels.shape) if mask is None else mask
    values = values.astype(jnp.float32) * weights
    return cls(
      jax.ops.segment_sum(values, labels, num_classes),
      jax.ops.segment_sum(weights, labels, num_classes),
    )

  def merge(self, other: Self) -> Self:
    """Adds another part."""
    return jax.tree.map(jnp.add, self, other)

  def compute(self) -> jax.Array:
    """The mean of the means."""
    seen = self.count > 0
    means = self.total / jnp.where(seen, self.count, 1)
    return jnp.sum(means) / jnp.sum(seen)


@flax.struct.dataclass
class CodeCounts(clu_metrics.Metric):
  """How often each code was used. counts: int32 `[K]`."""

  counts: jax.Array

  @classmethod
  def of(
    cls, codes: jax.Array, codebook_size: int, mask: jax.Array | None = None
  ) -> Self:
    """Counts the codes, int32 `[B, ...]`, of examples with `mask` 1."""
    weights = jnp.ones(codes.shape, jnp.int32)
    if mask is not None:
      shape = (-1,) + (1,) * (codes.ndim - 1)
      weights = weights * mask.astype(jnp.int32).reshape(shape)
    return cls(
      jax.ops.segment_sum(weights.ravel(), codes.ravel(), codebook_size)
    )

  def merge(self, other: Self) -> Self:
    """Adds another part."""
    return jax.tree.map(jnp.add, self, other)


@flax.struct.dataclass
class Perplexity(CodeCounts):
  """exp(entropy of code usage): 1 for a single code, K for equal use of all."""

  def compute(self) -> jax.Array:
    """The perplexity over everything counted."""
    p = self.counts / jnp.sum(self.counts)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(p)))


@flax.struct.dataclass
class CodebookUsage(CodeCounts):
  """Share of codes that were used at all."""

  def compute(self) -> jax.Array:
    """A number in [0, 1]."""
    return jnp.mean(self.counts > 0)


@flax.struct.dataclass
class DeadCodes(CodeCounts):
  """Number of codes that were not used at all."""

  def compute(self) -> jax.Array:
    """A number from 0 to K - 1."""
    return jnp.sum(self.counts == 0)


Metrics = dict[str, clu_metrics.Metric]


def merge(a: Metrics, b: Metrics) -> Metrics:
  """Adds up two parts of the same metrics."""
  return jax.tree.map(jnp.add, a, b)


def compute(metrics: Metrics, prefix: str = '') -> dict[str, float]:
  """Divides the sums and returns `{prefix + name: value}`.

  Means without values are left out.
  """
  return {
    prefix + name: float(metric.compute())
    for name, metric in metrics.items()
    if not (isinstance(metric, Mean) and metric.count == 0)
  }
