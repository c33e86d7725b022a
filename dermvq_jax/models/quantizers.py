"""Quantizers: continuous latents to codes and back.

`quantizer.name` in a config is the class's name in snake case without
'Quantizer': `ema` is `EmaQuantizer`. Contract: fields `codebook_size` and
`code_dim`; called with latents `[B, h, w, D]` a quantizer returns `Quantized`;
`encode` and `lookup` are its two halves; `start` takes the first latents.
Statistics that no gradient trains live in the collection `codebook`.
"""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax.models import layers

# Below so many (decayed) assignments a code's statistics say nothing.
_MIN_COUNT = 1e-6


@flax.struct.dataclass
class Quantized:
  """What a quantizer returns.

  Attributes:
    quantized: `[B, h, w, D]`; its gradient goes straight to the latents.
    codes: int32 `[B, h, w]`.
    loss: scalar to add to the training loss.
    metrics: values worth a curve, `[B]` each.
  """

  quantized: jax.Array
  codes: jax.Array
  loss: jax.Array
  metrics: dict[str, jax.Array]


def straight_through(latents: jax.Array, quantized: jax.Array) -> jax.Array:
  """`quantized` whose gradient goes to `latents` (van den Oord 2017, 3.2)."""
  return latents + jax.lax.stop_gradient(quantized - latents)


def _rows_of_global_batch(
  rows: jax.Array, rng: jax.Array, count: int, axis_name: str | None
) -> jax.Array:
  """Draws `count` rows, `[count, D]`, from all devices' rows `[N, D]`.

  The same `rng` on every device gives the same rows on every device.
  """
  n = rows.shape[0]
  if axis_name is None:
    return rows[jax.random.randint(rng, (count,), 0, n)]
  num_devices = jax.lax.axis_size(axis_name)
  index = jax.random.randint(rng, (count,), 0, n * num_devices)
  index = index - n * jax.lax.axis_index(axis_name)
  mine = (index >= 0) & (index < n)
  found = jnp.where(mine[:, None], rows[jnp.clip(index, 0, n - 1)], 0)
  return jax.lax.psum(found, axis_name)


class EmaQuantizer(nn.Module):
  """Codebook that follows the latents by moving averages.

  van den Oord et al. 2017, Appendix A.1: each code is the ratio of two moving
  averages, of the sum of the latents assigned to it and of their number. Both
  start at zero, so the ratio needs no bias correction: a code keeps its start
  value until it is used, and its first use moves it to the mean of its latents.
  A code unused for `restart_after` steps becomes a latent of the current
  batch, its averages zero again.

  Attributes:
    codebook_size: number of codes, K.
    code_dim: length of a code, D.
    commitment_weight: weight of the commitment loss (beta there).
    codebook_ema_decay: decay of the averages (gamma there).
    restart_after: steps after which an unused code restarts; 0: never.

  RNG stream `codebook` (training only): must be the same on every device.
  """

  codebook_size: int
  code_dim: int
  commitment_weight: float = 0.25
  codebook_ema_decay: float = 0.99
  restart_after: int = 0

  def setup(self):
    """Makes the codebook and its averages."""
    k, d = self.codebook_size, self.code_dim
    init = nn.initializers.variance_scaling(1.0, 'fan_out', 'uniform')
    self.codebook = self.variable(
      'codebook',
      'codebook',
      lambda: init(self.make_rng('params'), (k, d), jnp.float32),
    )
    self.ema_counts = self.variable('codebook', 'ema_counts', jnp.zeros, (k,))
    self.ema_sums = self.variable('codebook', 'ema_sums', jnp.zeros, (k, d))
    self.unused_steps = self.variable(
      'codebook', 'unused_steps', jnp.zeros, (k,), jnp.int32
    )

  def __call__(
    self, latents: jax.Array, *, train: bool, axis_name: str | None = None
  ) -> Quantized:
    """Quantizes `[B, h, w, D]`; in training also moves the codebook."""
    codes = self.encode(latents)  # [B, h, w]
    quantized = self.lookup(codes)
    error = jnp.square(
      latents.astype(jnp.float32) - jax.lax.stop_gradient(quantized)
    )
    commitment_loss = jnp.mean(error, axis=tuple(range(1, error.ndim)))  # [B]
    if train and not self.is_initializing():
      self._update(latents, codes, axis_name)
    return Quantized(
      quantized=straight_through(latents, quantized.astype(latents.dtype)),
      codes=codes,
      loss=self.commitment_weight * jnp.mean(commitment_loss),
      metrics={'commitment_loss': commitment_loss},
    )

  def encode(self, latents: jax.Array) -> jax.Array:
    """Nearest codes, int32 `[B, h, w]`, of latents `[B, h, w, D]`."""
    return layers.nearest_codes(
      jax.lax.stop_gradient(latents), self.codebook.value
    )

  def lookup(self, codes: jax.Array) -> jax.Array:
    """Code vectors `[B, h, w, D]` of codes int32 `[B, h, w]`."""
    return self.codebook.value[codes]

  def start(self, latents: jax.Array):
    """Sets the codebook to K distinct rows of `latents`, `[N, D]`, N >= K."""
    rng = self.make_rng('codebook')
    self.codebook.value = jax.random.choice(
      rng, latents.astype(jnp.float32), (self.codebook_size,), replace=False
    )

  def _update(self, latents, codes, axis_name):
    """One step of the moving averages and restarts, over all devices."""
    rows = jax.lax.stop_gradient(latents).astype(jnp.float32)
    rows = rows.reshape(-1, self.code_dim)
    counts, sums = layers.code_sums(rows, codes.ravel(), self.codebook_size)
    if axis_name is not None:
      counts, sums = jax.lax.psum((counts, sums), axis_name)
    decay = self.codebook_ema_decay
    ema_counts = decay * self.ema_counts.value + (1 - decay) * counts
    ema_sums = decay * self.ema_sums.value + (1 - decay) * sums
    codebook = jnp.where(
      (ema_counts > _MIN_COUNT)[:, None],
      ema_sums / jnp.maximum(ema_counts, _MIN_COUNT)[:, None],
      self.codebook.value,
    )
    unused = jnp.where(counts > 0, 0, self.unused_steps.value + 1)
    if self.restart_after:
      dead = unused >= self.restart_after
      candidates = _rows_of_global_batch(
        rows, self.make_rng('codebook'), self.codebook_size, axis_name
      )
      codebook = jnp.where(dead[:, None], candidates, codebook)
      ema_counts = jnp.where(dead, 0, ema_counts)
      ema_sums = jnp.where(dead[:, None], 0, ema_sums)
      unused = jnp.where(dead, 0, unused)
    self.codebook.value = codebook
    self.ema_counts.value = ema_counts
    self.ema_sums.value = ema_sums
    self.unused_steps.value = unused
