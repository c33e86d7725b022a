"""Images as people have them: files, PIL images, arrays."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from etils import epath
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.data import images as images_lib

# A file, a PIL image, an array `[H, W, 3]` or `[B, H, W, 3]`, or several.
Images = Any
Output = Literal['array', 'pil']
_OUTPUTS = ('array', 'pil')


def read(images: Images, size: int) -> np.ndarray:
  """Turns what people have into an array.

  Args:
    images: a file, a PIL image, an array `[H, W, 3]` or `[B, H, W, 3]` of uint8
      or of floats in [0, 1], or a list of these.
    size: files and PIL images are cropped to their central square and resized
      to this many pixels a side; arrays are taken as they are.

  Returns:
    An array of uint8; its shape is not checked.

  Raises:
    MissingError: there is no such file.
    UserError: a file is not readable, values are not in [0, 1], or images of
      different sizes are in a list.
  """
  if _is_picture(images):
    return _read_one(images, size)[None]
  if isinstance(images, list | tuple) and any(map(_is_picture, images)):
    found = [_read_one(image, size) for image in images]
    shapes = sorted({x.shape for x in found})
    if len(shapes) > 1:
      raise errors.UserError(
        f'images of the shapes {list(shapes[0])} and {list(shapes[1])} cannot '
        'be in one list; give each size alone'
      )
    return np.stack(found)
  array = _as_uint8(images)
  return array[None] if array.ndim == 3 else array


def read_mask(mask: Any, shape: tuple[int, int], size: int) -> np.ndarray:
  """Turns what people have into a mask, bool `[H, W]`.

  Args:
    mask: one of `images.MASKS`; a file or PIL image that is white where it
      hides the image; or an array, bool `[H, W]`.
    shape: height and width of the image, for a mask with a name.
    size: as in `read`.

  Raises:
    MissingError: there is no such file or name.
    UserError: a file is not readable, or a mask with a name is for squares.
  """
  if isinstance(mask, str) and mask in images_lib.MASKS:
    if shape[0] != shape[1]:
      raise errors.UserError(
        f'the mask {mask!r} is for square images; this one has '
        f'{shape[1]}x{shape[0]} px: give bool [H, W]'
      )
    return images_lib.named_mask(mask, shape[0])
  if isinstance(mask, Image.Image):
    return images_lib.convert_mask(mask, size)
  if isinstance(mask, str | os.PathLike):
    if not epath.Path(mask).expanduser().is_file():
      raise errors.MissingError(
        f'there is no mask {os.fspath(mask)!r}; give '
        f'{", ".join(images_lib.MASKS)} or an image file that is white where '
        'the image is hidden'
      )
    return images_lib.read_mask(epath.Path(mask).expanduser(), size)
  return np.asarray(mask)


def check_output(output: str) -> None:
  """Raises UserError unless images can be returned like this."""
  if output not in _OUTPUTS:
    raise errors.UserError(
      f'output is {errors.one_line(repr(output))}; give '
      + ' or '.join(map(repr, _OUTPUTS))
    )


def as_output(
  images: np.ndarray, output: Output
) -> np.ndarray | list[Image.Image]:
  """Returns uint8 images `[B, H, W, 3]` as they are, or as PIL images."""
  check_output(output)
  if output == 'array':
    return images
  return [Image.fromarray(image) for image in images]


def _is_picture(image: Any) -> bool:
  return isinstance(image, str | os.PathLike | Image.Image)


def _read_one(image: Any, size: int) -> np.ndarray:
  """Returns one image of a list, uint8 `[H, W, 3]` if all is well."""
  if isinstance(image, Image.Image):
    try:
      return images_lib.crop_and_resize(image, size)
    except images_lib.DAMAGES as e:
      raise errors.UserError(
        f'the PIL image is unreadable ({errors.one_line(e)}); load it again'
      ) from e
  if not _is_picture(image):
    return _as_uint8(image)
  path = epath.Path(image).expanduser()
  if path.is_dir():
    raise errors.UserError(
      f'{path} is a folder, not an image; give the files in it'
    )
  if not path.exists():
    raise errors.MissingError(f'there is no file {path}')
  return images_lib.read_square(path, size)


def _as_uint8(images: np.ndarray | Sequence[Any]) -> np.ndarray:
  """Turns floats in [0, 1] into uint8; other types stay as they are."""
  try:
    array = np.asarray(images)
  except (TypeError, ValueError) as e:
    raise errors.UserError(
      f'images cannot become an array: {errors.one_line(e)}'
    ) from None
  if not np.issubdtype(array.dtype, np.floating) or not array.size:
    return array
  low, high = float(array.min()), float(array.max())
  if not 0 <= low <= high <= 1:  # NaN is not either.
    raise errors.UserError(
      f'images of floats must be in [0, 1]; these are from {low:g} to {high:g}'
    )
  return np.rint(np.float64(array) * 255).astype(np.uint8)
