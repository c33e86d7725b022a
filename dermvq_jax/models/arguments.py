"""Checks what callers give to a trained model, and converts it.

Numbers are compared before they are converted: a conversion to a smaller type
would wrap them around in silence.
"""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dermvq_jax import errors

# JAX's keys and ids have 32 bits; larger numbers would wrap.
NUM_SEEDS = 2**32


def is_number(value: Any, kind: type = numbers.Real) -> bool:
  """Whether a value of Python or NumPy is a number; bools are none."""
  return isinstance(value, kind) and not isinstance(value, bool)


def _array(name: str, value: Any, dtype: Any = None) -> np.ndarray:
  try:
    return np.asarray(value, dtype)
  except (TypeError, ValueError, OverflowError) as e:
    raise errors.UserError(
      f'{name} cannot become an array: {errors.one_line(e)}'
    ) from None


def check_seed(seed: int) -> int:
  """Returns a seed as a Python int.

  Raises:
    UserError: it is not a whole number from 0 to 2**32 - 1.
  """
  if not is_number(seed, numbers.Integral) or not 0 <= seed < NUM_SEEDS:
    raise errors.UserError(
      f'seed is {errors.one_line(repr(seed))}; give a whole number from 0 to '
      f'{NUM_SEEDS - 1}'
    )
  return int(seed)


def check_ids(ids: Sequence[int], number: int) -> np.ndarray:
  """Returns the ids of images, uint32 `[number]`.

  Raises:
    UserError: there are more or fewer, or one is not a whole number from 0 to
      2**32 - 1.
  """
  array = _array('ids', ids)
  if array.ndim != 1 or len(array) != number:
    found = len(array) if array.ndim == 1 else f'{list(array.shape)}'
    raise errors.UserError(f'{number} labels but {found} ids')
  if number and (
    not np.issubdtype(array.dtype, np.integer)
    or int(array.min()) < 0
    or int(array.max()) >= NUM_SEEDS
  ):
    raise errors.UserError(
      f'ids must be whole numbers from 0 to {NUM_SEEDS - 1}, not '
      + errors.one_line(repr(ids))
    )
  return array.astype(np.uint32)


def check_labels(
  labels: Sequence[str | int], class_names: Sequence[str]
) -> np.ndarray:
  """Converts class names or numbers to numbers, int32 `[B]`.

  Args:
    labels: names, or numbers from 0 to `len(class_names)`, which stands for any
      class; a single one is a sequence of one.
    class_names: names of the labels.

  Raises:
    UserError: no such class.
  """
  found = []
  for label in np.atleast_1d(_array('labels', labels, object)):
    if getattr(label, 'shape', None) == ():  # a scalar of NumPy or JAX
      label = label.item()
    if isinstance(label, str) and label in class_names:
      found.append(class_names.index(label))
    elif is_number(label, numbers.Integral) and 0 <= label <= len(class_names):
      found.append(int(label))
    else:
      raise errors.UserError(
        f'there is no class {errors.one_line(repr(label))}; the classes are '
        + errors.printable(', '.join(class_names))
      )
  return np.array(found, np.int32)


def requested(
  labels: Mapping[str | int, int] | Sequence[str | int],
  count: int,
  class_names: Sequence[str],
) -> np.ndarray:
  """Returns the labels of the images that are asked for, int32 `[N]`.

  Args:
    labels: class names or numbers, as in `check_labels`; or the number of
      images of each, such as `{'mel': 4}`.
    count: how many images of each label, one after the other.
    class_names: names of the labels.

  Raises:
    UserError: no such class, or a count is not a whole number of at least 0.
  """
  counts = [count]
  if isinstance(labels, Mapping):
    if count != 1:
      raise errors.UserError('give the counts in the dict only')
    labels, counts = list(labels), list(labels.values())
  for n in counts:
    if not is_number(n, numbers.Integral) or n < 0:
      raise errors.UserError(
        f'count is {errors.one_line(repr(n))}; give a whole number of at least '
        '0, how many images of a label'
      )
  found = check_labels(labels, class_names)
  return np.repeat(found, counts if found.size else 0)


def check_images(images: np.ndarray, downsampling: int) -> np.ndarray:
  """Returns images as an array, uint8 `[B, H, W, 3]`.

  Raises:
    UserError: wrong shape or dtype, or H or W not divisible by downsampling.
  """
  images = _array('images', images)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
    raise errors.UserError(
      'images must be files, PIL images, or arrays [B, H, W, 3] or [H, W, 3] '
      'of uint8 or of floats in [0, 1], not '
      f'{images.dtype} {list(images.shape)}'
    )
  _, height, width, _ = images.shape
  if not height or not width or height % downsampling or width % downsampling:
    raise errors.UserError(
      f'images of {height}x{width} px are not divisible by the downsampling, '
      f'{downsampling}'
    )
  return images


def check_codes(
  codes: np.ndarray, codebook_size: int, num_levels: int
) -> np.ndarray:
  """Returns codes as an array, int32 `[B, h, w]`.

  Args:
    codes: of any integer type.
    codebook_size: K, number of codes, of all levels together.
    num_levels: number of levels, L; column j holds codes of level j % L.

  Raises:
    UserError: wrong shape or dtype, codes outside [0, K), or of a wrong level.
  """
  codes = _array('codes', codes)
  if codes.ndim != 3 or not np.issubdtype(codes.dtype, np.integer):
    raise errors.UserError(
      f'codes must be integers [B, h, w], not {codes.dtype} {list(codes.shape)}'
    )
  if codes.size:
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codebook_size:
      raise errors.UserError(
        f'codes must be in [0, {codebook_size}); these are from {low} to {high}'
      )
  codes = codes.astype(np.int32)
  # The codes of level l are from l * K / L to (l + 1) * K / L - 1.
  level = codes // (codebook_size // num_levels)
  due = np.arange(codes.shape[2]) % num_levels
  if codes.shape[2] % num_levels or np.any(level != due):
    raise errors.UserError(
      f'the {num_levels} levels of a code are adjacent, so that column j holds '
      f'codes of level j % {num_levels}; these codes do not'
    )
  return codes


def check_class_prior(
  class_prior: Sequence[float] | None, number: int
) -> np.ndarray:
  """Returns probabilities of the classes, float64 `[number]`; None: uniform.

  Raises:
    UserError: not one finite number of at least 0 per class, or all are 0.
  """
  try:
    weights = np.ones(number) if class_prior is None else class_prior
    weights = np.asarray(weights)
    weights = weights.astype(np.float64, casting='same_kind')
  except (TypeError, ValueError, OverflowError):
    weights = np.zeros(0)
  good = np.isfinite(weights) & (weights >= 0)
  if weights.shape != (number,) or not good.all() or not weights.any():
    raise errors.UserError(
      f'class_prior must be {number} numbers that are 0 or more, not all 0; '
      f'it is {errors.one_line(class_prior)}'
    )
  weights = weights / weights.max()  # The sum of large ones would be infinite.
  return weights / weights.sum()
