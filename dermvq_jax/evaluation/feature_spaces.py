"""Spaces of features in which sets of images are compared.

A space is any function of uint8 images `[B, H, W, 3]` to features `[B, F]`;
the one that is always there is a classifier trained on the run's own images.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from dermvq_jax import errors, inference, progress
from dermvq_jax.data import images as images_lib
from dermvq_jax.evaluation import inception
from dermvq_jax.runs import checkpoints, workdirs
from dermvq_jax.training import tasks

Features = Callable[[np.ndarray], np.ndarray]
_PHASE = 'classifier'
_CHUNK = 128  # images at a time


class Classifier:
  """The trained classifier of a run. Calling it gives features.

  Attributes:
    class_names: names of the labels 0, 1, ...
  """

  __name__ = 'classifier'  # as functions have one

  def __init__(self, workdir: epath.PathLike):
    """Loads it.

    Raises:
      UserError: it was not trained, or on other images than the VQ-VAE.
    """
    folder = workdirs.phase_dir(workdir, _PHASE)
    config, facts = workdirs.load_config(folder)
    images = workdirs.load_config(workdirs.phase_dir(workdir, 'vqvae'))[1]
    if facts['dataset'] != images['dataset']:
      raise errors.UserError(
        f'the classifier in {folder} was trained on {facts["dataset"]}, the '
        f'VQ-VAE on {images["dataset"]}; move {folder} away and train it anew'
      )
    self.class_names = tuple(facts['class_names'])
    model = tasks.classifier_model(config, facts)
    params = jax.device_put(checkpoints.load_best(folder)['params'])

    @functools.partial(jax.jit, static_argnames='method')
    def apply(params, images, method):
      return model.apply(
        {'params': params}, tasks.to_unit(images), method=method
      )

    self._embed = functools.partial(apply, params, method='embed')
    self._logits = functools.partial(apply, params, method='__call__')

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """uint8 images `[B, S, S, 3]` to features float32 `[B, F]`."""
    return inference.in_chunks(self._embed, images)

  def predict(self, images: np.ndarray) -> np.ndarray:
    """uint8 images `[B, S, S, 3]` to the most likely labels int `[B]`.

    Every class is taken as equally likely before.
    """
    return inference.in_chunks(self._logits, images).argmax(1)


class Inception:
  """Inception-v3 with weights from a file: the features of the standard FID.

  It takes 11 GFLOP an image, which is slow without an accelerator.
  """

  __name__ = 'inception'

  def __init__(self, path: epath.PathLike):
    """Reads the weights.

    Raises:
      UserError: not a file of them; see `inception.load`.
    """
    self._weights = inception.load(path)
    self._apply = jax.jit(inception.apply)

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """uint8 images `[B, H, W, 3]` to features float32 `[B, 2048]`."""
    return inference.in_chunks(
      functools.partial(self._apply, self._weights), images
    )


def has_classifier(workdir: epath.PathLike) -> bool:
  """Whether a classifier was trained in `workdir`, at least in part."""
  return checkpoints.has_best(workdirs.phase_dir(workdir, _PHASE))


def _checked(space: Features, images: np.ndarray) -> np.ndarray:
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
  """Features of images, some at a time, with a progress bar.

  Args:
    space: a function of uint8 `[B, H, W, 3]` to `[B, F]`.
    images: uint8 `[N, H, W, 3]`.
    description: of the progress bar; '': there is none.
    symmetries: whether to give those of all flips and turns too.

  Returns:
    float32 `[N, F]`; with `symmetries` `[8, N, F]`.

  Raises:
    UserError: the function gives another shape, or numbers that are not finite.
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
