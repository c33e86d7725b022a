"""Spaces of features in which sets of images are compared.

A space is any function of uint8 images `[B, H, W, 3]` to features `[B, F]`. By
default it is the classifier that is trained on the run's own images.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from dermvq_jax import errors, progress
from dermvq_jax.data import images as images_lib
from dermvq_jax.evaluation import inception
from dermvq_jax.models import build, chunks
from dermvq_jax.runs import run as run_lib

Features = Callable[[np.ndarray], np.ndarray]
_CHUNK = 128  # images that are processed together
# Facts of the images that a classifier and the VQ-VAE must agree on.
_SAME = ('dataset', 'fingerprint', 'class_names')


class Classifier:
  """The trained classifier of a run; calling it returns features.

  Attributes:
    class_names: names of the labels 0, 1, ...
  """

  __name__ = 'classifier'  # Functions have this attribute, too.

  def __init__(self, run: run_lib.Run):
    """Loads the classifier.

    Raises:
      UserError: it was not trained, or was trained on other images than the
        VQ-VAE.
    """
    phase = run.classifier
    own, other = (run.vqvae if run.vqvae.started else phase).facts, phase.facts
    if any(own.get(name) != other.get(name) for name in _SAME):
      raise errors.UserError(
        f'the classifier in {phase.folder} was trained on other images or '
        f'classes ({other["dataset"]}) than the VQ-VAE ({own["dataset"]}); '
        f'move {phase.folder} away and train it again'
      )
    self.class_names = tuple(phase.facts['class_names'])
    model = build.classifier(phase.config, phase.facts)
    params = jax.device_put(phase.weights['params'])

    @functools.partial(jax.jit, static_argnames='method')
    def apply(params, images, method):
      return model.apply(
        {'params': params}, build.to_unit(images), method=method
      )

    self._embed = functools.partial(apply, params, method='embed')
    self._logits = functools.partial(apply, params, method='__call__')

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """Returns features float32 `[B, F]` of uint8 images `[B, S, S, 3]`."""
    return chunks.apply(self._embed, images)

  def predict(self, images: np.ndarray) -> np.ndarray:
    """Returns the most likely labels, int `[B]`, of uint8 `[B, S, S, 3]`.

    Every class is taken to be equally frequent.
    """
    return chunks.apply(self._logits, images).argmax(1)


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
