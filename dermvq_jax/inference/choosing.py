"""Chooses the best of several candidates for each new image.

The best one is what a classifier of real images finds most of its class (the
rejection sampling of RQ-Transformer, Lee et al. 2022), or what has the most
likely codes. The candidates of image n are the images with the ids n * K,
n * K + 1, ..., so the chosen one can be made again by its id alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy import special

from dermvq_jax import errors
from dermvq_jax.data import conditions as conditions_lib
from dermvq_jax.inference import classifier as classifier_lib
from dermvq_jax.models import arguments

BY = ('classifier', 'likelihood')
_MAX_CANDIDATES = 1000


class _Model(Protocol):
  """What choosing needs of `model.Model`."""

  class_names: tuple[str, ...]
  classifier: classifier_lib.Classifier

  def decode(self, codes: np.ndarray) -> np.ndarray: ...

  def log_likelihood(
    self, codes: np.ndarray, labels: Any, **conditions: Any
  ) -> np.ndarray: ...


def check(choose: int, choose_by: str):
  """Checks the arguments of a choice.

  Args:
    choose: K, the number of candidates for each image; 1: there is no choice.
    choose_by: one of `BY`.

  Raises:
    UserError: they are out of their ranges.
  """
  if not (
    arguments.is_number(choose)
    and 1 <= choose <= _MAX_CANDIDATES
    and choose % 1 == 0
  ):
    raise errors.UserError(
      f'choose is {choose}; give the number of candidates for each image, from '
      f'1 to {_MAX_CANDIDATES}'
    )
  if choose_by not in BY:
    raise errors.UserError(
      f'choose_by is {errors.one_line(repr(choose_by))}; give classifier or '
      'likelihood'
    )


def scorer(
  model: _Model,
  choose_by: str,
  labels: np.ndarray,
  given: Mapping[str, conditions_lib.Given],
) -> Callable[[np.ndarray], np.ndarray]:
  """Makes the function that says how good candidates are.

  Args:
    model: the run's model.
    choose_by: one of `BY`.
    labels: int `[B]`.
    given: what else the images show, see `Model.condition_values`.

  Returns:
    A function of codes `[B, h, w]`, to the log-probability of the label given
    the image, or of the codes given label and conditions, `[B]`.

  Raises:
    UserError: the run has no classifier, or an image has no class.
  """
  if choose_by == 'likelihood':
    return lambda codes: model.log_likelihood(codes, labels, **given)
  classifier = model.classifier
  if (labels == len(model.class_names)).any():
    raise errors.UserError(
      'a classifier can choose only images of a class; give a class, or '
      'choose_by=likelihood'
    )

  def score(codes: np.ndarray) -> np.ndarray:
    logits = classifier.logits(model.decode(codes))
    log_probs = special.log_softmax(np.float64(logits), axis=1)
    return log_probs[np.arange(len(labels)), labels]

  return score


def best(
  draw: Callable[[np.ndarray], np.ndarray],
  score: Callable[[np.ndarray], np.ndarray],
  ids: Sequence[int],
  choose: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws candidates one after the other and keeps the best of each image.

  Args:
    draw: ids `[B]` to codes `[B, h, w]`.
    score: codes to `[B]`; higher is better. Of equal ones the first is kept.
    ids: the numbers of the images, `[B]`.
    choose: K, the number of candidates for each image.

  Returns:
    The codes `[B, h, w]`, and the ids of the chosen candidates, int64 `[B]`.
  """
  first = np.asarray(ids, np.int64) * choose
  codes, chosen = draw(first), first.copy()
  scores = score(codes)
  for i in range(1, choose):
    other = draw(first + i)
    other_scores = score(other)
    better = other_scores > scores
    codes[better], chosen[better] = other[better], (first + i)[better]
    scores = np.maximum(scores, other_scores)
  return codes, chosen
