"""PixelCNN over grids of codes (van den Oord et al. 2016a, section 3.2).

One stack of masked convolutions. It has the blind spot that the Gated PixelCNN
was made to close (2016b, section 2.2): a masked k x k convolution looks k//2
columns to the right in each row above and not at all in its own row, so codes
above and further to the right than that, row by row, are never seen, at any
depth. The Gated PixelCNN (`gated_pixelcnn.py`) has no such cone.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax.models import layers
from dermvq_jax.models.priors import caches

Array = jax.Array
Cache = dict[str, Array]


class ResidualBlock(nn.Module):
  """Residual block around a masked convolution: 2016a, figure 5.

  Attributes:
    features: width F outside; inside it is F // 2.
    num_labels: number of labels, the null label included.
    kernel_size: odd size of the masked kernel.
    residual_scale: variance of the block's last weights, relative to the
      usual.
    dropout_rate: share of features dropped in training.
    dtype: of the computation; parameters are float32.
  """

  features: int
  num_labels: int
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
    self.class_bias = nn.Embed(
      self.num_labels,
      half,
      embedding_init=nn.initializers.normal(0.1),
      dtype=self.dtype,
    )
    self.dropout = nn.Dropout(self.dropout_rate)

  def __call__(self, x: Array, labels: Array, *, train: bool) -> Array:
    """[B, h, w, F] -> [B, h, w, F], causal, itself included."""
    seen = self.reduced(x)
    above = self.from_above(seen, labels)
    return self.combine(x, above, seen, train=train)

  def reduced(self, x: Array) -> Array:
    """What the masked convolution reads: [..., F] -> [..., F // 2]."""
    return nn.relu(self.reduce(nn.relu(x)))

  def from_above(
    self, seen: Array, labels: Array, *, has_context: bool = False
  ) -> Array:
    """The class bias and what the rows above add.

    Args:
      seen: [B, h, w, F // 2]; with context, the rows that one output needs.
      labels: int [B].
      has_context: whether `seen` holds the rows above itself.

    Returns:
      [B, h, w, F // 2].
    """
    bias = self.class_bias(labels)[:, None, None]
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
    """The block's output.

    Args:
      x: [B, h, w, F], its input.
      above: [B, h, w, F // 2], of `from_above`.
      seen: [B, h, w, F // 2], of `reduced`; with context, the columns that one
        output needs.
      train: whether dropout is on.
      has_context: whether `seen` holds the columns to the left itself.

    Returns:
      [B, h, w, F].
    """
    y = self.masked_conv.left(seen, has_context=has_context) + above
    y = self.dropout(nn.relu(y), deterministic=not train)
    return x + self.expand(y)


class PixelCNN(nn.Module):
  """Class-conditional prior over codes, in raster order, with a blind spot.

  Attributes:
    codebook_size: K, number of codes.
    num_classes: labels are 0 .. num_classes - 1, and `num_classes` for none.
    num_layers: number of residual blocks.
    features: width F between the blocks.
    kernel_size: odd size of the blocks' kernels.
    first_kernel_size: odd size of the stem's kernel.
    head_features: width of the hidden layer before the logits, F if they are
      tied.
    tie_embeddings: whether the logits use the embedding of the codes.
    dropout_rate: share of features dropped in training.
    dtype: of the computation; parameters and logits are float32.
  """

  codebook_size: int
  num_classes: int
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
    self.embedding = layers.CodeEmbedding(
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
        self.num_classes + 1,
        self.kernel_size,
        1 / self.num_layers,  # Else their sum grows with depth.
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

  def __call__(self, codes: Array, labels: Array, *, train: bool) -> Array:
    """Logits of every code given those before it that it sees.

    Args:
      codes: int [B, h, w], any h and w.
      labels: int [B]; `num_classes` for no label.
      train: whether dropout is on; it needs the rng stream 'dropout'.

    Returns:
      float32 [B, h, w, K].
    """
    x = self.stem(self.embedding(codes))
    for block in self.blocks:
      x = block(x, labels, train=train)
    return self._head(x)

  def _head(self, x: Array) -> Array:
    """[B, h, w, F] -> [B, h, w, K]."""
    return self.embedding.logits(nn.relu(self.hidden(nn.relu(x))))

  def init_cache(self, labels: Array, grid: tuple[int, int]) -> Cache:
    """Starts the incremental form, which repeats no work.

    For each row call `start_row`, then `step` for each of its columns.

    Args:
      labels: int [B].
      grid: (h, w).

    Returns:
      The cache: what later positions need of earlier ones.
    """
    _, width = grid
    batch, half = labels.shape[0], self.features // 2
    stem_reach, reach = self.first_kernel_size // 2, self.kernel_size // 2
    dtype = self.embedding(labels[:1]).dtype

    def zeros(*shape):
      return jnp.zeros(shape, dtype)

    return {
      'labels': labels,
      # Of the last rows, oldest first: codes and what the blocks read.
      'code_rows': zeros(stem_reach, batch, width, self.features),
      'rows': zeros(reach, self.num_layers, batch, width, half),
      # What comes from above, for every column of this row.
      'stem_above': zeros(width, batch, self.features),
      'above': zeros(width, self.num_layers, batch, half),
      # Of the last columns of this row, and of all of them for later rows.
      'codes': zeros(stem_reach, batch, self.features),
      'seen': zeros(reach, self.num_layers, batch, half),
      'row': zeros(width, self.num_layers, batch, half),
    }

  def start_row(self, cache: Cache, i: Array, row_above: Array) -> Cache:
    """Runs the upper part of every convolution for row i.

    Args:
      cache: after all of row i - 1.
      i: index of the row, may be traced.
      row_above: int [B, w], the codes of row i - 1; not used for row 0.

    Returns:
      The cache for the steps of row i.
    """
    embedded = self.embedding(row_above)
    embedded = jnp.where(i > 0, embedded, jnp.zeros_like(embedded))
    code_rows = caches.push(cache['code_rows'], embedded)
    stem_above = self.stem.above(
      einops.rearrange(code_rows, 'n b w f -> b n w f'), has_context=True
    )
    rows = caches.push(  # Zeros before row 0, as `row` begins with.
      cache['rows'], einops.rearrange(cache['row'], 'w l b f -> l b w f')
    )
    context = einops.rearrange(rows, 'n l b w f -> l b n w f')
    above = [
      block.from_above(seen, cache['labels'], has_context=True)
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
    self, cache: Cache, i: Array, j: Array, previous: Array
  ) -> tuple[Cache, Array]:
    """Runs the rest of every convolution for the code at (i, j).

    Args:
      cache: after `start_row` for i and the steps of all columns before j.
      i: index of the row, may be traced.
      j: index of the column, may be traced.
      previous: int [B], the code at (i, j - 1); not used in column 0.

    Returns:
      The cache for column j + 1, and logits float32 [B, K].
    """
    del i  # The rows above are in the cache.
    embedded = self.embedding(previous)
    embedded = jnp.where(j > 0, embedded, jnp.zeros_like(embedded))
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


# What config.prior.name = 'pixelcnn' means.
Prior = PixelCNN
