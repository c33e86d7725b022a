"""Which new images are dropped: copies, and what is unlike real images."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from dermvq_jax import errors, inference
from dermvq_jax.evaluation import nearest_images
from dermvq_jax.outliers import reference, scoring
from dermvq_jax.runs import run as run_lib

# Reason -> a function of uint8 [B, H, W, 3] that returns bool [B].
Rejections = dict[str, Callable[[np.ndarray], np.ndarray]]
MEMORISED, UNLIKE = 'memorised', 'unlike'
NOT_CHOSEN = 'not_chosen'  # one of the other candidates
_SAID = {
  MEMORISED: 'look copied from a training image',
  UNLIKE: 'are unlike reconstructions of held-out images',
}


def make(model: inference.Model, memorised: float, unlike: float) -> Rejections:
  """Makes the functions that find images to drop, by their reasons.

  Args:
    model: the model that makes the images.
    memorised: the memorisation ratio below which an image looks copied; 0: no
      image is dropped for that.
    unlike: the p-value up to which an image is unlike; 0: as above.

  Raises:
    UserError: a limit is out of its range, or the run's images are needed and
      not found.
  """
  if not 0 <= memorised <= 1:
    raise errors.UserError(
      f'--reject_memorised is {memorised}; give a number from 0 to 1, such as '
      '0.6'
    )
  if not 0 <= unlike < 1:
    raise errors.UserError(
      f'--reject_unlike is {unlike}; give a number from 0 to 1, such as 0.05'
    )
  found = {}
  if memorised:
    found[MEMORISED] = _copies(model.run, memorised)
  if unlike:
    found[UNLIKE] = _unlike(model, unlike)
  return found


def _copies(run: run_lib.Run, limit: float):
  """Finds images that look copied from a training image of the run."""
  bank = nearest_images.make_bank(
    run.images.split('train'), None, 'training images'
  )

  def reject(new: np.ndarray) -> np.ndarray:
    near = nearest_images.nearest_pixels(new, bank.pixels, bank.groups)
    return near.ratio < limit

  return reject


def _unlike(model: inference.Model, limit: float):
  """Finds images that are unlike the run's own, encoded and decoded."""
  calibration = reference.load(model.run, model, reconstructed=True)

  def reject(new: np.ndarray) -> np.ndarray:
    return scoring.score(model, calibration, new).p_values <= limit

  return reject


def say(found: Mapping[str, Any], unlike: float):
  """Logs how many of the images that were drawn were dropped, and why.

  Args:
    found: `images`, `drawn` and `dropped`, see `SampleFolder.finish`.
    unlike: as in `make`.
  """
  dropped = dict(found['dropped'])
  judged = found['drawn'] - dropped.pop(NOT_CHOSEN, 0)
  for reason, number in dropped.items():
    logging.info(
      'Dropped %d of %d images that %s.', number, judged, _SAID[reason]
    )
  if UNLIKE in dropped:
    logging.info(
      'Of as many reconstructions of held-out images, %.1f would be dropped.',
      unlike * judged,
    )
  if found['images'] < found['drawn']:
    logging.info(
      'Kept %d of %d images that were drawn (%.1f%%).',
      found['images'],
      found['drawn'],
      100 * found['images'] / found['drawn'],
    )
