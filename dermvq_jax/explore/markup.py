"""Pictures and tables as HTML that refers to no other file."""

import base64
import html
from collections.abc import Sequence

import numpy as np

from dermvq_jax import errors
from dermvq_jax.data import images


def text(words: object) -> str:
  """Escapes a text, which may be a stranger's name of a class."""
  return html.escape(errors.printable(str(words)))


def picture(
  image: np.ndarray, what: str, marks: dict[str, str] | None = None
) -> str:
  """Shows uint8 `[H, W, 3]`; `what` is read aloud, `marks` are in the PNG."""
  data = base64.b64encode(images.as_png(image, marks)).decode()
  return f'<img src="data:image/png;base64,{data}" alt="{text(what)}">'


def captioned(pictures: Sequence[tuple[str, str]]) -> str:
  """Shows pictures side by side, each with a caption."""
  shown = (
    f'<figure>{shown}<figcaption>{text(caption)}</figcaption></figure>'
    for shown, caption in pictures
  )
  return f'<div class="side_by_side">{"".join(shown)}</div>'


def grid(
  corner: str,
  columns: Sequence[str],
  rows: Sequence[tuple[str, Sequence[str]]],
) -> str:
  """Shows a table of pictures.

  Args:
    corner: the title of rows and columns.
    columns: the title of each column.
    rows: the title and the pictures of each row.
  """
  head = ''.join(f'<th scope="col">{text(name)}</th>' for name in columns)
  body = ''.join(
    f'<tr><th scope="row">{text(name)}</th>'
    + ''.join(f'<td>{shown}</td>' for shown in cells)
    + '</tr>'
    for name, cells in rows
  )
  return (
    '<div class="wide"><table class="sweep"><thead><tr>'
    f'<th>{text(corner)}</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    '</div>'
  )
