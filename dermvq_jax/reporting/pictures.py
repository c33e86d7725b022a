"""Pictures as PNG bytes: sheets of images with names, and codes as colours."""

import functools
import io
import warnings
from collections.abc import Sequence

import matplotlib
import numpy as np

matplotlib.use('Agg')
from matplotlib import font_manager  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

_DPI = 120
# Beside the names of a sheet's rows and columns, and the least width of the
# former, in inches.
_SPACE, _LEAST_LEFT = 0.08, 1.2


def _png(figure: plt.Figure) -> bytes:
  """Turns a figure into PNG."""
  out = io.BytesIO()
  figure.savefig(out, format='png', dpi=_DPI, facecolor='white')
  plt.close(figure)
  return out.getvalue()


def _enlarge(sheet: np.ndarray) -> np.ndarray:
  """Doubles a picture's size, so a page shows it without blur."""
  return sheet.repeat(2, 0).repeat(2, 1)


@functools.cache
def _letters(file: str) -> frozenset[int]:
  """The letters that a font has."""
  return frozenset(font_manager.get_font(file).get_charmap())


def _families(text: str) -> list[str]:
  """The families of fonts in which a text can be written, the usual one first.

  Letters that no font of this machine has are left out.
  """
  usual = font_manager.FontProperties(family=['sans-serif'])
  lacking = {ord(letter) for letter in text if not letter.isspace()}
  lacking -= _letters(font_manager.findfont(usual))
  families = ['sans-serif']
  for font in font_manager.fontManager.ttflist if lacking else ():
    # The fonts of last resort have boxes for all letters.
    if 'Last Resort' not in font.name and lacking & _letters(font.fname):
      families.append(font.name)
      lacking -= _letters(font.fname)
  return families


def _size(texts: Sequence[plt.Text]) -> tuple[float, float]:
  """The width of the widest text and the height of the highest, in inches."""
  boxes = [text.get_window_extent() for text in texts]
  return (
    max((box.width for box in boxes), default=0) / _DPI,
    max((box.height for box in boxes), default=0) / _DPI,
  )


def labelled_sheet(
  sheet: np.ndarray, rows: Sequence[str], columns: Sequence[str] = ()
) -> bytes:
  """Draws a sheet of images with the names of its rows and columns.

  Names of columns are turned if they would lie over each other. Letters that no
  font of this machine has are boxes.

  Args:
    sheet: uint8 `[H, W, 3]`, from `images.sheet`; shown at twice its size.
    rows: the names of its rows.
    columns: the names of its columns, if they have any.

  Returns:
    PNG.
  """
  sheet = _enlarge(sheet)
  height, width = (pixels / _DPI for pixels in sheet.shape[:2])
  figure = plt.figure(dpi=_DPI)
  families = _families(''.join([*rows, *columns]))
  style = {'fontsize': 9, 'family': families, 'parse_math': False}
  beside, above = (
    [figure.text(0, 0, name, ha=ha, va=va, **style) for name in names]
    for names, ha, va in (
      (rows, 'right', 'center'),
      (columns, 'center', 'bottom'),
    )
  )
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Glyph .* missing')
    if columns and _size(above)[0] > width / len(columns) - _SPACE:
      for text in above:
        text.set_rotation('vertical')
    left = max(_LEAST_LEFT, _size(beside)[0] + 2 * _SPACE)
    top = _size(above)[1] + 2 * _SPACE if columns else 0
    figure.set_size_inches(left + width, top + height)
    right, bottom = width / (left + width), height / (top + height)
    axis = figure.add_axes((1 - right, 0, right, bottom))
    axis.imshow(sheet, interpolation='nearest')
    axis.axis('off')
    for i, text in enumerate(beside):
      x = (left - _SPACE) / (left + width)
      text.set_position((x, bottom * (1 - (i + 0.5) / len(rows))))
    for j, text in enumerate(above):
      y = (height + _SPACE) / (top + height)
      text.set_position((1 - right + right * (j + 0.5) / len(columns), y))
    return _png(figure)


def principal_colours(vectors: np.ndarray) -> np.ndarray:
  """Shows the three main directions of vectors as red, green and blue.

  Args:
    vectors: `[h, w, D]`.

  Returns:
    Colours in [0, 1], `[h, w, 3]`.
  """
  rows = vectors.reshape(-1, vectors.shape[-1]).astype(np.float64)
  rows = rows - rows.mean(axis=0)
  _, _, directions = np.linalg.svd(rows, full_matrices=False)
  main = rows @ directions[:3].T
  main = np.pad(main, ((0, 0), (0, 3 - main.shape[1])))
  low, high = main.min(axis=0), main.max(axis=0)
  span = np.where(high > low, high - low, 1)
  return ((main - low) / span).reshape(*vectors.shape[:2], 3)


def code_map(
  original: np.ndarray,
  codes: np.ndarray,
  vectors: np.ndarray,
  decoded: np.ndarray,
  codebook_size: int,
) -> bytes:
  """Draws one image, its codes, their vectors and the decoded image.

  Args:
    original: uint8 `[H, W, 3]`.
    codes: int `[h, w]`.
    vectors: the quantized latents, `[h, w, D]`.
    decoded: uint8 `[H, W, 3]`.
    codebook_size: K.

  Returns:
    PNG.
  """
  figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout='constrained')
  axes[0].imshow(original)
  axes[0].set_title('original')
  shown = axes[1].imshow(
    codes, cmap='nipy_spectral', vmin=0, vmax=codebook_size - 1
  )
  figure.colorbar(shown, ax=axes[1])
  axes[1].set_title('codes: the input of the prior')
  axes[2].imshow(principal_colours(vectors))
  axes[2].set_title('quantized latents, 3 main directions')
  axes[3].imshow(decoded)
  axes[3].set_title('decoded from the codes')
  for axis in axes:
    axis.axis('off')
  return _png(figure)
