"""The tab of codes: click one, replace it, watch the grid fill."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np

from dermvq_jax import errors, inference
from dermvq_jax.explore import inputs, markup, sources
from dermvq_jax.explore import session as session_lib
from dermvq_jax.reporting import pictures

_MAP_SIDE = 448  # pixels of the map of codes, about
_CHOSEN, _SAME = (255, 255, 255), (255, 214, 0)
_BLANK = 128  # grey: codes that are not drawn yet
_GAIN = 4  # differences are multiplied by this, to be visible
_FRAMES, _PAUSE = 32, 0.12  # of the film, and seconds between frames


def cell_side(model: inference.Model) -> int:
  """Pixels a side of a code on the map."""
  return max(_MAP_SIDE // max(model.grid), 4)


def code_map(
  model: inference.Model,
  codes: np.ndarray,
  chosen: tuple[int, int] | None = None,
  known: int | None = None,
) -> np.ndarray:
  """Shows codes as colours; similar codes have similar colours.

  Args:
    model: has the codebook.
    codes: int `[h, w]`.
    chosen: row and column of a code to mark; all equal codes are marked too.
    known: the number of codes to show, in the order of the prior; None: all.

  Returns:
    uint8 `[H', W', 3]`.
  """
  side = cell_side(model)
  vectors = model.embed(codes[None])[0]
  repeats = codes.shape[1] // vectors.shape[1]  # of the levels of a latent
  colours = pictures.principal_colours(vectors).repeat(repeats, 1)
  colours = np.rint(255 * colours).astype(np.uint8)
  if known is not None:
    colours.reshape(-1, 3)[known:] = _BLANK
  shown = colours.repeat(side, 0).repeat(side, 1)
  if chosen is not None:
    for place in np.argwhere(codes == codes[chosen]):
      _frame(shown, place * side, side, 1, _SAME)
    _frame(shown, np.array(chosen) * side, side, 3, _CHOSEN)
  return shown


def _frame(
  image: np.ndarray,
  corner: np.ndarray,
  side: int,
  width: int,
  colour: tuple[int, int, int],
):
  """Draws a frame inside a square, with a dark line around it."""
  top, left = corner
  cell = image[top : top + side, left : left + side]
  inner = cell[width:-width, width:-width].copy()
  cell[:] = colour
  if width > 1:
    cell[width - 1 : 1 - width, width - 1 : 1 - width] = 0
  cell[width:-width, width:-width] = inner


def replaced(
  model: inference.Model, codes: np.ndarray, row: int, column: int, code: int
) -> np.ndarray:
  """Returns codes `[h, w]` with another one at a place.

  Raises:
    UserError: there is no such place or code.
  """
  h, w = codes.shape
  if None in (row, column) or not (0 <= row < h and 0 <= column < w):
    raise errors.UserError(
      f'the rows are 0 to {h - 1}, the columns 0 to {w - 1}; choose one of each'
    )
  if code is None or not 0 <= code < model.codebook_size:
    raise errors.UserError(
      f'the codes are 0 to {model.codebook_size - 1}; choose one'
    )
  codes = codes.copy()
  codes[row, column] = code
  return codes


def so_far(model: inference.Model, codes: np.ndarray, known: int) -> np.ndarray:
  """Decodes the first codes in the order of the prior, uint8 `[H, W, 3]`.

  The others are replaced by the last of these, and their area is grey.
  """
  h, w = codes.shape
  flat = codes.ravel().copy()
  # Codes of one level cannot stand for those of another.
  levels = model.num_levels
  for level in range(levels):
    of_level = flat[level::levels]
    count = max(-(-(known - level) // levels), 1)
    of_level[count:] = of_level[count - 1]
  [image] = model.decode(flat.reshape(1, h, w))
  is_known = (np.arange(h * w) < known).reshape(h, w // levels, levels).all(-1)
  side = image.shape[0] // h
  is_known = is_known.repeat(side, 0).repeat(side, 1)
  return np.where(is_known[..., None], image, np.uint8(_BLANK))


def compared(
  model: inference.Model, before: np.ndarray, codes: np.ndarray
) -> str:
  """Shows what the codes decode to, and what changed, as HTML.

  It is not marked as synthetic, because the codes may be those of a patient.
  """
  old, new = model.decode(np.stack([before, codes]))
  difference = np.abs(old.astype(np.int32) - new)
  changed = int((before != codes).sum())
  shown = np.minimum(_GAIN * difference, 255).astype(np.uint8)
  return markup.captioned(
    [
      (markup.picture(old, 'before'), 'decoded, before'),
      (
        markup.picture(new, 'now'),
        f'decoded, {changed} of {codes.size} codes changed',
      ),
      (
        markup.picture(shown, 'difference'),
        f'difference x {_GAIN}: {(difference.max(-1) > 0).mean():.0%} of the '
        'pixels changed',
      ),
    ]
  )


def film(
  model: inference.Model, codes: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """Draws the codes one after the other, as the prior does.

  Yields:
    How many there are so far, their map and what they decode to.
  """
  step = max(codes.size // _FRAMES, 1)
  for known in range(step, codes.size + 1, step):
    yield (
      known,
      code_map(model, codes, known=known),
      so_far(model, codes, known),
    )


def _place(event: gr.SelectData, side: int) -> tuple[int, int]:
  x, y = event.index
  return int(y) // side, int(x) // side


def add(session: session_lib.Session, opened: Callable[..., Any]):
  """Adds the tab."""
  model = session.model
  before, now = gr.State(), gr.State()
  with gr.Row():
    with gr.Column(scale=2, min_width=300):
      source = gr.Column()
      row = gr.Slider(0, model.grid[0] - 1, step=1, label='Row')
      column = gr.Slider(0, model.grid[1] - 1, step=1, label='Column')
      code = gr.Slider(
        0,
        model.codebook_size - 1,
        step=1,
        label='Code there',
        info='choose another one, then replace it',
      )
      with gr.Row():
        replace = gr.Button('Replace', variant='primary')
        undo = gr.Button('Undo all')
    with gr.Column(scale=3, min_width=300):
      shown = gr.Image(
        label='Codes: click one; equal codes have a yellow frame',
        format='png',
        buttons=[],
        interactive=False,
        elem_classes='code_map',
      )
      result = gr.HTML()
      _add_film(model, now)

  def view(old: np.ndarray, codes: np.ndarray, i: int, j: int) -> list[Any]:
    return [
      old,
      codes,
      i,
      j,
      int(codes[i, j]),
      code_map(model, codes, (i, j)),
      compared(model, old, codes),
    ]

  outputs = [before, now, row, column, code, shown, result]

  def start(image: np.ndarray) -> list[Any]:
    [codes] = model.encode(image)
    h, w = codes.shape
    return view(codes, codes, h // 2, w // 2)

  def choose(codes: np.ndarray, i: int, j: int) -> tuple[int, np.ndarray]:
    _check_chosen(codes)
    return int(codes[i, j]), code_map(model, codes, (i, j))

  def click(codes: np.ndarray, event: gr.SelectData) -> list[Any]:
    i, j = _place(event, cell_side(model))
    return [i, j, *choose(codes, i, j)]

  def change(
    old: np.ndarray, codes: np.ndarray, i: int, j: int, new: int
  ) -> list[Any]:
    _check_chosen(codes)
    return view(old, replaced(model, codes, i, j, new), i, j)

  def reset(old: np.ndarray, i: int, j: int) -> list[Any]:
    _check_chosen(old)
    return view(old, old, i, j)

  with source:
    sources.add(session, opened, start, outputs)
  model_event = {'concurrency_id': 'model', 'show_progress': 'hidden'}
  shown.select(
    inputs.with_messages(click), now, [row, column, code, shown], **model_event
  )
  for slider in (row, column):
    slider.input(
      inputs.with_messages(choose),
      [now, row, column],
      [code, shown],
      **model_event,
    )
  replace.click(
    inputs.with_messages(change),
    [before, now, row, column, code],
    outputs,
    **model_event,
  )
  undo.click(
    inputs.with_messages(reset),
    [before, row, column],
    outputs,
    **model_event,
  )


def _add_film(model: inference.Model, now: gr.State):
  """Adds the part that draws the codes of `now` one after the other."""
  with gr.Accordion('Watch the codes being drawn'):
    known = gr.Slider(
      1,
      model.grid[0] * model.grid[1],
      step=1,
      label='Codes so far',
      info='the prior draws row by row, from left to right; each code depends '
      'on those before it',
    )
    play = gr.Button('Play')
    drawn = gr.HTML()

  def frame(codes: np.ndarray, count: int) -> str:
    _check_chosen(codes)
    return _side_by_side(
      code_map(model, codes, known=count), so_far(model, codes, count), count
    )

  def run(codes: np.ndarray) -> Iterator[tuple[int, str]]:
    _check_chosen(codes)
    for count, shown_codes, image in film(model, codes):
      yield count, _side_by_side(shown_codes, image, count)
      time.sleep(_PAUSE)

  event = {'concurrency_id': 'model', 'show_progress': 'hidden'}
  known.input(inputs.with_messages(frame), [now, known], drawn, **event)
  play.click(inputs.steps_with_messages(run), now, [known, drawn], **event)


def _check_chosen(codes: np.ndarray | None):
  if codes is None:
    raise errors.UserError('choose an image first')


def _side_by_side(codes: np.ndarray, image: np.ndarray, count: int) -> str:
  return markup.captioned(
    [
      (markup.picture(codes, f'{count} codes'), f'{count} codes'),
      (markup.picture(image, 'decoded'), 'decoded so far'),
    ]
  )
