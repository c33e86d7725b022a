import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax.models import nearest


def _normal(shape, seed=0, dtype=np.float64):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def test_argmax_takes_the_first_of_equals():
  x = jnp.asarray([[0.0, 2.0, 2.0], [3.0, 1.0, -jnp.inf], [1.0, jnp.nan, 0.0]])
  found = nearest.argmax(x)
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, [1, 0, 2])  # in range, also for NaN


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_nearest_codes_by_brute_force(dtype):
  latents = jnp.asarray(_normal((3, 4, 5, 6)), dtype)
  codebook = jnp.asarray(_normal((37, 6), 1), dtype)
  codes = jax.jit(nearest.nearest_codes)(latents, codebook)
  z, e = (np.asarray(a, np.float64) for a in (latents, codebook))
  distances = ((z[..., None, :] - e) ** 2).sum(-1)
  np.testing.assert_array_equal(codes, distances.argmin(-1))
  assert codes.dtype == jnp.int32


def test_nearest_codes_takes_the_first_of_equals():
  codebook = jnp.asarray([[5.0, 5.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
  latents = jnp.asarray([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
  codes = nearest.nearest_codes(latents[None, :, None], codebook)
  np.testing.assert_array_equal(codes[0, :, 0], [1, 1, 2, 0])


@pytest.mark.parametrize('block', [1, 4 * 37, 10 * 37 * 4])
@pytest.mark.parametrize('grid', [(4, 5), (1, 7), (3, 1)])
def test_nearest_codes_in_blocks(block, grid, monkeypatch):
  """Blocks of some codes, one position or several give the same codes."""
  monkeypatch.setattr(nearest, 'BLOCK_BYTES', 4 * block)
  latents = _normal((4, *grid, 6), dtype=np.float32)
  codebook = _normal((37, 6), 1, dtype=np.float32)
  codebook[36] = codebook[20]  # the first of equals, in any block
  # A new function, as jit would reuse the program of another block size.
  nearest_codes = jax.jit(lambda z, e: nearest.nearest_codes(z, e))
  codes = nearest_codes(latents, codebook)
  distances = np.square(np.float64(latents)[..., None, :] - codebook).sum(-1)
  np.testing.assert_array_equal(codes, distances.argmin(-1))
  # A NaN has a code that exists.
  codes = nearest_codes(np.nan * latents, codebook)
  assert np.all((codes >= 0) & (codes < 37))


@pytest.mark.parametrize('codebook_size', [512, 20_000])
def test_nearest_codes_of_many(codebook_size):
  """The codes are the nearest ones in float64, except for ties within 1e-6."""
  latents = _normal((2, 8, 8, 16), dtype=np.float32)
  codebook = _normal((codebook_size, 16), 1, dtype=np.float32)
  codes = np.asarray(jax.jit(nearest.nearest_codes)(latents, codebook))
  z, e = np.float64(latents).reshape(-1, 16), np.float64(codebook)
  least = np.stack([np.square(row - e).sum(1) for row in z])
  found = least[np.arange(len(z)), codes.ravel()]
  scale = np.square(z).sum(1) + np.square(e[codes.ravel()]).sum(1)
  assert np.all(found - least.min(1) <= 1e-6 * scale)
  assert np.mean(codes.ravel() == least.argmin(1)) > 0.99


@pytest.mark.parametrize(
  'batch, size, codebook_size', [(16, 16, 512), (16, 64, 512), (4, 64, 65_536)]
)
def test_only_blocks_of_distances_are_in_memory(batch, size, codebook_size):
  dim = 64
  shapes = (
    jax.ShapeDtypeStruct((batch, size, size, dim), jnp.float32),
    jax.ShapeDtypeStruct((codebook_size, dim), jnp.float32),
  )
  compiled = jax.jit(nearest.nearest_codes).lower(*shapes).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  copies = 4 * dim * 2 * codebook_size
  codes = 4 * batch * size**2
  assert temporary < codes + copies + 4 * nearest.BLOCK_BYTES


@pytest.mark.parametrize('cpu', [True, False])
def test_code_sums(cpu):
  latents = _normal((50, 3), dtype=np.float32)
  codes = np.random.default_rng(0).integers(0, 6, 50)
  counts, sums = nearest.code_sums(latents, codes, 8, cpu=cpu)
  one_hot = einops.rearrange(codes, 'n -> n 1') == np.arange(8)
  np.testing.assert_array_equal(counts, one_hot.sum(0))
  np.testing.assert_allclose(
    sums, one_hot.T.astype(np.float64) @ latents, rtol=1e-5, atol=1e-5
  )
