"""Recurrent prior over grids of codes, in raster order.

As the LSTMs of van den Oord et al. 2016a, section 3.1, each layer is a
convolution over its input, here over the row above, and then a recurrent cell.
But one recurrence runs through all rows from first to last, so that every past
position is seen. The row above reaches each layer directly; through the
recurrence alone it would be a whole row of steps away.
"""

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax import errors
from dermvq_jax.models import layers
from dermvq_jax.models.priors import caches

Array = jax.Array
Cache = dict[str, Array]
Carry = Array | tuple[Array, ...]

_CELLS = {'lstm': nn.OptimizedLSTMCell, 'gru': nn.GRUCell}
_CARRY_SIZE = {'lstm': 2, 'gru': 1}  # arrays of F features


class RecurrentLayer(nn.Module):
  """A recurrent cell in raster order that also sees the row above.

  Attributes:
    features: width F.
    num_labels: number of labels, the null label included.
    cell: 'lstm' or 'gru'.
    kernel_size: odd number of columns that are seen of the row above.
    dropout_rate: share of the cell's output dropped in training.
    dtype: of the computation; parameters and the carry are float32.
  """

  features: int
  num_labels: int
  cell: str = 'lstm'
  kernel_size: int = 3
  dropout_rate: float = 0.0
  dtype: jnp.dtype | None = None

  def setup(self):
    """Makes the convolution over the row above and the cell."""
    self.above_conv = layers.Conv(
      self.features, (1, self.kernel_size), use_bias=False, dtype=self.dtype
    )
    self.class_bias = nn.Embed(
      self.num_labels,
      self.features,
      embedding_init=nn.initializers.normal(0.1),
      dtype=self.dtype,
    )
    self.recurrent_cell = _CELLS[self.cell](self.features, dtype=self.dtype)
    self.rnn = nn.RNN(self.recurrent_cell, time_major=True)
    self.dropout = nn.Dropout(self.dropout_rate)

  def __call__(
    self, x: Array, rows: Array, labels: Array, *, train: bool
  ) -> Array:
    """Runs the layer over a whole grid.

    Args:
      x: [B, h, w, F]; position (i, j) knows of earlier codes only.
      rows: [B, h, w, F], of which row i - 1 is read for row i.
      labels: int [B].
      train: whether dropout is on.

    Returns:
      [B, h, w, F].
    """
    batch, height, width, _ = x.shape
    rows_above = jnp.pad(rows, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
    inputs = x + self.from_above(rows_above, labels)
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
    """The cell's state before the first code, of `x` [B, ...]: [n, B, F]."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    shape = _CARRY_SIZE[self.cell], x.shape[0], self.features
    return jnp.zeros(shape, dtype)

  def _carry(self, states: Array) -> Carry:
    """[n, B, F] -> the state as the cell takes it."""
    return tuple(states) if self.cell == 'lstm' else states[0]

  def from_above(self, rows: Array, labels: Array) -> Array:
    """The class bias and what the rows above add: [B, h, w, F] -> the same."""
    return self.above_conv(rows) + self.class_bias(labels)[:, None, None]

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


class RNN(nn.Module):
  """Class-conditional recurrent prior over codes, in raster order.

  Attributes:
    codebook_size: K, number of codes.
    num_classes: labels are 0 .. num_classes - 1, and `num_classes` for none.
    num_layers: number of recurrent layers.
    features: width F of embedding and cells.
    cell: 'lstm' or 'gru'.
    kernel_size: odd number of columns that a layer sees of the row above.
    tie_embeddings: whether the logits use the embedding of the codes.
    dropout_rate: share of the cells' outputs dropped in training.
    dtype: of the computation; parameters and logits are float32.
  """

  codebook_size: int
  num_classes: int
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
    self.embedding = layers.CodeEmbedding(
      self.codebook_size, self.features, self.tie_embeddings, self.dtype
    )
    self.layers = [
      RecurrentLayer(
        self.features,
        self.num_classes + 1,
        self.cell,
        self.kernel_size,
        self.dropout_rate,
        self.dtype,
      )
      for _ in range(self.num_layers)
    ]
    self.hidden = nn.Dense(self.features, dtype=self.dtype)

  def __call__(self, codes: Array, labels: Array, *, train: bool) -> Array:
    """Logits of every code given all codes before it.

    Args:
      codes: int [B, h, w], any h and w.
      labels: int [B]; `num_classes` for no label.
      train: whether dropout is on; it needs the rng stream 'dropout'.

    Returns:
      float32 [B, h, w, K].
    """
    # The first layer sees the codes of the row above, the others what the
    # layer below them made of it.
    rows = self.embedding(codes)
    x = layers.previous_in_raster(rows)
    for layer in self.layers:
      x = layer(x, rows, labels, train=train)
      rows = x
    return self._head(x)

  def _head(self, x: Array) -> Array:
    """[..., F] -> [..., K]."""
    return self.embedding.logits(nn.relu(self.hidden(x)))

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
    batch = labels.shape[0]
    x = jnp.zeros_like(self.embedding(labels))  # [B, F]
    return {
      'labels': labels,
      'states': jnp.stack([layer.init_states(x) for layer in self.layers]),
      # What comes from above, for every column of this row.
      'above': jnp.zeros((width, self.num_layers, *x.shape), x.dtype),
      # The layers' inputs but for the first layer's, for the next row.
      'inputs': jnp.zeros((width, self.num_layers - 1, *x.shape), x.dtype),
      'row_end': jnp.zeros(batch, jnp.int32),
    }

  def start_row(self, cache: Cache, i: Array, row_above: Array) -> Cache:
    """Runs the convolutions over the row above row i.

    Args:
      cache: after all of row i - 1.
      i: index of the row, may be traced.
      row_above: int [B, w], the codes of row i - 1; not used for row 0.

    Returns:
      The cache for the steps of row i.
    """
    embedded = self.embedding(row_above)[None]  # [1, B, w, F]
    embedded = jnp.where(i > 0, embedded, jnp.zeros_like(embedded))
    inputs = einops.rearrange(cache['inputs'], 'w l b f -> l b w f')
    above = [
      layer.from_above(row[:, None], cache['labels'])
      for layer, row in zip(self.layers, (*embedded, *inputs))
    ]
    return cache | {
      'above': einops.rearrange(jnp.stack(above), 'l b 1 w f -> w l b f'),
      'row_end': row_above[:, -1],
    }

  def step(
    self, cache: Cache, i: Array, j: Array, previous: Array
  ) -> tuple[Cache, Array]:
    """Runs the cells for the code at (i, j).

    Args:
      cache: after `start_row` for i and the steps of all columns before j.
      i: index of the row, may be traced.
      j: index of the column, may be traced.
      previous: int [B], the code at (i, j - 1); not used in column 0.

    Returns:
      The cache for column j + 1, and logits float32 [B, K].
    """
    x = self.embedding(jnp.where(j > 0, previous, cache['row_end']))  # [B, F]
    x = jnp.where(i + j > 0, x, jnp.zeros_like(x))
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


# What config.prior.name = 'rnn' means.
Prior = RNN
