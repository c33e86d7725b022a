"""Transformer prior over grids of codes: a GPT in raster order.

The decoder of Radford et al. 2019, section 2.3: layer normalisation before
each sub-block and after the last one. The more residual branches there are, the
smaller are the initial weights at the end of each branch. The input of a
position is the code before it, the conditions and the position itself: sines
and cosines (Vaswani et al. 2017, section 3.5) of the row in one half of the
features and of the column in the other half, which work for any grid.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax import errors
from dermvq_jax.models.priors import base, caches

Array = jax.Array

# Wavelengths of the positions go from 2 pi to this times 2 pi, which is longer
# than any grid.
_LONGEST_WAVE = 1000.0


def _waves(indices: Array, features: int, dtype: jnp.dtype) -> Array:
  """Sines and cosines of indices [n] at many wavelengths: [n, features]."""
  count = features // 2
  exponents = jnp.arange(count, dtype=dtype) / max(count - 1, 1)
  angles = indices[:, None].astype(dtype) / _LONGEST_WAVE**exponents
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def positions(
  rows: Array, columns: Array, features: int, dtype: jnp.dtype
) -> Array:
  """Encodes the positions of a grid.

  Args:
    rows: [h] indices of rows.
    columns: [w] indices of columns.
    features: F, divisible by 4.
    dtype: dtype of the result.

  Returns:
    [h, w, F].
  """
  shape = rows.shape[0], columns.shape[0], features // 2
  exact = jnp.promote_types(dtype, jnp.float32)
  row_waves = _waves(rows, features // 2, exact)[:, None]
  column_waves = _waves(columns, features // 2, exact)[None]
  both = (jnp.broadcast_to(x, shape) for x in (row_waves, column_waves))
  return jnp.concatenate([*both], axis=-1).astype(dtype)


def attend_to_past(
  query: Array, keys: Array, values: Array, position: Array
) -> Array:
  """Attention of one position to itself and to those before it.

  Args:
    query: [B, H, D].
    keys: [B, H, N, D]; those after `position` are ignored.
    values: [B, H, N, D].
    position: index of the position; may be traced.

  Returns:
    [B, H, D].
  """
  query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
  scores = jnp.einsum('bhd,bhnd->bhn', query, keys)
  scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
  seen = jnp.arange(keys.shape[2]) <= position
  weights = nn.softmax(jnp.where(seen, scores, -jnp.inf))
  return jnp.einsum('bhn,bhnd->bhd', weights.astype(values.dtype), values)


class Block(nn.Module):
  """Attention and a two-layer perceptron, each after a normalisation.

  Attributes:
    features: width F.
    num_heads: H, number of heads; F is divisible by it.
    mlp_features: width of the perceptron's hidden layer.
    residual_scale: factor on the variance of the weights that end a residual
      branch.
    dropout_rate: share of each branch's features that are dropped in training.
    dtype: dtype of the computation; parameters are float32.
  """

  features: int
  num_heads: int
  mlp_features: int
  residual_scale: float = 1.0
  dropout_rate: float = 0.0
  dtype: jnp.dtype | None = None

  def setup(self):
    """Makes the two branches."""
    last_init = nn.initializers.variance_scaling(
      self.residual_scale, 'fan_in', 'truncated_normal'
    )
    self.attention_norm = nn.LayerNorm(dtype=self.dtype)
    self.query_key_value = nn.Dense(3 * self.features, dtype=self.dtype)
    self.attention_output = nn.Dense(
      self.features, kernel_init=last_init, dtype=self.dtype
    )
    self.mlp_norm = nn.LayerNorm(dtype=self.dtype)
    self.mlp_hidden = nn.Dense(self.mlp_features, dtype=self.dtype)
    self.mlp_output = nn.Dense(
      self.features, kernel_init=last_init, dtype=self.dtype
    )
    self.dropout = nn.Dropout(self.dropout_rate)

  def __call__(self, x: Array, *, train: bool) -> Array:
    """[B, N, F] -> [B, N, F]: each position sees itself and those before."""
    query, key, value = self.heads(x)
    mask = nn.make_causal_mask(x[:1, :, 0], dtype=bool)  # [1, 1, N, N]
    attended = nn.dot_product_attention(
      query,
      key,
      value,
      mask=mask,
      # The softmax is computed in float32 at least.
      force_fp32_for_softmax=x.dtype.itemsize < 4,
    )
    return self.combine(x, attended.astype(x.dtype), train=train)

  def heads(self, x: Array) -> tuple[Array, Array, Array]:
    """[..., F] -> query, key and value, [..., H, D] each."""
    y = self.query_key_value(self.attention_norm(x))
    return tuple(
      einops.rearrange(part, '... (h d) -> ... h d', h=self.num_heads)
      for part in jnp.split(y, 3, axis=-1)
    )

  def combine(self, x: Array, attended: Array, *, train: bool) -> Array:
    """Runs the rest of the block: [..., F], [..., H, D] -> [..., F]."""
    y = einops.rearrange(attended, '... h d -> ... (h d)')
    y = self.dropout(self.attention_output(y), deterministic=not train)
    x = x + y
    y = nn.gelu(self.mlp_hidden(self.mlp_norm(x)))
    return x + self.dropout(self.mlp_output(y), deterministic=not train)


class Transformer(base.Prior):
  """Transformer; `base.Prior` explains the fields that are not here.

  Attributes:
    features: width F, divisible by 4 and by `num_heads`.
    num_heads: number of attention heads.
    mlp_ratio: width of the perceptrons' hidden layers, in multiples of F.
    dropout_rate: share of features that are dropped in training, at the input
      and at the end of each residual branch.
  """

  codebook_size: int
  conditions: base.ConditionSpec
  num_layers: int = 6
  features: int = 128
  num_heads: int = 4
  mlp_ratio: int = 4
  tie_embeddings: bool = False
  dropout_rate: float = 0.0
  dtype: jnp.dtype | None = None

  def setup(self):
    """Makes the embeddings, the blocks and the head."""
    if self.features % 4 or self.features % self.num_heads:
      raise errors.UserError(
        f'config.prior.features is {self.features}; it must be divisible by 4 '
        f'and by num_heads={self.num_heads}'
      )
    self.embedding = base.CodeEmbedding(
      self.codebook_size, self.features, self.tie_embeddings, self.dtype
    )
    self.condition_embedding = base.ConditionEmbedding(
      self.conditions, self.features, self.dtype
    )
    self.dropout = nn.Dropout(self.dropout_rate)
    self.blocks = [
      Block(
        self.features,
        self.num_heads,
        self.mlp_ratio * self.features,
        0.5 / self.num_layers,
        self.dropout_rate,
        self.dtype,
      )
      for _ in range(self.num_layers)
    ]
    self.norm = nn.LayerNorm(dtype=self.dtype)

  def __call__(
    self, codes: Array, conditions: base.Conditions, *, train: bool
  ) -> Array:
    """Runs all positions together, with a causal mask."""
    _, height, width = codes.shape
    x = base.previous_in_raster(self.embedding(codes))
    x = x + self._context(conditions, jnp.arange(height), jnp.arange(width))
    x = einops.rearrange(x, 'b h w f -> b (h w) f')
    x = self.dropout(x, deterministic=not train)
    for block in self.blocks:
      x = block(x, train=train)
    logits = self.embedding.logits(self.norm(x))
    return einops.rearrange(logits, 'b (h w) k -> b h w k', h=height)

  def _context(
    self, conditions: base.Conditions, rows: Array, columns: Array
  ) -> Array:
    """Embeds conditions and positions: [B] each, [h], [w] -> [B, h, w, F]."""
    x = self.condition_embedding(conditions)[:, None, None]
    return x + positions(rows, columns, self.features, x.dtype)

  def init_cache(
    self, conditions: base.Conditions, grid: tuple[int, int]
  ) -> base.Cache:
    """Makes room for the keys and values of all positions."""
    height, width = grid
    x = self.condition_embedding(conditions)
    batch, depth = x.shape[0], self.features // self.num_heads
    past = jnp.zeros((batch, self.num_heads, height * width, depth), x.dtype)
    return {
      'conditions': conditions,
      # One array per layer, [B, H, N, D]: a slice of a stack would be copied.
      'keys': self.num_layers * (past,),
      'values': self.num_layers * (past,),
      # This row's conditions and positions; the last code of the row above.
      'context': jnp.zeros((width, batch, self.features), x.dtype),
      'row_end': jnp.zeros(batch, jnp.int32),
    }

  def start_row(
    self, cache: base.Cache, i: Array, row_above: Array
  ) -> base.Cache:
    """Embeds the conditions and the positions of row i."""
    width = cache['context'].shape[0]
    context = self._context(
      cache['conditions'], jnp.asarray(i)[None], jnp.arange(width)
    )
    return cache | {
      'context': einops.rearrange(context, 'b 1 w f -> w b f'),
      'row_end': row_above[:, -1],
    }

  def step(
    self, cache: base.Cache, i: Array, j: Array, previous: Array
  ) -> tuple[base.Cache, Array]:
    """Runs the blocks for the code at (i, j)."""
    position = i * cache['context'].shape[0] + j
    previous = jnp.where(j > 0, previous, cache['row_end'])
    x = base.embed_past(self.embedding, previous, position > 0)  # [B, F]
    x = x + cache['context'][j]
    all_keys, all_values = [], []
    for n, block in enumerate(self.blocks):
      query, key, value = block.heads(x)  # [B, H, D]
      keys = caches.write(cache['keys'][n], key, position, axis=2)
      values = caches.write(cache['values'][n], value, position, axis=2)
      attended = attend_to_past(query, keys, values, position)
      x = block.combine(x, attended, train=False)
      all_keys.append(keys)
      all_values.append(values)
    cache = cache | {'keys': tuple(all_keys), 'values': tuple(all_values)}
    return cache, self.embedding.logits(self.norm(x))


Prior = Transformer
