"""Cheap statistics of images, which need no model.

Images are uint8 `[B, H, W, 3]`; each statistic is a float64 `[B]`. Those that
are positive and skewed are logarithms, so that differences mean ratios.
"""

import zlib

import numpy as np

from dermvq_jax.models import spectrum

_TINY = 1e-3  # added before a logarithm; values of pixels are from 0 to 1.
_TINY_POWER = 1e-9
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_EDGE = 16  # A strip at an edge is a sixteenth of the side wide.
_BLOCK = 8  # side of the blocks of a JPEG
_EXTREME = 1  # percentage of the pixels that count as the extreme ones


def grey(images: np.ndarray) -> np.ndarray:
  """Brightness in [0, 1], float64 `[B, H, W]`."""
  return images / 255.0 @ _LUMA


def opponent_colours(images: np.ndarray) -> np.ndarray:
  """Red minus green and yellow minus blue, float64 `[B, H, W, 2]`."""
  red, green, blue = np.moveaxis(images / 255.0, -1, 0)
  return np.stack([red - green, (red + green) / 2 - blue], -1)


def of_images(images: np.ndarray) -> dict[str, np.ndarray]:
  """Computes all statistics: name to float64 `[B]`.

  Args:
    images: uint8 `[B, H, W, 3]` of at least 16 px a side.
  """
  bright = grey(images)
  red_green, yellow_blue = np.moveaxis(opponent_colours(images), -1, 0)
  spread = np.hypot(red_green.std((1, 2)), yellow_blue.std((1, 2)))
  return {
    'brightness': bright.mean((1, 2)),
    'brightest': np.percentile(bright, 100 - _EXTREME, axis=(1, 2)),
    'contrast': np.log(bright.std((1, 2)) + _TINY),
    'redness': red_green.mean((1, 2)),
    'reddest': np.percentile(red_green, 100 - _EXTREME, axis=(1, 2)),
    'yellowness': yellow_blue.mean((1, 2)),
    'bluest': np.percentile(yellow_blue, _EXTREME, axis=(1, 2)),
    'colour_variety': np.log(spread + _TINY),
    'complexity': np.log([_compressed_size(image) for image in images]),
    **_detail(images, bright),
    **_layout(images, bright),
  }


def _compressed_size(image: np.ndarray) -> int:
  """Bytes of differences to the left pixel, compressed as PNG does."""
  differences = np.diff(image, axis=1, prepend=np.uint8(0))
  return len(zlib.compress(differences.tobytes()))


def _detail(images: np.ndarray, bright: np.ndarray) -> dict[str, np.ndarray]:
  """Statistics of blur, noise, lines and blocks."""
  powers = np.asarray(spectrum.octave_powers(images), np.float64) / 255**2
  fine, middle, *_ = np.log(powers.T + _TINY_POWER)
  curvature = np.abs(
    4 * bright[:, 1:-1, 1:-1]
    - bright[:, :-2, 1:-1]
    - bright[:, 2:, 1:-1]
    - bright[:, 1:-1, :-2]
    - bright[:, 1:-1, 2:]
  )
  rows, columns = (np.abs(np.diff(bright, axis=axis)) for axis in (1, 2))
  # Steps between blocks, relative to all steps.
  edges = slice(_BLOCK - 1, None, _BLOCK)
  between = rows[:, edges].mean((1, 2)) + columns[:, :, edges].mean((1, 2))
  steps = rows.mean((1, 2)) + columns.mean((1, 2))
  sharpest = np.percentile(curvature, 100 - _EXTREME, axis=(1, 2))
  return {
    'sharpness': fine,
    'detail': middle,
    'noise': np.log(np.median(curvature, axis=(1, 2)) + _TINY),
    'sharpest_edge': np.log(sharpest + _TINY),
    'blockiness': np.log((between + _TINY) / (steps + _TINY)),
  }


def _layout(images: np.ndarray, bright: np.ndarray) -> dict[str, np.ndarray]:
  """Statistics of borders and symmetry."""
  height, width = (max(1, n // _EDGE) for n in bright.shape[1:])
  strips = (
    bright[:, :height],
    bright[:, -height:],
    bright[:, :, :width],
    bright[:, :, -width:],
  )
  edges = np.stack([strip.mean((1, 2)) for strip in strips])
  edges -= bright.mean((1, 2))
  x = images / 255.0
  differences = [
    np.abs(x - np.flip(x, axis)).mean((1, 2, 3)) for axis in (1, 2)
  ]
  return {
    'darkest_edge': edges.min(0),
    'brightest_edge': edges.max(0),
    'asymmetry': np.log(np.minimum(*differences) + _TINY),
  }
