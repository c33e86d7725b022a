"""A page from sections: text, tables, figures and listings.

It is self-contained: it opens without a network and can be mailed.
"""

import base64
import dataclasses
from collections.abc import Sequence

import jinja2
from absl import logging
from etils import epath

from dermvq_jax.runs import workdirs


@dataclasses.dataclass(frozen=True)
class Figure:
  """A figure: `svg` text of a chart, or `png` bytes of a picture."""

  name: str
  caption: str
  svg: str = ''
  png: bytes = b''

  @property
  def base64(self) -> str:
    """The picture as text."""
    return base64.b64encode(self.png).decode()

  def write(self, folder: epath.Path) -> epath.Path:
    """Writes it to a file of its own; returns the path."""
    path = folder / f'{self.name}.{"svg" if self.svg else "png"}'
    path.write_bytes(self.svg.encode() if self.svg else self.png)
    return path


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells under columns; the first cell names the row.

  `text` explains it. `words`: the other cells hold words, not numbers.
  """

  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  caption: str = ''
  text: str = ''
  words: bool = False


@dataclasses.dataclass(frozen=True)
class Listing:
  """Preformatted text, folded away unless `open`."""

  title: str
  text: str
  open: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page."""

  id: str
  title: str
  text: Sequence[str] = ()
  tables: Sequence[Table] = ()
  figures: Sequence[Figure] = ()
  listings: Sequence[Listing] = ()


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
  """The page as HTML that refers to nothing outside of it."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('dermvq_jax.reporting'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template('report.html').render(
    title=title, subtitle=subtitle, sections=sections
  )


def write(
  folder: epath.PathLike,
  title: str,
  subtitle: str,
  sections: Sequence[Section],
) -> list[epath.Path]:
  """Writes `folder/index.html` and its figures beside it.

  Returns:
    The files written, the page first.
  """
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  written = [f.write(folder) for section in sections for f in section.figures]
  page = folder / 'index.html'
  workdirs.write_text(page, render(title, subtitle, sections))
  logging.info('Wrote %s and %d figures beside it', page, len(written))
  return [page, *written]
