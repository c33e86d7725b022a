"""VQ-VAE and autoregressive priors for dermoscopic images in JAX/Flax."""

import os

# Of a workdir on gs://. etils uses TensorFlow's client where TensorFlow is
# installed, whose files are not Python's and whose import takes seconds; gcsfs
# serves it without. Its listings must not be kept: other machines write there,
# and so does tensorstore. Both are read once, when the libraries are imported.
os.environ.setdefault('EPATH_USE_TF', 'false')
os.environ.setdefault('FSSPEC_GCS', '{"use_listings_cache": false}')

__version__ = '0.1.0'


def load(workdir):
  """Returns the trained run in `workdir`, a `dermvq_jax.inference.Model`."""
  from dermvq_jax import inference

  return inference.load(workdir)


def load_part(workdir, part):
  """Returns one part of a trained VQ-VAE; see `inference.load_part`."""
  from dermvq_jax import inference

  return inference.load_part(workdir, part)
