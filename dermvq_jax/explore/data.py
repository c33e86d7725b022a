"""The tab of the data set: how many images of what, and the images."""

from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from dermvq_jax import errors
from dermvq_jax.data import splits
from dermvq_jax.explore import inputs, markup
from dermvq_jax.explore import session as session_lib
from dermvq_jax.reporting import data_section, page

ALL = 'all classes'
_PER_PAGE = 24


def counts(session: session_lib.Session) -> str:
  """Shows the numbers of images by class, split and condition, as HTML."""
  try:
    return page.render_section(data_section.section(session.model.run))
  except errors.UserError as e:
    return f'<p>{markup.text(e)}</p>'


def images(
  session: session_lib.Session, split: str, name: str, number: int
) -> tuple[list[tuple[np.ndarray, str]], str]:
  """Reads a page of images.

  Args:
    session: the session.
    split: 'train', 'val' or 'test'.
    name: a class, or `ALL`.
    number: of the page, from 1.

  Returns:
    Images uint8 `[H, W, 3]` with their class and number in the split, and which
    part of all they are.

  Raises:
    UserError: the data set is not there, or has no such page.
  """
  run, names = session.model.run, session.model.class_names
  labels = run.images.labels(split)
  found = np.arange(len(labels))
  if name != ALL:
    found = np.flatnonzero(labels == names.index(name))
  pages = max(-(-len(found) // _PER_PAGE), 1)
  if number is None or not 1 <= number <= pages:
    raise errors.UserError(
      f'{split} has {len(found)} such images on {pages} pages; give one of them'
    )
  records = run.images.split(split)
  first = (number - 1) * _PER_PAGE
  shown = [
    (records[int(i)]['image'], f'{names[labels[i]]} {i}')
    for i in found[first : first + _PER_PAGE]
  ]
  return shown, (
    f'Page {number} of {pages}; {len(found)} images. The number of an image '
    'is its place in the split.'
  )


def add(session: session_lib.Session, opened: Callable[..., Any]):
  """Adds the tab."""
  table = gr.HTML()
  is_shown = gr.State(False)

  def show(there: bool) -> list[Any]:
    return [gr.skip()] * 2 if there else [True, counts(session)]

  opened(show, is_shown, [is_shown, table], concurrency_id='model')
  if session.why_no_data():
    return
  names = [ALL, *session.model.class_names]
  with gr.Row():
    asked = [
      gr.Dropdown(list(splits.SPLITS), value='train', label='Split'),
      gr.Dropdown(names, value=ALL, label='Class'),
      gr.Number(1, precision=0, minimum=1, label='Page'),
    ]
  button = gr.Button('Show images')
  about = gr.Markdown()
  gallery = inputs.gallery('Images of the data set')
  button.click(
    inputs.with_messages(lambda *values: images(session, *values)),
    asked,
    [gallery, about],
    concurrency_id='model',
  )
