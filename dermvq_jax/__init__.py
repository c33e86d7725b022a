"""VQ-VAE and autoregressive priors for dermoscopic images in JAX/Flax."""

__version__ = '0.1.0'
