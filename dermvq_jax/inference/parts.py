"""Loads one part of a trained VQ-VAE: `dermvq_jax.load_part`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from dermvq_jax import errors
from dermvq_jax.models import build
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import compile_cache


def load_part(
  workdir: epath.PathLike, part: str
) -> Callable[[np.ndarray], np.ndarray] | np.ndarray:
  """Loads one part of the VQ-VAE in `workdir`, without the others.

  Args:
    workdir: the folder of a run with a trained VQ-VAE.
    part: 'encoder', 'codebook' or 'decoder'.

  Returns:
    The encoder as a function from uint8 images `[B, H, W, 3]` to latents
    float32 `[B, h, w, D]`; the codebook as float32 `[K, D]`, the vector of each
    code, or with L levels `[L*K, D]`, what each code adds; or the decoder as a
    function from such vectors `[B, h, w, D]` to uint8 images.

  Raises:
    UserError: there is no such part, or no trained VQ-VAE.
  """
  if part not in build.VQVAE_PARTS:
    raise errors.UserError(
      f'a VQ-VAE has no part {part!r}; there are '
      + ', '.join(build.VQVAE_PARTS)
    )
  compile_cache.enable()
  vqvae = run_lib.find(workdir).vqvae
  apply, variables = build.vqvae_part(vqvae.config, vqvae.weights, part)
  if part == 'codebook':
    return np.asarray(apply(variables))
  apply, variables = jax.jit(apply), jax.device_put(variables)
  return lambda x: np.asarray(apply(variables, jnp.asarray(x)))
