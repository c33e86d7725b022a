"""VQ-VAE and autoregressive priors for dermoscopic images in JAX/Flax."""

__version__ = '0.1.0'


def load(workdir):
  """Returns the trained run in `workdir`, a `dermvq_jax.inference.Model`."""
  from dermvq_jax import inference  # keeps `import dermvq_jax` instant

  return inference.load(workdir)


def load_part(workdir, part):
  """Returns one part of a trained VQ-VAE; see `inference.load_part`."""
  from dermvq_jax import inference

  return inference.load_part(workdir, part)
