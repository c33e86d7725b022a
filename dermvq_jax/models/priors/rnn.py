"""Recurrent prior over grids of codes.

As in the LSTMs of van den Oord et al. 2016a, section 3.1, each layer is a
convolution over its input, here over the row above, followed by a recurrent
cell. Unlike there, one recurrence runs through all rows from first to last, so
that a position sees all positions before it. The convolution is a short cut to
the row above, which is a full row of steps away in the recurrence.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax import errors
from dermvq_jax.models import layers
from dermvq_jax.models.priors import base, caches

Array = jax.Array
Carry = Array | tuple[Array, ...]

_CELLS = {'lstm': nn.OptimizedLSTMCell, 'gru': nn.GRUCell}
_CARRY_SIZE = {'lstm': 2, 'gru': 1}  # number of arrays [B, F]


class RecurrentLayer(nn.Module):
  """A recurrent cell in raster order that also sees the row above.

  Attributes:
    features: width F.
    conditions: as in `base.Prior`.
    cell: 'lstm' or 'gru'.
    kernel_size: odd number of columns of the row above that are seen.
    dropout_rate: share of the cell's output that is dropped in training.
    dtype: dtype of the computation; parameters and the cell's state are
      float32.
  """

  features: int
  conditions: base.ConditionSpec
  cell: str = 'lstm'
  kernel_size: int = 3
  dropout_rate: float = 0.0
  dtype: jnp.dtype | None = None

  def setup(self):
    """Makes the convolution over the row above and the cell."""
    self.above_conv = layers.Conv(
      self.features, (1, self.kernel_size), use_bias=False, dtype=self.dtype
    )
    self.condition_bias = base.ConditionEmbedding(
      self.conditions, self.features, self.dtype
    )
    self.recurrent_cell = _CELLS[self.cell](self.features, dtype=self.dtype)
    self.rnn = nn.RNN(self.recurrent_cell, time_major=True)
    self.dropout = nn.Dropout(self.dropout_rate)

  def __call__(
    self, x: Array, rows: Array, conditions: base.Conditions, *, train: bool
  ) -> Array:
    """Runs the layer over an entire grid.

    Args:
      x: [B, h, w, F]; position (i, j) depends only on the codes before it.
      rows: [B, h, w, F]; row i - 1 is read for row i.
      conditions: int [B] each.
      train: whether dropout is on.

    Returns:
      [B, h, w, F].
    """
    batch, height, width, _ = x.shape
    rows_above = jnp.pad(rows, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    inputs = x + self.from_above(rows_above, conditions)
    carry = self.init_states(x)
    outputs = self.rnn(
      einops.rearrange(inputs, 'b h w f -> (h w) b f'),
      initial_carry=self._carry(carry),
    ).astype(x.dtype)
    outputs = einops.rearrange(
      outputs, '(h w) b f -> b h w f', h=height, w=width
    )
    return x + self.dropout(outputs, deterministic=not train)

  def init_states(self, x: Array) -> Array:
    """Zero states of the cell [n, B, F], for inputs `x` [B, ...]."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    shape = _CARRY_SIZE[self.cell], x.shape[0], self.features
    return jnp.zeros(shape, dtype)

  def _carry(self, states: Array) -> Carry:
    """Converts states [n, B, F] to what the cell expects."""
    return tuple(states) if self.cell == 'lstm' else states[0]

  def from_above(self, rows: Array, conditions: base.Conditions) -> Array:
    """Adds the bias of the conditions to the convolution of the row above.

    Args:
      rows: [B, h, w, F], for each row the one above it.
      conditions: int [B] each.

    Returns:
      [B, h, w, F].
    """
    bias = self.condition_bias(conditions)[:, None, None]
    return self.above_conv(rows) + bias

  def step(self, x: Array, above: Array, states: Array) -> tuple[Array, Array]:
    """Runs the layer for one position.

    Args:
      x: [B, F].
      above: [B, F], from `from_above`.
      states: [n, B, F].

    Returns:
      The next layer's input [B, F], and the new states.
    """
    carry, y = self.recurrent_cell(self._carry(states), x + above)
    return x + y.astype(x.dtype), jnp.stack(jax.tree.leaves(carry))


class RNN(base.Prior):
  """Recurrent prior; `base.Prior` explains the fields that are not here.

  Attributes:
    cell: 'lstm' or 'gru'.
    kernel_size: odd number of columns of the row above that a layer sees.
  """

  codebook_size: int
  conditions: base.ConditionSpec
  num_layers: int = 2
  features: int = 208
  cell: str = 'lstm'
  kernel_size: int = 3
  tie_embeddings: bool = False
  dropout_rate: float = 0.0
  dtype: jnp.dtype | None = None

  def setup(self):
    """Makes the embedding, the layers and the head."""
    if self.cell not in _CELLS:
      raise errors.UserError(
        f"config.prior.cell is {self.cell!r}; it must be 'lstm' or 'gru'"
      )
    self.embedding = base.CodeEmbedding(
      self.codebook_size, self.features, self.tie_embeddings, self.dtype
    )
    self.layers = [
      RecurrentLayer(
        self.features,
        self.conditions,
        self.cell,
        self.kernel_size,
        self.dropout_rate,
        self.dtype,
      )
      for _ in range(self.num_layers)
    ]
    self.hidden = nn.Dense(self.features, dtype=self.dtype)

  def __call__(
    self, codes: Array, conditions: base.Conditions, *, train: bool
  ) -> Array:
    """Runs one layer after the other, each over entire grids."""
    # From the row above, the first layer sees the codes; every other layer sees
    # the output of the layer below it.
    rows = self.embedding(codes)
    x = base.previous_in_raster(rows)
    for layer in self.layers:
      x = layer(x, rows, conditions, train=train)
      rows = x
    return self._head(x)

  def _head(self, x: Array) -> Array:
    """[..., F] -> [..., K]."""
    return self.embedding.logits(nn.relu(self.hidden(x)))

  def init_cache(
    self, conditions: base.Conditions, grid: tuple[int, int]
  ) -> base.Cache:
    """Makes the states of the cells, and room for one row."""
    batch, width = base.batch_size(conditions), grid[1]
    x = jnp.zeros_like(self.embedding(jnp.zeros(batch, jnp.int32)))  # [B, F]
    return {
      'conditions': conditions,
      'states': jnp.stack([layer.init_states(x) for layer in self.layers]),
      # The sums over the row above, for every column of this row.
      'above': jnp.zeros((width, self.num_layers, *x.shape), x.dtype),
      # The inputs of all layers but the first, for the next row.
      'inputs': jnp.zeros((width, self.num_layers - 1, *x.shape), x.dtype),
      # The last code of the row above.
      'row_end': jnp.zeros(batch, jnp.int32),
    }

  def start_row(
    self, cache: base.Cache, i: Array, row_above: Array
  ) -> base.Cache:
    """Runs the convolutions over the row above."""
    embedded = base.embed_past(self.embedding, row_above, i > 0)[None]
    inputs = einops.rearrange(cache['inputs'], 'w l b f -> l b w f')
    above = [
      layer.from_above(row[:, None], cache['conditions'])
      for layer, row in zip(self.layers, (*embedded, *inputs))
    ]
    return cache | {
      'above': einops.rearrange(jnp.stack(above), 'l b 1 w f -> w l b f'),
      'row_end': row_above[:, -1],
    }

  def step(
    self, cache: base.Cache, i: Array, j: Array, previous: Array
  ) -> tuple[base.Cache, Array]:
    """Runs the cells for the code at (i, j)."""
    previous = jnp.where(j > 0, previous, cache['row_end'])
    x = base.embed_past(self.embedding, previous, i + j > 0)  # [B, F]
    inputs, states = [], []
    for layer, above, state in zip(
      self.layers, cache['above'][j], cache['states']
    ):
      inputs.append(x)
      x, state = layer.step(x, above, state)
      states.append(state)
    cache = cache | {
      'inputs': caches.write(cache['inputs'], jnp.stack(inputs)[1:], j),
      'states': jnp.stack(states),
    }
    return cache, self._head(x)


Prior = RNN
