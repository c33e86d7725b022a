"""The contract of a prior, and the parts that all priors share.

Conditions say what to generate, such as the label of each image. They are a
dict from names to one integer per image. A condition with n values has the
values 0 to n - 1, and n as its null value: not known, or dropped in training.
Dropping teaches a prior to do without conditions, which guidance needs.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax import errors
from dermvq_jax.models import losses

Array = jax.Array
# Values by name: int32 [B] each.
Conditions = dict[str, Array]
# Pairs of a name and its number of values, such as (('label', 7),).
ConditionSpec = tuple[tuple[str, int], ...]
Cache = dict[str, Any]
# The collection of a prior's variables with the parameters of the weak prior:
# the same prior after the first part of its training.
WEAK = 'weak'


class Prior(nn.Module):
  """A distribution over grids of codes, given conditions.

  The probability of a grid is the product of the probabilities of its codes,
  each given the conditions and the codes before it in raster order: all rows
  above, and the columns to the left in the same row. (A prior may see fewer of
  them, as the PixelCNN does.) It is computed in two forms that agree up to
  rounding. Both take grids of any size.

  `__call__` takes entire grids. It serves training and likelihoods.

  `init_cache`, `start_row` and `step` take one code at a time and repeat no
  work. They serve sampling, and have no dropout. Indices may be traced. For
  codes [B, h, w]::

    cache = prior.init_cache(conditions, (h, w))
    for i in range(h):
      cache = prior.start_row(cache, i, codes[:, i - 1])
      for j in range(w):
        cache, logits = prior.step(cache, i, j, codes[:, i, j - 1])
        codes[:, i, j] = ...  # sampled with these logits

  A new prior is a module in this folder that ends with `Prior = <its class>`.
  Its name is a value of `config.prior.name`, and the other fields of
  `config.prior` are fields of the class. `setup` raises errors.UserError for
  fields that cannot work, and names them as in the config.

  Attributes:
    codebook_size: K, number of codes. Every prior has this attribute and the
      next one; those after it mean the same in every prior that has them.
    conditions: names and numbers of values of the conditions; at least one.
      A dict of conditions may hold others, which are ignored; a missing one is
      a KeyError.
    num_layers: number of layers or blocks.
    features: width F between the layers.
    head_features: width of the hidden layer before the logits.
    kernel_size: odd size of the kernels inside the layers.
    first_kernel_size: odd size of the first kernels, which read the codes.
    tie_embeddings: whether the logits use the embedding of the codes.
    dropout_rate: share of features that are dropped in training.
    dtype: dtype of the computation; parameters and logits are float32.
  """

  def __call__(
    self, codes: Array, conditions: Conditions, *, train: bool
  ) -> Array:
    """Computes the logits of every code given the codes before it.

    Args:
      codes: int [B, h, w].
      conditions: int [B] each.
      train: whether dropout is on; it needs the rng stream 'dropout'.

    Returns:
      float32 [B, h, w, K].
    """
    raise NotImplementedError

  def init_cache(self, conditions: Conditions, grid: tuple[int, int]) -> Cache:
    """Starts the incremental form.

    Args:
      conditions: int [B] each.
      grid: (h, w).

    Returns:
      The cache: everything that later positions need from earlier ones. Its
      shapes and dtypes never change, so that a loop can carry it.
    """
    raise NotImplementedError

  def start_row(self, cache: Cache, i: Array, row_above: Array) -> Cache:
    """Does the work of row i that needs only the rows above.

    Args:
      cache: the cache after all steps of row i - 1.
      i: index of the row.
      row_above: int [B, w], the codes of row i - 1; any codes for row 0.

    Returns:
      The cache for the steps of row i.
    """
    raise NotImplementedError

  def step(
    self, cache: Cache, i: Array, j: Array, previous: Array
  ) -> tuple[Cache, Array]:
    """Computes the logits of the code at (i, j).

    Args:
      cache: the cache after `start_row` for row i and the steps of all columns
        before j.
      i: index of the row.
      j: index of the column.
      previous: int [B], the codes at (i, j - 1); any codes for column 0.

    Returns:
      The cache for column j + 1, and float32 [B, K].
    """
    raise NotImplementedError

  @nn.nowrap
  def null_conditions(self, batch_size: int) -> Conditions:
    """Returns the null value of every condition, int32 [B] each."""
    return {
      name: jnp.full(batch_size, number, jnp.int32)
      for name, number in self.conditions
    }


def weak_step(config: Mapping[str, Any]) -> int:
  """The step of the weak prior, from a config that keeps one."""
  return max(1, round(config['weak_share'] * config['num_train_steps']))


def batch_size(conditions: Conditions) -> int:
  """Returns the number of images, B."""
  return len(next(iter(conditions.values())))


def drop_conditions(
  rng: Array,
  conditions: Conditions,
  spec: ConditionSpec,
  rates: Sequence[float],
) -> Conditions:
  """Replaces values by the null value at random, for training.

  Conditions are dropped independently of each other, for every image.

  Args:
    rng: random key.
    conditions: int [B] each.
    spec: the conditions of the prior.
    rates: for each condition of `spec` the probability that it is dropped.

  Returns:
    The conditions of `spec`, int [B] each.
  """
  values = [conditions[name] for name, _ in spec]
  # One row per condition; a single row has the same bits as a vector.
  drop = jax.random.bernoulli(
    rng, jnp.asarray(rates)[:, None], (len(spec), *values[0].shape)
  )
  return {
    name: jnp.where(row, number, value)
    for (name, number), row, value in zip(spec, drop, values)
  }


class ConditionEmbedding(nn.Module):
  """Embeds each condition and adds the embeddings up.

  Attributes:
    conditions: as in `Prior`.
    features: width F.
    dtype: dtype of the result; parameters are float32.
  """

  conditions: ConditionSpec
  features: int
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, conditions: Conditions) -> Array:
    """Conditions, int [B] each -> [B, F]."""
    if not self.conditions:
      raise errors.UserError('a prior needs a condition, such as label')
    return functools.reduce(
      operator.add,
      [
        nn.Embed(
          number + 1,  # the null value
          self.features,
          embedding_init=nn.initializers.normal(0.1),
          dtype=self.dtype,
          name=name,
        )(conditions[name])
        for name, number in self.conditions
      ],
    )


class CodeEmbedding(nn.Module):
  """Embeds codes, and turns features into logits of codes.

  Attributes:
    codebook_size: K.
    features: width F of the embedding.
    tied: whether the logits are products with the embedding itself (Press and
      Wolf 2017) instead of a separate matrix; they need F features then.
    dtype: dtype of the computation; parameters and logits are float32.
  """

  codebook_size: int
  features: int
  tied: bool = False
  dtype: jnp.dtype | None = None

  def setup(self):
    """Makes the embedding and the parameters of the logits."""
    # A tied embedding is small, to suit the logits, and scaled up when read.
    scale = self.features**-0.5 if self.tied else 1.0
    self.embedding = nn.Embed(
      self.codebook_size,
      self.features,
      embedding_init=nn.initializers.normal(scale),
      dtype=self.dtype,
    )
    if self.tied:
      zeros = nn.initializers.zeros_init()
      self.bias = self.param('bias', zeros, (self.codebook_size,), jnp.float32)
    else:
      self.output = nn.Dense(self.codebook_size, dtype=self.dtype)

  def __call__(self, codes: Array) -> Array:
    """Codes, int [...] -> [..., F]."""
    x = self.embedding(codes)
    return x * self.features**0.5 if self.tied else x

  def logits(self, x: Array) -> Array:
    """[..., C] -> [..., K], float32 even if `dtype` has fewer bits."""
    if self.tied:
      return self.embedding.attend(x) + self.bias
    return losses.at_least_float32(self.output(x))


def previous_in_raster(x: Array) -> Array:
  """Shifts [B, h, w, C] by one position in raster order; zeros come first."""
  flat = einops.rearrange(x, 'b h w c -> b (h w) c')
  flat = jnp.pad(flat, ((0, 0), (1, 0), (0, 0)))[:, :-1]
  return flat.reshape(x.shape)


def embed_past(
  embedding: Callable[[Array], Array], codes: Array, exists: Array
) -> Array:
  """Embeds codes that were sampled before, or returns zeros.

  Args:
    embedding: module that embeds codes, [...] -> [..., F].
    codes: int [...].
    exists: scalar; false before the grid begins, where `codes` mean nothing.

  Returns:
    [..., F].
  """
  x = embedding(codes)
  return jnp.where(exists, x, jnp.zeros_like(x))
