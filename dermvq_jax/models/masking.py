"""Images with a hidden part: what completions start from.

In the shapes, H and W are the size of the image in pixels, h and w the grid of
its codes.
"""

import dataclasses

import einops
import numpy as np
from scipy import ndimage

from dermvq_jax import errors

_BLANK = 128  # grey


@dataclasses.dataclass(frozen=True)
class Masked:
  """An image with a hidden part: what a completion starts from.

  Attributes:
    image: uint8 `[H, W, 3]`; hidden pixels are grey.
    codes: int32 `[h, w]`, made without the hidden pixels.
    known: bool `[h, w]`, whether a code stands for visible pixels only.
  """

  image: np.ndarray
  codes: np.ndarray
  known: np.ndarray

  def repeat(self, count: int) -> dict[str, np.ndarray]:
    """Returns the arguments of `Model.sample` for `count` completions."""
    both = {'known_codes': self.codes, 'known_mask': self.known}
    return {k: np.repeat(v[None], count, axis=0) for k, v in both.items()}


def check(image: np.ndarray, hidden: np.ndarray, factor: int):
  """Checks an image and which of its pixels are hidden.

  Args:
    image: uint8 `[H, W, 3]`.
    hidden: bool `[H, W]`.
    factor: pixels a side of the area that a code stands for.

  Raises:
    UserError: wrong shapes or dtypes, or nothing is hidden.
  """
  is_mask = hidden.dtype == bool and hidden.ndim == 2
  if not is_mask or any(n % factor for n in hidden.shape):
    raise errors.UserError(
      f'the mask of hidden pixels must be bool [H, W], both divisible by '
      f'{factor}; it is {hidden.dtype} {list(hidden.shape)}'
    )
  if image.dtype != np.uint8 or image.shape != (*hidden.shape, 3):
    raise errors.UserError(
      f'the image must be uint8 {[*hidden.shape, 3]} like its mask, not '
      f'{image.dtype} {list(image.shape)}'
    )
  if not np.any(hidden):
    raise errors.UserError('the mask hides nothing; make a part of it white')


def known(hidden: np.ndarray, factor: int, num_levels: int) -> np.ndarray:
  """Returns which codes stand for visible pixels only, bool `[h, w]`.

  Args:
    hidden: bool `[H, W]`.
    factor: pixels a side of the area that a code stands for.
    num_levels: number of adjacent codes that stand for the same area.

  Raises:
    UserError: none does.
  """
  blocks = einops.rearrange(
    hidden, '(h i) (w j) -> h w (i j)', i=factor, j=factor
  )
  visible = ~blocks.any(-1).repeat(num_levels, axis=1)
  if not visible.any():
    raise errors.UserError(
      f'the mask leaves no code: each area of {factor}x{factor} pixels has '
      'hidden ones; hide less'
    )
  return visible


def filled(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
  """Replaces each hidden pixel by the nearest visible one, `[H, W, 3]`."""
  rows, columns = ndimage.distance_transform_edt(
    hidden, return_distances=False, return_indices=True
  )
  return image[rows, columns]


def blanked(image: np.ndarray, hidden: np.ndarray) -> np.ndarray:
  """Replaces hidden pixels by grey, uint8 `[H, W, 3]`."""
  return np.where(hidden[..., None], np.uint8(_BLANK), image)
