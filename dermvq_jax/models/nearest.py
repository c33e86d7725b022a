"""Finds the nearest codes; counts and sums the latents of each code.

XLA's CPU backend is slow at argmax and at scatters written as matmuls. On TPU
and GPU it is the other way round, so `code_sums` has a form for each.
"""

import einops
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# Size of a block of distances. Larger blocks do not fit into a CPU's cache.
BLOCK_BYTES = 2**20


def argmax(x: Array) -> Array:
  """Returns the index of the first maximum: [..., K] -> int32 [...]."""
  # XLA:CPU's argmax is a slow loop; a maximum and a minimum are not.
  most = x.max(axis=-1, keepdims=True)
  last = x.shape[-1] - 1  # the result if there is a NaN
  indices = jnp.arange(last + 1, dtype=jnp.int32)
  return jnp.where(x == most, indices, last).min(axis=-1)


def squared_distances(latents: Array, codebook: Array) -> Array:
  """Returns |z - e|^2 - |z|^2 of every latent z and every code e.

  The omitted |z|^2 is the same for all codes, so the nearest code is the same.

  Args:
    latents: [..., D].
    codebook: [K, D].

  Returns:
    [..., K].
  """
  products = jnp.einsum(
    '...d,kd->...k', latents, codebook, precision=lax.Precision.HIGHEST
  )
  return jnp.sum(codebook**2, axis=-1) - 2 * products


def nearest_codes(latents: Array, codebook: Array) -> Array:
  """Returns the index of the nearest code of each latent (Euclidean distance).

  Works on blocks of positions, or on blocks of codes if the distances of a
  single position in every image take too much memory. So the distances of all
  latents to all codes are never in memory together. Exact up to the rounding of
  float32: if two distances differ by less than 1e-6 of |z|^2 + |e|^2, either
  code may be returned.

  Args:
    latents: [B, h, w, D].
    codebook: [K, D].

  Returns:
    int32 [B, h, w]; the lowest index if several codes are equally near.
  """
  dtype = jnp.promote_types(
    jnp.promote_types(latents.dtype, codebook.dtype), jnp.float32
  )
  latents, codebook = latents.astype(dtype), codebook.astype(dtype)
  batch, size = latents.shape[0], codebook.shape[0]
  most = max(1, BLOCK_BYTES // (4 * batch))  # codes in a block
  if size <= most:

    def nearest(block: Array) -> Array:  # [B, c, D] -> [B, c]
      return _least(squared_distances(block, codebook))[1]

  else:
    parts = -(-size // most)
    most = -(-size // parts)
    # The padding repeats the last code, whose lower index wins the tie.
    padded = jnp.pad(codebook, ((0, parts * most - size), (0, 0)), mode='edge')
    codebooks = padded.reshape(parts, most, -1)
    firsts = most * jnp.arange(parts, dtype=jnp.int32)

    def nearest(block: Array) -> Array:
      def nearer(best, part):
        least, code = _least(squared_distances(block, part[0]))
        closer = least < best[0]
        code = jnp.where(closer, part[1] + code, best[1])
        return (jnp.where(closer, least, best[0]), code), None

      shape = block.shape[:2]
      start = (
        jnp.full(shape, jnp.inf, dtype),
        jnp.full(shape, size - 1, jnp.int32),
      )
      return lax.scan(nearer, start, (codebooks, firsts))[0][1]

  # Blocks are never cut along the batch, which may be sharded.
  flat = einops.rearrange(latents, 'b h w d -> b (h w) d')
  positions = flat.shape[1]
  length = _block_length(batch, positions, min(size, most))

  def nearest_from(start: Array) -> Array:  # Slicing here saves a copy.
    return nearest(lax.dynamic_slice_in_dim(flat, start, length, axis=1))

  codes = lax.map(nearest_from, jnp.arange(0, positions, length))
  codes = einops.rearrange(codes, 'n b c -> b (n c)')
  return codes.reshape(latents.shape[:3])


def _least(distances: Array) -> tuple[Array, Array]:
  """Returns the minimum of [..., K] and the index of the first: [...] each."""
  return distances.min(axis=-1), argmax(-distances)


def _block_length(batch: int, positions: int, codebook_size: int) -> int:
  """Returns how many positions of every image make a block of distances.

  It divides the number of positions, so that all blocks are equally long.
  """
  most = max(1, BLOCK_BYTES // (4 * batch * codebook_size))
  return max(c for c in range(1, most + 1) if positions % c == 0)


def code_sums(
  latents: Array, codes: Array, codebook_size: int, *, cpu: bool | None = None
) -> tuple[Array, Array]:
  """Returns the number and the sum of the latents of each code.

  Args:
    latents: [N, D].
    codes: int [N].
    codebook_size: K.
    cpu: whether to use the form for the CPU; None: if that is the default
      backend.

  Returns:
    Counts [K] and sums [K, D], in the dtype of the latents.
  """
  if cpu is None:
    cpu = jax.default_backend() == 'cpu'
  if cpu:
    ones = jnp.ones(codes.shape, latents.dtype)
    return (
      jax.ops.segment_sum(ones, codes, codebook_size),
      jax.ops.segment_sum(latents, codes, codebook_size),
    )
  one_hot = jax.nn.one_hot(codes, codebook_size, dtype=latents.dtype)  # [N, K]
  sums = jnp.einsum(
    'nk,nd->kd', one_hot, latents, precision=lax.Precision.HIGHEST
  )
  return one_hot.sum(axis=0), sums
