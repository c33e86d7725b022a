"""Spaces of features in which sets of images are compared.

A space is any function of uint8 images `[B, H, W, 3]` to features `[B, F]`. By
default it is the classifier that is trained on the run's own images
(`inference.classifier`).
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from dermvq_jax import errors, progress
from dermvq_jax.data import images as images_lib
from dermvq_jax.evaluation import inception
from dermvq_jax.models import chunks

Features = Callable[[np.ndarray], np.ndarray]
_CHUNK = 128  # images that are processed together


class Inception:
  """Inception-v3 with weights from a file: the features of the standard FID.

  An image takes 11 GFLOP, which is slow without an accelerator.
  """

  __name__ = 'inception'

  def __init__(self, path: epath.PathLike):
    """Reads the weights.

    Raises:
      UserError: the file does not hold them; see `inception.load`.
    """
    self._weights = inception.load(path)
    self._apply = jax.jit(inception.apply)

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """Returns features float32 `[B, 2048]` of uint8 images `[B, H, W, 3]`."""
    return chunks.apply(functools.partial(self._apply, self._weights), images)


def _checked(space: Features, images: np.ndarray) -> np.ndarray:
  """Returns `space(images)` as float32 `[B, F]`, or raises UserError."""
  made = np.asarray(space(images), np.float32)
  if made.ndim != 2 or len(made) != len(images):
    raise errors.UserError(
      f'features of {len(images)} images must be [{len(images)}, F], not '
      f'{list(made.shape)}'
    )
  if not np.isfinite(made).all():
    raise errors.UserError('features must be finite numbers')
  return made


def extract(
  space: Features,
  images: np.ndarray,
  description: str = '',
  *,
  symmetries: bool = False,
) -> np.ndarray:
  """Computes features of images, some at a time, with a progress bar.

  Args:
    space: a function of uint8 `[B, H, W, 3]` to `[B, F]`.
    images: uint8 `[N, H, W, 3]`.
    description: the text of the progress bar; without one there is no bar.
    symmetries: whether to compute them for all flips and turns, too.

  Returns:
    float32 `[N, F]`; with `symmetries` `[8, N, F]`.

  Raises:
    UserError: the function returns a wrong shape, or values that are not
      finite.
  """
  parts = []
  with progress.bar(
    total=len(images),
    desc=description,
    unit='image',
    disable=not description,
  ) as bar:
    for i in range(0, len(images), _CHUNK):
      chunk = images[i : i + _CHUNK]
      forms = images_lib.symmetries(chunk) if symmetries else [chunk]
      parts.append(np.stack([_checked(space, form) for form in forms]))
      bar.update(len(chunk))
  made = np.concatenate(parts, axis=1)
  return made if symmetries else made[0]
