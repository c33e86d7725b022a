"""VQ-VAE and autoregressive priors for dermoscopic images in JAX/Flax."""

__version__ = '0.1.0'


def load(workdir):
  """Returns the trained run in `workdir`, a `dermvq_jax.inference.Model`."""
  from dermvq_jax import inference  # keeps `import dermvq_jax` instant

  return inference.load(workdir)
