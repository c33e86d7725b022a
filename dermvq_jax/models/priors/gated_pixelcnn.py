"""Gated PixelCNN over grids of codes (van den Oord et al. 2016b).

Two stacks run side by side. The vertical stack sees all rows above. The
horizontal stack sees the codes to the left in the same row and, through a 1x1
convolution in every layer, the vertical stack. Together they see all codes
before a position and no others. Each stack has its own stem: if they shared one
masked stem, no later layer could show the vertical stack the codes that this
stem hides.

Two things are not in the paper. The vertical stack has residual connections
too; without them the gates shrink its signal about threefold per layer. And
both stacks know the position in the grid. Convolutions see the border only from
nearby; without the position, lesions appear anywhere and are cut off at the
border.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dermvq_jax.models import layers, losses
from dermvq_jax.models.priors import base, caches

Array = jax.Array

# A position is given by sines and cosines of 1, 2, ... half waves along a side;
# four of them resolve a sixteenth of the side.
_NUM_WAVES = 4


def _gate(x: Array) -> Array:
  """[..., 2F] -> [..., F]: tanh times sigmoid, 2016b, equation 2."""
  content, gate = jnp.split(x, 2, axis=-1)
  return jnp.tanh(content) * nn.sigmoid(gate)


def _waves(n: int) -> Array:
  """Smooth functions of n positions along a side: [n, 2 * _NUM_WAVES]."""
  position = (jnp.arange(n) + 0.5) / n  # in (0, 1) for a side of any length
  angles = jnp.pi * position[:, None] * jnp.arange(1, _NUM_WAVES + 1)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class GatedMaskedConv(nn.Module):
  """One layer of both stacks: van den Oord et al. 2016b, figure 2.

  Attributes:
    features: width F of each stack.
    conditions: as in `base.Prior`.
    kernel_size: odd size of the masked kernels.
    dropout_rate: share of gated features that are dropped in training.
    dtype: dtype of the computation; parameters are float32.
  """

  features: int
  conditions: base.ConditionSpec
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
    self.condition_bias = base.ConditionEmbedding(
      self.conditions, 2 * doubled, self.dtype
    )
    self.dropout = nn.Dropout(self.dropout_rate)

  def biases(self, conditions: base.Conditions) -> tuple[Array, Array]:
    """Returns the biases of both stacks, [B, 1, 1, 2F] each."""
    both = self.condition_bias(conditions)[:, None, None]
    return tuple(jnp.split(both, 2, axis=-1))

  def vertical(
    self, x: Array, bias: Array, *, train: bool, has_context: bool = False
  ) -> Array:
    """Runs the vertical stack.

    Args:
      x: [B, h, w, F]; with context, the rows that one row of output needs.
      bias: [B, 1, 1, 2F], from `biases`.
      train: whether dropout is on.
      has_context: whether `x` contains the rows above; otherwise they are zero.

    Returns:
      [B, h, w, F]; with context, h = 1.
    """
    y = self.vertical_conv(x, has_context=has_context) + bias
    y = self.dropout(_gate(y), deterministic=not train)
    return y + (x[:, -1:] if has_context else x)

  def from_above(self, vertical: Array, bias: Array) -> Array:
    """Input of the horizontal stack from the vertical one: [B, h, w, 2F]."""
    return self.vertical_to_horizontal(vertical) + bias

  def horizontal(
    self, x: Array, above: Array, *, train: bool, has_context: bool = False
  ) -> tuple[Array, Array]:
    """Runs the horizontal stack.

    Args:
      x: [B, h, w, F]; with context, the columns that one column of output
        needs.
      above: [B, h, w, 2F], from `from_above`.
      train: whether dropout is on.
      has_context: whether `x` contains the columns to the left; otherwise they
        are zero.

    Returns:
      The next layer's input and the skip connection, [B, h, w, F] each; with
      context, w = 1.
    """
    y = self.horizontal_conv(x, has_context=has_context) + above
    y = self.dropout(_gate(y), deterministic=not train)
    residual, skip = jnp.split(self.output(y), 2, axis=-1)
    return residual + (x[:, :, -1:] if has_context else x), skip


class GatedPixelCNN(base.Prior):
  """Gated PixelCNN; its fields are explained in `base.Prior`."""

  codebook_size: int
  conditions: base.ConditionSpec
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
        self.conditions,
        self.kernel_size,
        self.dropout_rate,
        self.dtype,
      )
      for _ in range(self.num_layers)
    ]
    self.hidden = layers.Conv(self.head_features, (1, 1), dtype=self.dtype)
    self.logits = layers.Conv(self.codebook_size, (1, 1), dtype=self.dtype)

  def __call__(
    self, codes: Array, conditions: base.Conditions, *, train: bool
  ) -> Array:
    """Runs both stacks over entire grids."""
    x = self.embedding(codes)
    positions = self._positions(codes.shape)
    vertical = self.vertical_stem(x) + positions
    horizontal = self.horizontal_stem(x) + positions
    skips = 0.0
    for layer in self.layers:
      vertical_bias, horizontal_bias = layer.biases(conditions)
      vertical = layer.vertical(vertical, vertical_bias, train=train)
      above = layer.from_above(vertical, horizontal_bias)
      horizontal, skip = layer.horizontal(horizontal, above, train=train)
      skips = skips + skip
    return self._head(skips)

  def _positions(self, shape: tuple[int, int, int]) -> Array:
    """Embeds the positions, for both stems: (B, h, w) -> [B, h, w, F]."""
    # Repeated before the matmul: a broadcast after it would make the gradient a
    # sum over the batch, which is slow in XLA:CPU.
    batch, height, width = shape
    rows = einops.repeat(_waves(height), 'h f -> b h w f', b=batch, w=width)
    columns = einops.repeat(_waves(width), 'w f -> b h w f', b=batch, h=height)
    return self.position(jnp.concatenate([rows, columns], axis=-1))

  def _head(self, skips: Array) -> Array:
    """[B, h, w, F] -> [B, h, w, K], float32 even if `dtype` has fewer bits."""
    hidden = nn.relu(self.hidden(nn.relu(skips)))
    return losses.at_least_float32(self.logits(hidden))

  def init_cache(
    self, conditions: base.Conditions, grid: tuple[int, int]
  ) -> base.Cache:
    """Makes windows of the last rows and columns, for every layer."""
    batch, width = base.batch_size(conditions), grid[1]
    dtype = self.embedding(jnp.zeros(1, jnp.int32)).dtype
    stem_reach, reach = self.first_kernel_size // 2, self.kernel_size // 2

    def zeros(*shape):
      return jnp.zeros(shape, dtype)

    return {
      'conditions': conditions,
      'positions': self._positions((1, *grid))[0],
      # The last rows, oldest first: codes and inputs of the vertical stack.
      'code_rows': zeros(stem_reach, batch, width, self.features),
      'vertical_rows': zeros(
        reach, self.num_layers, batch, width, self.features
      ),
      # This row's input from the vertical stack, for every column.
      'above': zeros(width, self.num_layers, batch, 2 * self.features),
      # The last columns of this row: codes and inputs of the horizontal stack.
      'codes': zeros(stem_reach, batch, self.features),
      'inputs': zeros(reach, self.num_layers, batch, self.features),
    }

  def start_row(
    self, cache: base.Cache, i: Array, row_above: Array
  ) -> base.Cache:
    """Runs the vertical stack for row i."""
    embedded = base.embed_past(self.embedding, row_above, i > 0)
    code_rows = caches.push(cache['code_rows'], embedded)
    x = self.vertical_stem(
      einops.rearrange(code_rows, 'n b w f -> b n w f'), has_context=True
    )  # [B, 1, w, F]
    x = x + lax.dynamic_index_in_dim(cache['positions'], i, keepdims=False)
    context = einops.rearrange(cache['vertical_rows'], 'n l b w f -> l b n w f')
    inputs, above = [], []
    for layer, rows in zip(self.layers, context):
      inputs.append(x[:, 0])
      vertical_bias, horizontal_bias = layer.biases(cache['conditions'])
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
    self, cache: base.Cache, i: Array, j: Array, previous: Array
  ) -> tuple[base.Cache, Array]:
    """Runs the horizontal stack for the code at (i, j)."""
    embedded = base.embed_past(self.embedding, previous, j > 0)
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


Prior = GatedPixelCNN
