"""Writes a page of sections: text, tables, figures and listings.

The page is self-contained: it opens without a network and can be mailed.
"""

import base64
import dataclasses
from collections.abc import Sequence

import jinja2
from absl import logging
from etils import epath

from dermvq_jax import files
from dermvq_jax.evaluation import result_tables

Table = result_tables.Table


@dataclasses.dataclass(frozen=True)
class Figure:
  """A chart or a picture.

  Attributes:
    name: the name of its file, without the suffix.
    caption: the text below it.
    svg: the chart as SVG text; '' for a picture.
    png: the picture as PNG bytes.
  """

  name: str
  caption: str
  svg: str = ''
  png: bytes = b''

  @property
  def base64(self) -> str:
    """The picture as base64 text."""
    return base64.b64encode(self.png).decode()

  def write(self, folder: epath.Path) -> epath.Path:
    """Writes the figure to a separate file; returns the path."""
    path = folder / f'{self.name}.{"svg" if self.svg else "png"}'
    with files.replacing(path) as file:
      file.write(self.svg.encode() if self.svg else self.png)
    return path


@dataclasses.dataclass(frozen=True)
class Listing:
  """Preformatted text, folded away unless it is open.

  Attributes:
    title: always visible.
    text: the lines.
    open: whether the text is visible at first.
  """

  title: str
  text: str
  open: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page.

  Attributes:
    id: the name that links use, unique on the page.
    title: the heading.
    text: paragraphs below the heading.
    tables: shown after the text.
    figures: shown after the tables.
    listings: shown after the figures.
  """

  id: str
  title: str
  text: Sequence[str] = ()
  tables: Sequence[Table] = ()
  figures: Sequence[Figure] = ()
  listings: Sequence[Listing] = ()


def _template(name: str) -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('dermvq_jax.reporting'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template(name)


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
  """Renders the page as HTML that refers to no other file."""
  return _template('report.html').render(
    title=title, subtitle=subtitle, sections=sections
  )


def render_section(section: Section) -> str:
  """Renders a part of the page as HTML, for another page."""
  return _template('section.html').render(section=section)


def write(
  folder: epath.PathLike,
  title: str,
  subtitle: str,
  sections: Sequence[Section],
) -> list[epath.Path]:
  """Writes `folder/index.html` and its figures beside it.

  Args:
    folder: the folder; it is made if needed.
    title: the heading of the page.
    subtitle: the line below it.
    sections: the parts of the page.

  Returns:
    The files written, the page first.
  """
  folder = epath.Path(folder)
  files.make_folder(folder)
  written = [f.write(folder) for section in sections for f in section.figures]
  page = folder / 'index.html'
  files.write_text(page, render(title, subtitle, sections))
  logging.info('Wrote %s and %d figures beside it', page, len(written))
  return [page, *written]
