"""VQ-VAE and autoregressive priors for dermoscopic images in JAX/Flax."""

import os

# For workdirs on gs://. Where TensorFlow is installed, etils uses TensorFlow's
# client, whose files are not Python's and whose import takes seconds; gcsfs
# does not need it. Listings must not be cached, because other machines and
# tensorstore write there too. The libraries read both variables on import.
os.environ.setdefault('EPATH_USE_TF', 'false')
os.environ.setdefault('FSSPEC_GCS', '{"use_listings_cache": false}')

__version__ = '0.2.0.dev0'


def load(workdir):
  """Returns the run or export in `workdir`, a `dermvq_jax.inference.Model`."""
  from dermvq_jax import inference

  return inference.load(workdir)


def load_part(workdir, part):
  """Loads one part of a trained VQ-VAE; see `inference.load_part`."""
  from dermvq_jax import inference

  return inference.load_part(workdir, part)
