"""Drawing tools of the synthetic dataset: noise, mosaics and curves.

All lengths are in image sides, and the random numbers do not depend on the size
of the picture.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import scipy.spatial

# Images are drawn with at least this many pixels per side and then averaged to
# their size. No detail is sharper than one of these pixels.
MIN_GRID = 128
PIXEL = 1 / MIN_GRID
# Side of the periodic noise tables, and number of cells along a side.
_TABLE = 512
_CELLS = 20
# Amplitude of the waves in the cells' borders, in cells.
_CELL_WARP = 0.22
# Angular frequency of the waves of a vessel, per image side.
_WAVES = 55


@functools.cache
def _cloud() -> np.ndarray:
  """Periodic 1/f noise of unit variance, float32 `[_TABLE * _TABLE]`."""
  return _spectral_noise(1, lambda f: f**-1.6 * np.exp(-((f / 60) ** 2)))


@functools.cache
def _grain() -> np.ndarray:
  """Periodic fine-grained noise of unit variance, shaped like `_cloud`."""
  return _spectral_noise(2, lambda f: np.exp(-(((f - 45) / 25) ** 2)))


def _spectral_noise(
  seed: int, amplitude: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """White noise, filtered by `amplitude` of the frequency and flattened."""
  white = np.random.default_rng(seed).standard_normal((_TABLE, _TABLE))
  freq = np.fft.fftfreq(_TABLE, 1 / _TABLE)
  radius = np.hypot(freq[:, None], freq[None])
  gain = np.where(radius > 0, amplitude(np.maximum(radius, 1)), 0)
  noise = np.fft.ifft2(np.fft.fft2(white) * gain).real
  return (noise / noise.std()).astype(np.float32).ravel()


@functools.cache
def _cell_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A periodic Voronoi mosaic, see `Canvas.cells`."""
  rng = np.random.default_rng(3)
  grid = np.stack(np.meshgrid(*[np.arange(_CELLS)] * 2), -1).reshape(-1, 2)
  points = (grid + rng.uniform(0.12, 0.88, grid.shape)) % _CELLS
  axis = np.arange(_TABLE) * (_CELLS / _TABLE)
  pixels = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
  # The borders between the cells are wavy, as skin has no straight lines.
  waves = np.stack([_cloud(), _cloud()[::-1]], -1)
  pixels = (pixels + _CELL_WARP * waves) % _CELLS
  tree = scipy.spatial.cKDTree(points, boxsize=_CELLS)
  distance, nearest = tree.query(pixels, k=2)
  distance = distance.astype(np.float32)
  value = rng.random(len(points), dtype=np.float32)[nearest[:, 0]]
  return distance[:, 0], distance[:, 1] - distance[:, 0], value


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
  """Rises smoothly from 0 at `low` to 1 at `high`, which may be below `low`."""
  t = np.clip((values - low) * (1 / (high - low)), 0, 1)
  return t * t * (3 - 2 * t)


class Canvas:
  """Coordinates and the layers of one image, all float32 `[n, n]`."""

  def __init__(self, rng: np.random.Generator, n: int):
    self.rng = rng
    axis = (np.arange(n, dtype=np.float32) + 0.5) / n - 0.5
    self.x, self.y = np.meshgrid(axis, axis)
    layers = np.zeros((6, n, n), np.float32)
    self.melanin, self.blood, self.keratin = layers[:3]
    self.veil, self.white, self.scale = layers[3:]

  def uniform(self, low: float, high: float) -> float:
    """Returns a random number in [low, high)."""
    return float(self.rng.uniform(low, high))

  def chance(self, probability: float) -> bool:
    """Returns True with this probability."""
    return bool(self.rng.random() < probability)

  def turned(self, x0: float = 0, y0: float = 0, angle: float | None = None):
    """Returns shifted and (by default randomly) rotated coordinates."""
    angle = self.uniform(0, 2 * math.pi) if angle is None else angle
    c, s = math.cos(angle), math.sin(angle)
    x, y = self.x - x0, self.y - y0
    return c * x + s * y, c * y - s * x

  def _positions(self, span: float) -> np.ndarray:
    """Returns indices into a table; the image covers `span` of its side."""
    scale, (u, v) = span * _TABLE, self.turned()
    # Positive, because the conversion to integers rounds towards zero.
    u, v = u + self.uniform(1, 20), v + self.uniform(1, 20)
    i = (u * scale).astype(np.int32) & (_TABLE - 1)
    j = (v * scale).astype(np.int32) & (_TABLE - 1)
    return j * _TABLE + i

  def cloud(self, span: float = 0.5) -> np.ndarray:
    """Returns a random part of the 1/f noise, `span` of its table wide."""
    return _cloud()[self._positions(span)]

  def grain(self, span: float = 0.6) -> np.ndarray:
    """Returns a random part of the fine noise, `span` of its table wide."""
    return _grain()[self._positions(span)]

  def cells(self, count: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a random mosaic.

    Args:
      count: number of cells along the image's side.

    Returns:
      For each pixel the distance to the centre of its cell, twice the distance
      to the cell's border (both in cells), and the cell's random value in
      [0, 1).
    """
    positions = self._positions(count / _CELLS)
    distance, border, value = _cell_tables()
    return distance[positions], border[positions], value[positions]

  def add_curve(
    self,
    coverage: np.ndarray,
    start: tuple[float, float],
    heading: float,
    length: float,
    bend: float,
    width: float,
    wave: float = 0,
  ) -> None:
    """Draws a bent, tapering, wavy line into `coverage`, in place.

    Args:
      coverage: `[n, n]`, is raised to 1 where the line is.
      start: x and y of the thick end; all lengths are in image sides.
      heading: direction at the start, in radians.
      length: length along the heading.
      bend: curvature; the end is `bend * length**2` beside the heading.
      width: half of the thickness at the start.
      wave: amplitude of the waves.
    """
    c, s = math.cos(heading), math.sin(heading)
    along = np.linspace(0, length, 9)
    across = bend * along**2
    path = np.stack([s * along + c * across, c * along - s * across])
    path = path + [[start[1]], [start[0]]]
    # Only the part of the image that the line can touch.
    margin = width + wave + PIXEL
    low, high = path.min(1) - margin + 0.5, path.max(1) + margin + 0.5
    low, high = (
      (edge * len(self.x)).clip(0, len(self.x)).astype(int)
      for edge in (low, high)
    )
    box = slice(low[0], high[0] + 1), slice(low[1], high[1] + 1)
    x, y = self.x[box] - start[0], self.y[box] - start[1]
    u, v = c * x + s * y, c * y - s * x
    t = u * (1 / length)
    half = width * (1 - 0.7 * t)
    v = v - bend * u * u - wave * np.sin(_WAVES * u)
    inside = np.clip((half - np.abs(v)) / PIXEL + 0.5, 0, 1)
    inside *= (t > 0) & (t < 1)
    np.maximum(coverage[box], inside, out=coverage[box])
