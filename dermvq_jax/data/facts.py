"""The facts of a dataset are read from files, so their values are checked."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from dermvq_jax import errors

# Larger images and grids would take more memory than a machine has.
_MAX_SIDE = 2**13
_MAX_INT = 2**31 - 1
_MAX_SHOWN = 60  # characters of a wrong value


def _whole(least: int, most: int = _MAX_INT) -> Callable[[Any], bool]:
  return lambda value: type(value) is int and least <= value <= most


def _is_positive(value: Any) -> bool:
  return type(value) in (int, float) and 0 < value < math.inf


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and bool(value)


def _are_texts(value: Any) -> bool:
  return isinstance(value, list) and all(map(_is_text, value))


def _are_names(value: Any) -> bool:
  return _are_texts(value) and 0 < len(value) == len(set(value))


def _are_conditions(value: Any) -> bool:
  return isinstance(value, dict) and all(map(_are_names, value.values()))


def _is_grid(value: Any) -> bool:
  is_side = _whole(1, _MAX_SIDE)
  return (
    isinstance(value, list) and len(value) == 2 and all(map(is_side, value))
  )


def _is_fingerprint(value: Any) -> bool:
  return isinstance(value, dict) and all(map(_is_text, value.values()))


_IS_RIGHT = {
  'dataset': _is_text,
  'images': _is_text,
  'vqvae_digest': _is_text,
  'class_names': _are_names,
  'untrained_classes': _are_texts,
  'conditions': _are_conditions,
  'num_train': _whole(0),
  'num_val': _whole(0),
  'num_test': _whole(0),
  'num_left_out': _whole(1),
  'image_size': _whole(1, _MAX_SIDE),
  'codebook_size': _whole(1),
  'num_levels': _whole(1, _MAX_SIDE),
  'copies': _whole(1),
  'grid': _is_grid,
  'train_variance': _is_positive,
  'fingerprint': _is_fingerprint,
  'images_fingerprint': _is_fingerprint,
}


def check(facts: Mapping[str, Any]):
  """Checks facts that were read from a file.

  Raises:
    UserError: a fact has a value that no dataset gives it, or one that goes
      with another is missing.
  """
  if 'image_size' in facts and 'train_variance' not in facts:
    raise errors.UserError('its train_variance is missing')
  for name, is_right in _IS_RIGHT.items():
    if name in facts and not is_right(facts[name]):
      value = errors.one_line(repr(facts[name]))[:_MAX_SHOWN]
      raise errors.UserError(f'its {name} is {value}, which cannot be')


def num_images(facts: Mapping[str, Any]) -> int:
  """The number of training images; their copies of codes do not count."""
  return facts['num_train'] // facts.get('copies', 1)


def steps_per_epoch(facts: Mapping[str, Any], batch_size: int) -> int:
  """The number of batches that show each training image once, at least 1."""
  return max(1, num_images(facts) // batch_size)
