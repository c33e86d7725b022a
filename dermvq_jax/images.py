"""Pictures: arrays to PNG files and sheets."""

from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image

_GAP = 2  # pixels between the images of a sheet


def save_png(path: epath.PathLike, image: np.ndarray):
  """Writes uint8 `[H, W, 3]`."""
  with epath.Path(path).open('wb') as f:
    Image.fromarray(image).save(f, format='PNG')


def sheet(rows: Sequence[np.ndarray]) -> np.ndarray:
  """Puts images in rows on white.

  Args:
    rows: each uint8 `[N, H, W, 3]`; all of one H and W, N may differ.

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
