"""Names of weights by their content, to notice that they are others."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from dermvq_jax.models import quantizers

PyTree = Any


def _encoding_weights(weights: PyTree) -> dict[str, PyTree]:
  """Returns the part of a VQ-VAE's weights that decides an image's codes.

  Args:
    weights: `{'params': ..., 'model_state': ...}`.

  Returns:
    The weights of the encoder and of the quantizer, without the quantizer's
    running statistics: nested dictionaries.
  """
  params = weights['params']
  parts = {'encoder': params['encoder']}
  if 'quantizer' in params:
    parts['quantizer'] = params['quantizer']
  state = flax.traverse_util.flatten_dict(
    weights['model_state']['codebook']['quantizer']
  )
  for path, leaf in state.items():
    if path[-1] not in quantizers.STATISTICS:
      parts['/'.join(path)] = leaf
  return parts


def of_tree(tree: PyTree, content: Any = None) -> str:
  """Names arrays by a hash of them and of `content`, 16 hexadecimal digits."""
  sha = hashlib.sha256(json.dumps(content).encode())
  for name, leaf in sorted(
    flax.traverse_util.flatten_dict(tree, sep='/').items()
  ):
    leaf = np.asarray(leaf)
    sha.update(f'{name}{leaf.shape}{leaf.dtype}'.encode())
    sha.update(leaf.tobytes())
  return sha.hexdigest()[:16]


def of_encoding(weights: PyTree, images: Mapping[str, Any]) -> str:
  """Names a VQ-VAE's codes of a dataset; see `of_tree`.

  Args:
    weights: `{'params': ..., 'model_state': ...}` of the VQ-VAE.
    images: the facts of the images that are encoded; their name and the
      fingerprint of their content count.
  """
  content = [images['dataset'], sorted(images.get('fingerprint', {}).items())]
  return of_tree(_encoding_weights(weights), content)
