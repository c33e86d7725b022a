"""The classifier of a run: it judges images, and may choose new ones."""

import functools

import jax
import numpy as np

from dermvq_jax import errors
from dermvq_jax.models import build, chunks
from dermvq_jax.runs import run as run_lib

# Facts of the images that a classifier and the VQ-VAE must agree on.
_SAME = ('dataset', 'fingerprint', 'class_names')


class Classifier:
  """The trained classifier of a run; calling it returns features.

  Attributes:
    class_names: names of the labels 0, 1, ...
    description: its seed and its architecture in words.
    config: the config that it was trained with.
  """

  __name__ = 'classifier'  # Functions have this attribute, too.

  def __init__(self, run: run_lib.Run, of: run_lib.Run | None = None):
    """Loads the classifier.

    Args:
      run: the run that has the classifier.
      of: the run that it will be used for; None: the same.

    Raises:
      UserError: it was not trained, or was trained on other images than the
        VQ-VAE.
    """
    phase, vqvae = run.classifier, (of or run).vqvae
    own, other = (vqvae if vqvae.started else phase).facts, phase.facts
    if any(own.get(name) != other.get(name) for name in _SAME):
      raise errors.UserError(
        f'the classifier in {phase.folder} was trained on other images or '
        f'classes ({other["dataset"]}) than the VQ-VAE ({own["dataset"]}); '
        f'move {phase.folder} away and train it again on these images'
      )
    self.class_names = tuple(phase.facts['class_names'])
    self.config = phase.config
    parts = {'seed': phase.config.seed, **phase.config.classifier}
    self.description = ', '.join(f'{name} {v}' for name, v in parts.items())
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

  def logits(self, images: np.ndarray) -> np.ndarray:
    """Returns logits float32 `[B, C]` of uint8 images `[B, S, S, 3]`.

    Every class is taken to be equally frequent.
    """
    return chunks.apply(self._logits, images)

  def predict(self, images: np.ndarray) -> np.ndarray:
    """Returns the most likely labels, int `[B]`, of uint8 `[B, S, S, 3]`."""
    return self.logits(images).argmax(1)
