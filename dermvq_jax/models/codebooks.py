"""What quantizers share: gradient estimators, starts, restarts, entropies."""

import jax
import jax.numpy as jnp
from jax import lax

from dermvq_jax.models import layers

Array = jax.Array

_LLOYD_STEPS = 10
# Lengths below this are those of vectors that point nowhere.
_MIN_NORM = 1e-6


def _value_and_gradient(value: Array, carrier: Array) -> Array:
  """Exactly `value`, whose gradient is that of `carrier`."""
  return lax.stop_gradient(value) + (carrier - lax.stop_gradient(carrier))


def straight_through(latents: Array, quantized: Array) -> Array:
  """`quantized` whose gradient goes to `latents` (van den Oord 2017, 3.2).

  Args:
    latents: [..., D].
    quantized: [..., D].
  """
  return _value_and_gradient(quantized, latents)


def normalize(vectors: Array) -> Array:
  """[..., D] -> [..., D] of length 1; no length stays no length."""
  # The length's gradient at zero would not be a number.
  squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
  return vectors * lax.rsqrt(jnp.maximum(squared, _MIN_NORM**2))


def rotation(latents: Array, quantized: Array) -> Array:
  """`quantized` whose gradient is turned (Fifty et al. 2024, section 4).

  The code is its latent, rotated and scaled; rotation and scale count as
  constants. So the angle between the gradient and the code becomes that
  between the latent's gradient and the latent, which keeps apart latents that
  share a code.

  Args:
    latents: [..., D].
    quantized: [..., D].
  """
  e, q = lax.stop_gradient((latents, quantized))
  scale = jnp.linalg.norm(q, axis=-1, keepdims=True) / jnp.maximum(
    jnp.linalg.norm(e, axis=-1, keepdims=True), _MIN_NORM
  )
  e, q = normalize(e), normalize(q)
  middle = normalize(e + q)

  def along(direction: Array) -> Array:
    return jnp.sum(latents * direction, axis=-1, keepdims=True)

  turned = latents - 2 * along(middle) * middle + 2 * along(e) * q
  return _value_and_gradient(quantized, scale * turned)


# What `gradient` of a quantizer may be.
GRADIENTS = {'straight_through': straight_through, 'rotation': rotation}


def rows_of_global_batch(
  rows: Array, rng: Array, count: int, axis_name: str | None
) -> Array:
  """Draws rows from those of all devices, the same on every device.

  Args:
    rows: this device's, [N, D].
    rng: the same key on every device.
    count: how many to draw, with replacement.
    axis_name: of the devices; None: `rows` are all there are.

  Returns:
    [count, D].
  """
  n = rows.shape[0]
  if axis_name is None:
    return rows[jax.random.randint(rng, (count,), 0, n)]
  num_devices = lax.axis_size(axis_name)
  index = jax.random.randint(rng, (count,), 0, n * num_devices)
  index = index - n * lax.axis_index(axis_name)
  mine = (index >= 0) & (index < n)
  found = jnp.where(mine[:, None], rows[jnp.clip(index, 0, n - 1)], 0)
  return lax.psum(found, axis_name)


def distinct_rows(rows: Array, rng: Array, count: int) -> Array:
  """Draws `count` of `rows`, [N, D], without replacement: [count, D]."""
  return jax.random.choice(rng, rows, (count,), replace=False)


def k_means(rows: Array, rng: Array, count: int) -> Array:
  """Centres of clusters by Lloyd's iterations, from distinct rows on.

  Args:
    rows: [N, D], N >= count.
    rng: chooses where the centres start.
    count: of centres, K.

  Returns:
    [K, D]. A centre that loses all its rows stays where it was.
  """
  grid = rows[None, :, None]  # [1, N, 1, D]

  def lloyd(centres: Array, _) -> tuple[Array, None]:
    codes = layers.nearest_codes(grid, centres).ravel()
    counts, sums = layers.code_sums(rows, codes, count)
    means = sums / jnp.maximum(counts, 1)[:, None]
    return jnp.where((counts > 0)[:, None], means, centres), None

  start = distinct_rows(rows, rng, count)
  return lax.scan(lloyd, start, None, length=_LLOYD_STEPS)[0]


def assignment_entropies(
  latents: Array,
  codebook: Array,
  temperature: float,
  axis_name: str | None = None,
) -> tuple[Array, Array]:
  """Entropies of soft assignments, softmax(-distance^2 / temperature).

  In blocks of the grid that are computed again for the gradient, so that the
  assignments of all latents never exist at once; the largest array is [B, K].

  Args:
    latents: [B, h, w, D].
    codebook: [K, D].
    temperature: in units of squared distances.
    axis_name: of the devices that hold the batch; None: this is all of it.

  Returns:
    Nats: of a latent's assignment, its mean over the batch; and of the mean
    assignment of the whole batch, on all devices. The first is small when
    assignments are sure, the second large when all codes are used.
  """

  @jax.checkpoint
  def of_block(block: Array, codebook: Array) -> tuple[Array, Array]:
    distances = layers.squared_distances(block, codebook)  # [B, c, K]
    log_p = jax.nn.log_softmax(-distances / temperature, axis=-1)
    p = jnp.exp(log_p)
    return p.sum(axis=1), -(p * log_p).sum(axis=(1, 2))

  def add(sums, block):
    return jax.tree.map(jnp.add, sums, of_block(block, codebook)), None

  batch, height, width, _ = latents.shape
  # Per image until the end: sums over a sharded batch cost communication.
  zeros = jnp.zeros((batch, len(codebook))), jnp.zeros(batch)
  blocks = layers.position_blocks(latents, len(codebook))
  sums, _ = lax.scan(add, zeros, blocks)
  mean_p, per_latent = (x.mean(axis=0) / (height * width) for x in sums)
  if axis_name is not None:
    mean_p, per_latent = lax.pmean((mean_p, per_latent), axis_name)
  return per_latent, jnp.sum(jax.scipy.special.entr(mean_p))
