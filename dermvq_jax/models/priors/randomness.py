"""The random numbers of sampling: a key for each image, noise for each row."""

import collections
from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np

from dermvq_jax.models import arguments

Array = jax.Array


def count_within_labels(labels: Sequence[int]) -> np.ndarray:
  """Counts how often each label came before: the default ids of images."""
  seen = collections.Counter()
  ids = []
  for label in np.asarray(labels).tolist():
    ids.append(seen[label])
    seen[label] += 1
  return np.asarray(ids, np.int32)


def image_keys(
  seed: int, labels: Sequence[int], ids: Sequence[int] | None = None
) -> Array:
  """Makes a different random key for each image.

  Args:
    seed: the same for all images, from 0 to 2**32 - 1.
    labels: int [B].
    ids: int [B] from 0 to 2**32 - 1, the number of each image within its label;
      by default they are counted from 0.

  Returns:
    Keys [B]: fold_in(fold_in(key(seed), label), id).

  Raises:
    errors.UserError: `arguments` refuses the seed or an id: other numbers would
      give the images of one of these.
  """
  seed = arguments.check_seed(seed)
  if ids is None:
    ids = count_within_labels(labels)
  else:
    ids = arguments.check_ids(ids, len(labels))

  return _image_keys(
    np.uint32(seed), np.asarray(labels, np.uint32), np.asarray(ids, np.uint32)
  )


@jax.jit  # One after the other, these operations take as long as ten codes.
def _image_keys(seed: Array, labels: Array, ids: Array) -> Array:
  def image_key(label, n):
    return jax.random.fold_in(
      jax.random.fold_in(jax.random.key(seed), label), n
    )

  return jax.vmap(image_key)(labels, ids)


def row_noise(keys: Array, row: Array, width: int, codebook_size: int) -> Array:
  """Samples Gumbel noise for one row of every image.

  Args:
    keys: random keys of the images, [B].
    row: index of the row.
    width: w.
    codebook_size: K.

  Returns:
    float32 [w, B, K].
  """

  def image_noise(key):
    key = jax.random.fold_in(key, row)
    return jax.random.gumbel(key, (width, codebook_size), jnp.float32)

  return einops.rearrange(jax.vmap(image_noise)(keys), 'b w k -> w b k')
