"""Gated PixelCNN over grids of codes (van den Oord et al. 2016b).

Two stacks run side by side. The vertical stack sees all rows above, the
horizontal stack the codes to the left in the same row and, through a 1x1
convolution in every layer, the vertical stack: together every past position
and no other. Each stack has a stem of its own, since a masked stem that both
share would hide part of the past from the vertical stack for good.

Two things are not in the paper. The vertical stack has residual connections
too: without them the gates shrink its signal about threefold a layer. And both
stacks are told where they are: convolutions see the grid's borders only from
near, so that without it lesions appear anywhere and cut off at the border.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dermvq_jax.models import layers
from dermvq_jax.models.priors import caches

Array = jax.Array
Cache = dict[str, Array]

# Half waves along a side that tell the place: enough for a sixteenth of it.
_NUM_WAVES = 4


def _gate(x: Array) -> Array:
  """[..., 2F] -> [..., F]: tanh times sigmoid, equation 2 of 2016b."""
  content, gate = jnp.split(x, 2, axis=-1)
  return jnp.tanh(content) * nn.sigmoid(gate)


def _waves(n: int) -> Array:
  """Smooth functions of the place along n positions: [n, 2 * _NUM_WAVES]."""
  place = (jnp.arange(n) + 0.5) / n  # the same in a grid of any size
  angles = jnp.pi * place[:, None] * jnp.arange(1, _NUM_WAVES + 1)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class GatedMaskedConv(nn.Module):
  """One layer of both stacks: van den Oord et al. 2016b, figure 2.

  Attributes:
    features: width F of each stack.
    num_labels: number of labels, the null label included.
    kernel_size: odd size of the masked kernel.
    dropout_rate: share of gated features dropped in training.
    dtype: of the computation; parameters are float32.
  """

  features: int
  num_labels: int
  kernel_size: int = 3
  dropout_rate: float = 0.0
  dtype: jnp.dtype | None = None

  def setup(self):
    """Makes the convolutions of both stacks."""
    doubled = 2 * self.features
    self.vertical_conv = layers.VerticalConv(
      doubled, self.kernel_size, dtype=self.dtype
    )
    self.horizontal_conv = layers.HorizontalConv(
      doubled, self.kernel_size, dtype=self.dtype, use_bias=False
    )
    self.vertical_to_horizontal = layers.Conv(doubled, (1, 1), dtype=self.dtype)
    # Residual and skip connection, in one matmul.
    self.output = layers.Conv(doubled, (1, 1), dtype=self.dtype)
    self.class_bias = nn.Embed(
      self.num_labels,
      2 * doubled,
      embedding_init=nn.initializers.normal(0.1),
      dtype=self.dtype,
    )
    self.dropout = nn.Dropout(self.dropout_rate)

  def biases(self, labels: Array) -> tuple[Array, Array]:
    """[B] -> the class biases of both stacks, [B, 1, 1, 2F] each."""
    both = self.class_bias(labels)[:, None, None]
    return tuple(jnp.split(both, 2, axis=-1))

  def vertical(
    self, x: Array, bias: Array, *, train: bool, has_context: bool = False
  ) -> Array:
    """[B, h, w, F] -> [B, h, w, F]; with context, of the last row alone."""
    y = self.vertical_conv(x, has_context=has_context) + bias
    y = self.dropout(_gate(y), deterministic=not train)
    return y + (x[:, -1:] if has_context else x)

  def from_above(self, vertical: Array, bias: Array) -> Array:
    """What the vertical stack adds to the horizontal one: [B, h, w, 2F]."""
    return self.vertical_to_horizontal(vertical) + bias

  def horizontal(
    self, x: Array, above: Array, *, train: bool, has_context: bool = False
  ) -> tuple[Array, Array]:
    """Runs the horizontal stack.

    Args:
      x: [B, h, w, F]; with context, the columns that one output needs.
      above: [B, h, w, 2F], from `from_above`.
      train: whether dropout is on.
      has_context: whether `x` holds the columns to the left itself.

    Returns:
      The next layer's input and the skip connection, [B, h, w, F] each.
    """
    y = self.horizontal_conv(x, has_context=has_context) + above
    y = self.dropout(_gate(y), deterministic=not train)
    residual, skip = jnp.split(self.output(y), 2, axis=-1)
    return residual + (x[:, :, -1:] if has_context else x), skip


class GatedPixelCNN(nn.Module):
  """Class-conditional prior over codes, in raster order.

  Attributes:
    codebook_size: K, number of codes.
    num_classes: labels are 0 .. num_classes - 1, and `num_classes` for none.
    num_layers: number of gated layers.
    features: width F of each stack.
    kernel_size: odd size of the gated layers' kernels.
    first_kernel_size: odd size of the stems' kernels.
    head_features: width of the hidden layer before the logits.
    dropout_rate: share of gated features dropped in training.
    dtype: of the computation; parameters and logits are float32.
  """

  codebook_size: int
  num_classes: int
  num_layers: int = 15
  features: int = 64
  kernel_size: int = 3
  first_kernel_size: int = 7
  head_features: int = 256
  dropout_rate: float = 0.0
  dtype: jnp.dtype | None = None

  def setup(self):
    """Makes the embedding, the stems, the layers and the head."""
    layers.check_causal_size('kernel_size', self.kernel_size)
    layers.check_causal_size('first_kernel_size', self.first_kernel_size)
    self.embedding = nn.Embed(
      self.codebook_size,
      self.features,
      embedding_init=nn.initializers.normal(1.0),
      dtype=self.dtype,
    )
    self.position = nn.Dense(self.features, use_bias=False, dtype=self.dtype)
    stem = dict(include_self=False, dtype=self.dtype)
    self.vertical_stem = layers.VerticalConv(
      self.features, self.first_kernel_size, **stem
    )
    self.horizontal_stem = layers.HorizontalConv(
      self.features, self.first_kernel_size, **stem
    )
    self.layers = [
      GatedMaskedConv(
        self.features,
        self.num_classes + 1,
        self.kernel_size,
        self.dropout_rate,
        self.dtype,
      )
      for _ in range(self.num_layers)
    ]
    self.hidden = layers.Conv(self.head_features, (1, 1), dtype=self.dtype)
    self.logits = layers.Conv(self.codebook_size, (1, 1), dtype=self.dtype)

  def __call__(self, codes: Array, labels: Array, *, train: bool) -> Array:
    """Logits of every code given all codes before it.

    Args:
      codes: int [B, h, w], any h and w.
      labels: int [B]; `num_classes` for no label.
      train: whether dropout is on; it needs the rng stream 'dropout'.

    Returns:
      float32 [B, h, w, K].
    """
    x = self.embedding(codes)
    positions = self._positions(codes.shape)
    vertical = self.vertical_stem(x) + positions
    horizontal = self.horizontal_stem(x) + positions
    skips = 0.0
    for layer in self.layers:
      vertical_bias, horizontal_bias = layer.biases(labels)
      vertical = layer.vertical(vertical, vertical_bias, train=train)
      above = layer.from_above(vertical, horizontal_bias)
      horizontal, skip = layer.horizontal(horizontal, above, train=train)
      skips = skips + skip
    return self._head(skips)

  def _positions(self, shape: tuple[int, int, int]) -> Array:
    """What is added to both stems: (B, h, w) -> [B, h, w, F]."""
    # Repeated before the matmul: XLA:CPU is slow at sums over the batch.
    batch, height, width = shape
    rows = einops.repeat(_waves(height), 'h f -> b h w f', b=batch, w=width)
    columns = einops.repeat(_waves(width), 'w f -> b h w f', b=batch, h=height)
    return self.position(jnp.concatenate([rows, columns], axis=-1))

  def _head(self, skips: Array) -> Array:
    """[B, h, w, F] -> [B, h, w, K], float32 also where dtype is less."""
    hidden = nn.relu(self.hidden(nn.relu(skips)))
    logits = self.logits(hidden)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

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
    shape = (labels.shape[0], self.features)  # [B, F]
    dtype = self.embedding(labels[:1]).dtype
    rows = (labels.shape[0], width, self.features)  # [B, w, F]
    stem_reach, reach = self.first_kernel_size // 2, self.kernel_size // 2
    doubled = (labels.shape[0], 2 * self.features)
    return {
      'labels': labels,
      'positions': self._positions((1, *grid))[0],
      # Of the last rows, oldest first: codes and inputs of the vertical stack.
      'code_rows': jnp.zeros((stem_reach, *rows), dtype),
      'vertical_rows': jnp.zeros((reach, self.num_layers, *rows), dtype),
      # What comes from above, for every column of this row.
      'above': jnp.zeros((width, self.num_layers, *doubled), dtype),
      # Of the last columns of this row: codes, inputs of the horizontal stack.
      'codes': jnp.zeros((stem_reach, *shape), dtype),
      'inputs': jnp.zeros((reach, self.num_layers, *shape), dtype),
    }

  def start_row(self, cache: Cache, i: Array, row_above: Array) -> Cache:
    """Runs the vertical stack for row i.

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
    x = self.vertical_stem(
      einops.rearrange(code_rows, 'n b w f -> b n w f'), has_context=True
    )  # [B, 1, w, F]
    x = x + lax.dynamic_index_in_dim(cache['positions'], i, keepdims=False)
    context = einops.rearrange(cache['vertical_rows'], 'n l b w f -> l b n w f')
    inputs, above = [], []
    for layer, rows in zip(self.layers, context):
      inputs.append(x[:, 0])
      vertical_bias, horizontal_bias = layer.biases(cache['labels'])
      rows = jnp.concatenate([rows, x], axis=1)
      x = layer.vertical(rows, vertical_bias, train=False, has_context=True)
      above.append(layer.from_above(x, horizontal_bias)[:, 0])
    return cache | {
      'code_rows': code_rows,
      'vertical_rows': caches.push(cache['vertical_rows'], jnp.stack(inputs)),
      'above': einops.rearrange(jnp.stack(above), 'l b w f -> w l b f'),
      'codes': jnp.zeros_like(cache['codes']),
      'inputs': jnp.zeros_like(cache['inputs']),
    }

  def step(
    self, cache: Cache, i: Array, j: Array, previous: Array
  ) -> tuple[Cache, Array]:
    """Runs the horizontal stack for the code at (i, j).

    Args:
      cache: after `start_row` for i and the steps of all columns before j.
      i: index of the row, may be traced.
      j: index of the column, may be traced.
      previous: int [B], the code at (i, j - 1); not used in column 0.

    Returns:
      The cache for column j + 1, and logits float32 [B, K].
    """
    embedded = self.embedding(previous)
    embedded = jnp.where(j > 0, embedded, jnp.zeros_like(embedded))
    codes = caches.push(cache['codes'], embedded)
    x = self.horizontal_stem(
      einops.rearrange(codes, 'n b f -> b 1 n f'), has_context=True
    )  # [B, 1, 1, F]
    x = x + cache['positions'][i, j]
    context = einops.rearrange(cache['inputs'], 'n l b f -> l b 1 n f')
    above = lax.dynamic_index_in_dim(cache['above'], j, keepdims=False)
    inputs, skips = [], 0.0
    for layer, columns, bias in zip(self.layers, context, above):
      inputs.append(x[:, 0, 0])
      columns = jnp.concatenate([columns, x], axis=2)
      x, skip = layer.horizontal(
        columns, bias[:, None, None], train=False, has_context=True
      )
      skips = skips + skip
    inputs = caches.push(cache['inputs'], jnp.stack(inputs))
    cache = cache | {'codes': codes, 'inputs': inputs}
    return cache, self._head(skips)[:, 0, 0]


# What config.prior.name = 'gated_pixelcnn' means.
Prior = GatedPixelCNN
