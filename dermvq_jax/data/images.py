"""Reads image files into arrays; writes arrays as PNG files and sheets."""

import io
import lzma
import os
import pathlib
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath
from PIL import (
  ExifTags,
  Image,
  ImageCms,
  PngImagePlugin,
  UnidentifiedImageError,
)

from dermvq_jax import errors
from dermvq_jax.data import dicom

# Dermoscopic cameras reach 24 million pixels. An image with far more is a
# mistake or an attack, and decoding it would fill the memory.
MAX_PIXELS = 50_000_000
_IMAGE_FORMATS = ('JPEG', 'PNG', 'TIFF', 'BMP', 'WEBP')
# What Pillow, zipfile and NumPy raise for files that are damaged or of another
# kind.
DAMAGES = (
  EOFError,
  KeyError,
  OSError,
  OverflowError,
  RuntimeError,
  SyntaxError,
  ValueError,
  lzma.LZMAError,
  struct.error,
  zipfile.BadZipFile,
  zlib.error,
)
# A JPEG can be decoded quickly at 1/2, 1/4 or 1/8 of its size. This is done if
# the sides are then still this many times as long as needed, so that the filter
# that resizes the image has enough pixels.
_DRAFT_MARGIN = 2
# How viewers turn an image, by its EXIF orientation.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# Pillow's modes by the colour spaces of ICC profiles.
_MODES = {'RGB': 'RGB', 'GRAY': 'L', 'CMYK': 'CMYK'}
# Descriptions of the profile that images are converted to; converting from it
# would only add rounding errors.
_SRGB_NAMES = ('sRGB IEC61966', 'sRGB built-in')
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a tag of TIFF, and its value
_MAX = 2**16 - 1
_16_BIT_STEP = 257  # _MAX / 255
SUFFIXES = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.png'),
  *('.tif', '.tiff', '.bmp', '.webp'),
  *((dicom.SUFFIX,) if dicom.IS_INSTALLED else ()),
)
KINDS = 'JPEG, PNG, TIFF, BMP or WebP'
# Other images, which are not read; to leave them out in silence would be wrong.
OTHER_SUFFIXES = (
  *('.avif', '.gif', '.heic', '.heif', '.jp2'),
  *(() if dicom.IS_INSTALLED else (dicom.SUFFIX,)),
)
# Files and folders of macOS, Windows, Linux and NAS devices; some hold small
# copies of the images. Hidden ones begin with a dot.
_JUNK = (
  '__macosx',
  'thumbs.db',
  'ehthumbs',
  'desktop.ini',
  '$recycle.bin',
  'system volume information',
  'lost+found',
  '@eadir',
  '#recycle',
)

MASKS = ('left', 'right', 'top', 'bottom', 'center', 'border')
_WHITE = 128  # Pixels of a mask are white from this value on.
_NO_PART = 1e-6  # Weights of the filter below this are rounding errors.

_GAP = 2  # pixels between the images of a sheet


class _DepthError(ValueError):
  """An image has too many bits."""


def save_png(
  path: epath.PathLike,
  image: np.ndarray,
  text: Mapping[str, str] | None = None,
):
  """Writes uint8 `[H, W, 3]` to a PNG file, with `text` as its metadata."""
  epath.Path(path).write_bytes(as_png(image, text))


def as_png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
  """Returns uint8 `[H, W, 3]` as PNG, with `text` as its metadata."""
  info = PngImagePlugin.PngInfo()
  for key, value in (text or {}).items():
    info.add_itxt(key, value)
  out = io.BytesIO()
  Image.fromarray(image).save(out, format='PNG', pnginfo=info)
  return out.getvalue()


def sheet(rows: Sequence[np.ndarray]) -> np.ndarray:
  """Arranges images in rows on a white background.

  Args:
    rows: for each row uint8 `[N, H, W, 3]`; only N may differ between rows.

  Returns:
    uint8 `[H', W', 3]`.
  """
  _, h, w, _ = rows[0].shape
  columns = max(len(row) for row in rows)
  height = len(rows) * (h + _GAP) - _GAP
  width = columns * (w + _GAP) - _GAP
  out = np.full((height, width, 3), 255, np.uint8)
  for i, row in enumerate(rows):
    for j, image in enumerate(row):
      top, left = i * (h + _GAP), j * (w + _GAP)
      out[top : top + h, left : left + w] = image
  return out


def symmetries(images: np.ndarray) -> list[np.ndarray]:
  """Returns `[B, S, S, C]` images in the square's eight symmetries."""
  turned = [np.rot90(images, k, (1, 2)) for k in range(4)]
  return turned + [image[:, :, ::-1] for image in turned]


def is_junk(name: str) -> bool:
  """Whether a file or folder is hidden or is made by an operating system."""
  return name.startswith('.') or name.lower().startswith(_JUNK)


def is_other(name: str) -> bool:
  """Whether a file is an image that is not read, by its suffix."""
  return os.path.splitext(name)[1].lower() in OTHER_SUFFIXES


def check_name(path: epath.PathLike):
  """Raises UserError unless the name of a file is UTF-8."""
  text = os.fspath(path)
  if not errors.is_utf8(os.path.basename(text)):
    shown = os.fsencode(text).decode(errors='backslashreplace')
    raise errors.UserError(
      f'the name of {shown} is not UTF-8; rename the file (the program convmv '
      'does this for many)'
    )


def check_names(paths: Sequence[epath.PathLike]):
  """Raises UserError unless the names of all files are UTF-8."""
  wrong = []
  for path in paths:
    try:
      check_name(path)
    except errors.UserError as e:
      wrong.append(e)
  if len(wrong) > 1:
    raise errors.UserError(f'{wrong[0]}; {len(wrong)} names are like this')
  if wrong:
    raise wrong[0]


def list_images(
  folder: epath.PathLike,
  advice: str = 'give a folder with images',
) -> tuple[list[epath.Path], list[epath.Path]]:
  """Lists the image files in a folder, by name; without its sub-folders.

  Args:
    folder: the folder.
    advice: what to do if there are none that can be read.

  Returns:
    The images that can be read, and the others.

  Raises:
    UserError: there are none with one of `SUFFIXES`.
  """
  files = sorted(
    path
    for path in epath.Path(folder).iterdir()
    if not is_junk(path.name) and not path.is_dir()
  )
  found = [path for path in files if path.suffix.lower() in SUFFIXES]
  if not found:
    raise errors.UserError(f'there is no {KINDS} image in {folder}; {advice}')
  return found, [path for path in files if is_other(path.name)]


def read_square(source: pathlib.Path | zipfile.Path, size: int) -> np.ndarray:
  """Reads the central square of an image file, as viewers show it.

  It is turned by its EXIF orientation. Its colours are converted to sRGB if it
  has an ICC profile, and 16 bits to 8. What is transparent becomes white.

  Args:
    source: an image file.
    size: the side in pixels.

  Returns:
    uint8 `[size, size, 3]`.

  Raises:
    UserError: it is not a readable image, or has more than `MAX_PIXELS`.
  """
  return _read(source, lambda image: crop_and_resize(image, size))


def read_mask(source: pathlib.Path | zipfile.Path, size: int) -> np.ndarray:
  """Reads the central square of a mask, to go with `read_square`.

  Args:
    source: an image file, in black and white; what is transparent is
      black.
    size: the side in pixels.

  Returns:
    bool `[size, size]`: true for each pixel that any white pixel of the file
    contributes to. If an image of the same size as the file is read by
    `read_square`, the other pixels do not depend on its masked part.

  Raises:
    UserError: it is not a readable image, or has more than `MAX_PIXELS`.
  """
  return _read(source, lambda image: convert_mask(image, size))


def convert_mask(image: Image.Image, size: int) -> np.ndarray:
  """Returns the central square of an opened mask, as `read_mask` does."""
  white = np.asarray(_as_shown(image, 'black').convert('L')) >= _WHITE
  # As floats, so that negative weights of the filter count too.
  parts = _resize(Image.fromarray(white.astype(np.float32)), size)
  return np.abs(np.asarray(parts)) > _NO_PART


def named_mask(name: str, size: int) -> np.ndarray:
  """Returns one of `MASKS`, bool `[size, size]`: true where it hides the image.

  'left', 'right', 'top' and 'bottom' hide half of the image. 'center' hides the
  central third of each side, rounded down. 'border' hides a sixteenth at each
  side.
  """
  y, x = np.mgrid[:size, :size]
  half, third, edge = size // 2, -(-size // 3), max(1, size // 16)
  inner = (slice(third, size - third),) * 2
  rest = (slice(edge, size - edge),) * 2
  center, border = np.zeros((size, size), bool), np.ones((size, size), bool)
  center[inner], border[rest] = True, False
  return {
    'left': x < half,
    'right': x >= half,
    'top': y < half,
    'bottom': y >= half,
    'center': center,
    'border': border,
  }[name]


def _read(
  source: pathlib.Path | zipfile.Path,
  convert: Callable[[Image.Image], np.ndarray],
) -> np.ndarray:
  """Opens an image file and returns what `convert` makes of it."""
  try:
    with warnings.catch_warnings(), source.open('rb') as file:
      warnings.simplefilter('ignore')  # of damaged EXIF
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      if isinstance(source, zipfile.Path):
        # The checksum is compared when all is read; a decoder may stop before.
        file = io.BytesIO(file.read())
      if source.suffix.lower() == dicom.SUFFIX and dicom.IS_INSTALLED:
        return convert(dicom.read(file, MAX_PIXELS))
      with Image.open(file, formats=_IMAGE_FORMATS) as image:
        # Only the header has been read so far.
        if image.width * image.height > MAX_PIXELS:
          raise Image.DecompressionBombError(f'{image.width}x{image.height}')
        return convert(image)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
    raise errors.UserError(
      f'the image {source} has more than {MAX_PIXELS:,} pixels '
      f'({e}); replace it with the published one or scale it down'
    ) from None
  except _DepthError as e:
    raise errors.UserError(f'the image {source} is not used: {e}') from None
  except DAMAGES as e:
    # Pillow names the object that it read from, which says nothing.
    unknown = isinstance(e, UnidentifiedImageError)
    why = f'it is not {KINDS}' if unknown else errors.one_line(e)
    raise errors.UserError(
      f'the image {source} is unreadable ({why}); copy or download it again'
    ) from e


def crop_and_resize(image: Image.Image, size: int) -> np.ndarray:
  """Returns the central square at `size`, as `read_square` does."""
  # Decodes a JPEG at a fraction of its size if that is enough.
  image.draft(None, (_DRAFT_MARGIN * size, _DRAFT_MARGIN * size))
  return np.asarray(_resize(_as_shown(image, 'white'), size))


def _as_shown(image: Image.Image, background: str) -> Image.Image:
  """Returns an opened image as viewers show it, in RGB.

  Args:
    image: the image.
    background: the colour of what is transparent.
  """
  image.load()
  turn = _TURNS.get(_orientation(image))
  profile = image.info.get('icc_profile')
  is_grey = image.mode in ('1', 'L', 'LA') or image.mode.startswith('I')
  image = _in_8_bits(image)
  alpha = None
  if image.has_transparency_data:
    image = image.convert('RGBA')
    alpha = image.getchannel('A')
  if image.mode != 'CMYK':
    image = image.convert('L' if is_grey else 'RGB')
  shown = _in_srgb(image, profile)
  if alpha is not None:
    empty = Image.new('RGB', shown.size, background)
    shown = Image.composite(shown, empty, alpha)
  return shown if turn is None else shown.transpose(turn)


def _orientation(image: Image.Image) -> int:
  """Returns the EXIF orientation; 1, for upright, if there is none."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      return int(image.getexif().get(ExifTags.Base.Orientation, 1))
  except Exception:  # Damaged EXIF raises many kinds; viewers ignore it.
    return 1


def _in_8_bits(image: Image.Image) -> Image.Image:
  """Returns a grey image of 16 bits in 8 bits; others as they are.

  Raises:
    _DepthError: it has more bits. Their range is not agreed on.
  """
  if image.mode == 'F' or (image.mode == 'I' and image.getextrema()[1] > _MAX):
    raise _DepthError('it has more than 16 bits a value; save it with 8 or 16')
  if not image.mode.startswith('I'):  # Pillow reads RGB in 8 bits anyway.
    return image
  values = np.asarray(image).clip(0, _MAX).astype(np.uint32)
  # Pillow inverts grey TIFF files whose lowest value is white in 8 bits only.
  if getattr(image, 'tag_v2', {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
    values = _MAX - values
  rounded = (values + _16_BIT_STEP // 2) // _16_BIT_STEP
  grey = Image.fromarray(rounded.astype(np.uint8))
  transparent = image.info.get('transparency')  # One value is transparent.
  if transparent is None:
    return grey
  opaque = np.uint8(255) * (values != transparent)
  return Image.merge('LA', (grey, Image.fromarray(opaque.astype(np.uint8))))


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
  """Converts an image to RGB, from the colours of an ICC profile if it fits.

  Args:
    image: an image in grey (L), RGB or CMYK.
    profile: the profile; damaged ones are ignored, as viewers do.
  """
  if profile:
    try:
      source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
      mode = _MODES.get(source.profile.xcolor_space.strip())
      fits = mode == image.mode or (mode, image.mode) == ('RGB', 'L')
      name = ImageCms.getProfileDescription(source)
      if fits and not name.startswith(_SRGB_NAMES):
        return ImageCms.profileToProfile(
          image.convert(mode),
          source,
          ImageCms.createProfile('sRGB'),
          outputMode='RGB',
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
      pass
  return image.convert('RGB')


def _resize(image: Image.Image, size: int) -> Image.Image:
  """Returns the central square at `size`."""
  width, height = image.size
  side = min(width, height)
  left, top = (width - side) / 2, (height - side) / 2
  return image.resize(
    (size, size),
    Image.Resampling.LANCZOS,
    box=(left, top, left + side, top + side),
  )
