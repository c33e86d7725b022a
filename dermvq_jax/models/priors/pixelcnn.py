"""PixelCNN over grids of codes (van den Oord et al. 2016a, section 3.2).

This is one stack of masked convolutions. It has the blind spot that the Gated
PixelCNN was made to remove (2016b, section 2.2): with each row up, a masked
k x k convolution reaches at most k // 2 columns further to the right. Codes
above that lie further to the right are never seen, however many layers there
are. The Gated PixelCNN (`gated_pixelcnn.py`) sees them.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax.models import layers
from dermvq_jax.models.priors import base, caches

Array = jax.Array


class ResidualBlock(nn.Module):
  """Residual block around a masked convolution: 2016a, figure 5.

  Attributes:
    features: width F of input and output; inside it is F // 2.
    conditions: as in `base.Prior`.
    kernel_size: odd size of the masked kernel.
    residual_scale: factor on the variance of the block's last weights.
    dropout_rate: share of features that are dropped in training.
    dtype: dtype of the computation; parameters are float32.
  """

  features: int
  conditions: base.ConditionSpec
  kernel_size: int = 3
  residual_scale: float = 1.0
  dropout_rate: float = 0.0
  dtype: jnp.dtype | None = None

  def setup(self):
    """Makes the convolutions."""
    half = self.features // 2
    self.reduce = layers.Conv(half, (1, 1), dtype=self.dtype)
    self.masked_conv = layers.MaskedConv(
      half, self.kernel_size, use_bias=False, dtype=self.dtype
    )
    self.expand = layers.Conv(
      self.features,
      (1, 1),
      dtype=self.dtype,
      kernel_init=nn.initializers.variance_scaling(
        self.residual_scale, 'fan_in', 'truncated_normal'
      ),
    )
    self.condition_bias = base.ConditionEmbedding(
      self.conditions, half, self.dtype
    )
    self.dropout = nn.Dropout(self.dropout_rate)

  def __call__(
    self, x: Array, conditions: base.Conditions, *, train: bool
  ) -> Array:
    """[B, h, w, F] -> [B, h, w, F]; a position sees itself and those before."""
    seen = self.reduced(x)
    above = self.from_above(seen, conditions)
    return self.combine(x, above, seen, train=train)

  def reduced(self, x: Array) -> Array:
    """Input of the masked convolution: [..., F] -> [..., F // 2]."""
    return nn.relu(self.reduce(nn.relu(x)))

  def from_above(
    self, seen: Array, conditions: base.Conditions, *, has_context: bool = False
  ) -> Array:
    """Adds the bias of the conditions to the convolution of the rows above.

    Args:
      seen: [B, h, w, F // 2]; with context, the rows that one row of output
        needs.
      conditions: int [B] each.
      has_context: whether `seen` contains the rows above; otherwise they are
        zero.

    Returns:
      [B, h, w, F // 2]; with context, h = 1.
    """
    bias = self.condition_bias(conditions)[:, None, None]
    return self.masked_conv.above(seen, has_context=has_context) + bias

  def combine(
    self,
    x: Array,
    above: Array,
    seen: Array,
    *,
    train: bool,
    has_context: bool = False,
  ) -> Array:
    """Computes the block's output.

    Args:
      x: [B, h, w, F], the block's input.
      above: [B, h, w, F // 2], from `from_above`.
      seen: [B, h, w, F // 2], from `reduced`; with context, the columns that
        one column of output needs.
      train: whether dropout is on.
      has_context: whether `seen` contains the columns to the left; otherwise
        they are zero.

    Returns:
      [B, h, w, F].
    """
    y = self.masked_conv.left(seen, has_context=has_context) + above
    y = self.dropout(nn.relu(y), deterministic=not train)
    return x + self.expand(y)


class PixelCNN(base.Prior):
  """PixelCNN, which has a blind spot; `base.Prior` explains the fields.

  With `tie_embeddings`, the hidden layer before the logits is F wide, and
  `head_features` has no effect.
  """

  codebook_size: int
  conditions: base.ConditionSpec
  num_layers: int = 16
  features: int = 128
  kernel_size: int = 3
  first_kernel_size: int = 7
  head_features: int = 256
  tie_embeddings: bool = False
  dropout_rate: float = 0.0
  dtype: jnp.dtype | None = None

  def setup(self):
    """Makes the embedding, the stem, the blocks and the head."""
    layers.check_causal_size('kernel_size', self.kernel_size)
    layers.check_causal_size('first_kernel_size', self.first_kernel_size)
    self.embedding = base.CodeEmbedding(
      self.codebook_size, self.features, self.tie_embeddings, self.dtype
    )
    self.stem = layers.MaskedConv(
      self.features,
      self.first_kernel_size,
      include_self=False,
      dtype=self.dtype,
    )
    self.blocks = [
      ResidualBlock(
        self.features,
        self.conditions,
        self.kernel_size,
        1 / self.num_layers,  # otherwise their sum grows with depth
        self.dropout_rate,
        self.dtype,
      )
      for _ in range(self.num_layers)
    ]
    self.hidden = layers.Conv(
      self.features if self.tie_embeddings else self.head_features,
      (1, 1),
      dtype=self.dtype,
    )

  def __call__(
    self, codes: Array, conditions: base.Conditions, *, train: bool
  ) -> Array:
    """Runs the network over entire grids."""
    x = self.stem(self.embedding(codes))
    for block in self.blocks:
      x = block(x, conditions, train=train)
    return self._head(x)

  def _head(self, x: Array) -> Array:
    """[B, h, w, F] -> [B, h, w, K]."""
    return self.embedding.logits(nn.relu(self.hidden(nn.relu(x))))

  def init_cache(
    self, conditions: base.Conditions, grid: tuple[int, int]
  ) -> base.Cache:
    """Makes windows of the last rows and columns, for every block."""
    batch, width = base.batch_size(conditions), grid[1]
    half = self.features // 2
    dtype = self.embedding(jnp.zeros(1, jnp.int32)).dtype
    stem_reach, reach = self.first_kernel_size // 2, self.kernel_size // 2

    def zeros(*shape):
      return jnp.zeros(shape, dtype)

    return {
      'conditions': conditions,
      # The last rows, oldest first: codes, and what the blocks read.
      'code_rows': zeros(stem_reach, batch, width, self.features),
      'rows': zeros(reach, self.num_layers, batch, width, half),
      # The sums over the rows above, for every column of this row.
      'stem_above': zeros(width, batch, self.features),
      'above': zeros(width, self.num_layers, batch, half),
      # The last columns of this row; and all of them, for later rows.
      'codes': zeros(stem_reach, batch, self.features),
      'seen': zeros(reach, self.num_layers, batch, half),
      'row': zeros(width, self.num_layers, batch, half),
    }

  def start_row(
    self, cache: base.Cache, i: Array, row_above: Array
  ) -> base.Cache:
    """Runs the upper part of every convolution for row i."""
    embedded = base.embed_past(self.embedding, row_above, i > 0)
    code_rows = caches.push(cache['code_rows'], embedded)
    stem_above = self.stem.above(
      einops.rearrange(code_rows, 'n b w f -> b n w f'), has_context=True
    )
    rows = caches.push(  # `row` is zero before row 0
      cache['rows'], einops.rearrange(cache['row'], 'w l b f -> l b w f')
    )
    context = einops.rearrange(rows, 'n l b w f -> l b n w f')
    above = [
      block.from_above(seen, cache['conditions'], has_context=True)
      for block, seen in zip(self.blocks, context)
    ]
    return cache | {
      'code_rows': code_rows,
      'rows': rows,
      'stem_above': einops.rearrange(stem_above, 'b 1 w f -> w b f'),
      'above': einops.rearrange(jnp.stack(above), 'l b 1 w f -> w l b f'),
      'codes': jnp.zeros_like(cache['codes']),
      'seen': jnp.zeros_like(cache['seen']),
    }

  def step(
    self, cache: base.Cache, i: Array, j: Array, previous: Array
  ) -> tuple[base.Cache, Array]:
    """Runs the rest of every convolution for the code at (i, j)."""
    del i  # The rows above are in the cache.
    embedded = base.embed_past(self.embedding, previous, j > 0)
    codes = caches.push(cache['codes'], embedded)
    window = einops.rearrange(codes, 'n b f -> b 1 n f')
    x = self.stem.left(window, has_context=True)  # [B, 1, 1, F]
    x = x + cache['stem_above'][j][:, None, None]
    context = einops.rearrange(cache['seen'], 'n l b f -> l b 1 n f')
    here = []
    for block, columns, above in zip(self.blocks, context, cache['above'][j]):
      seen = block.reduced(x)
      here.append(seen[:, 0, 0])
      x = block.combine(
        x,
        above[:, None, None],
        jnp.concatenate([columns, seen], axis=2),
        train=False,
        has_context=True,
      )
    here = jnp.stack(here)
    cache = cache | {
      'codes': codes,
      'seen': caches.push(cache['seen'], here),
      'row': caches.write(cache['row'], here, j),
    }
    return cache, self._head(x)[:, 0, 0]


Prior = PixelCNN
