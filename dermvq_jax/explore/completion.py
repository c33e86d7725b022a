"""The tab that hides a part of an image with a brush and fills it in."""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np

from dermvq_jax import errors, inference
from dermvq_jax.data import images
from dermvq_jax.explore import inputs, markup, requests, sampling, sources
from dermvq_jax.explore import session as session_lib
from dermvq_jax.generation import samples

_OUT, _GIVEN = 'COMPLETED', 'GIVEN'  # folders in the zip
_SIDE = 512  # pixels of the canvas, about
_BRUSH = 'brush'  # among the names of masks
_COLOUR = '#2f7fd1'
_LOST = np.array((221, 122, 47))  # marks what is sampled beside hidden pixels


def canvas(image: np.ndarray) -> np.ndarray:
  """Enlarges uint8 `[H, W, 3]` by a whole number, so pixels can be painted."""
  factor = max(_SIDE // image.shape[0], 1)
  return image.repeat(factor, 0).repeat(factor, 1)


def painted(layers: Sequence[np.ndarray], size: int) -> np.ndarray:
  """Returns which pixels of an image the brush has touched, bool `[H, W]`.

  Args:
    layers: what was painted on the canvas, uint8 RGBA.
    size: H and W.

  Raises:
    UserError: nothing was painted.
  """
  hidden = np.zeros((size, size), bool)
  for layer in layers:
    height, width = layer.shape[:2]
    rows, columns = np.nonzero(layer[..., 3])
    hidden[rows * size // height, columns * size // width] = True
  if not hidden.any():
    raise errors.UserError(
      'nothing is hidden; paint over a part of the image, or choose a mask'
    )
  return hidden


def given(
  model: inference.Model, image: np.ndarray, mask: str | np.ndarray
) -> str:
  """Shows what the prior is given, as HTML.

  Args:
    model: the model.
    image: uint8 `[H, W, 3]`.
    mask: its hidden part, as in `Model.hide`.

  Raises:
    UserError: as `Model.hide`.
  """
  masked = model.hide(image, mask)
  known = masked.known
  side = image.shape[0] // known.shape[0]
  is_kept = known[:, :: model.num_levels].repeat(side, 0).repeat(side, 1)
  hidden = (masked.image != image).any(-1)
  tinted = (masked.image + _LOST) // 2
  shown = np.where((is_kept | hidden)[..., None], masked.image, tinted)
  return markup.captioned(
    [
      (markup.picture(image, 'the image'), 'the image'),
      (
        markup.picture(shown.astype(np.uint8), 'the hidden part'),
        f'{known.sum()} of {known.size} codes are kept. Grey is hidden; orange '
        'is sampled too, as its code stands for hidden pixels as well.',
      ),
    ]
  )


def complete(
  session: session_lib.Session,
  image: np.ndarray,
  mask: str | np.ndarray,
  request: requests.Request,
) -> tuple[list[tuple[str, str]], str, str, str]:
  """Completes an image as `dermvq sample --complete` does.

  Args:
    session: the session.
    image: uint8 `[H, W, 3]`.
    mask: its hidden part: a name of `images.MASKS` or bool `[H, W]`.
    request: what the completions are to be.

  Returns:
    The file and the caption of each image; what the prior was given, as HTML;
    the command that makes the same; a zip of the files that it needs and makes.

  Raises:
    UserError: as `samples.write`, or no command can ask for this.
  """
  shown = given(session.model, image, mask)
  folder = session.new_folder()
  files = folder / 'files'
  (files / _GIVEN).mkdir(parents=True)
  images.save_png(files / _GIVEN / 'image.png', image)
  named = {'complete': f'{_GIVEN}/image.png', 'mask': mask}
  read = {'complete': files / named['complete'], 'mask': mask}
  if not isinstance(mask, str):
    named['mask'] = f'{_GIVEN}/mask.png'
    read['mask'] = files / named['mask']
    white = np.uint8(255) * mask[..., None].repeat(3, -1)
    images.save_png(read['mask'], white)
  words = [f'--{name}={value}' for name, value in named.items()]
  command = request.command(*session.flags('SAMPLES'), *words)
  samples.write(session.model, files / _OUT, **request.arguments, **read)
  for name in ('metadata.csv', 'samples.json'):
    # The paths as the command has them, not those of this page.
    path = files / _OUT / name
    path.write_text(path.read_text().replace(f'{files}/', ''))
  zipped = shutil.make_archive(str(folder / _OUT), 'zip', files)
  return sampling.captions(files / _OUT), shown, command, zipped


def add(session: session_lib.Session, opened: Callable[..., Any]):
  """Adds the tab."""
  model = session.model
  chosen = gr.State()
  with gr.Row():
    with gr.Column(scale=2, min_width=300):
      source = gr.Column()
      asked = inputs.Inputs(model, start=4)
    with gr.Column(scale=3, min_width=300):
      mask = gr.Dropdown(
        [_BRUSH, *images.MASKS], value=_BRUSH, label='What hides the image'
      )
      editor = gr.ImageEditor(
        label='Paint over what is to be filled in',
        type='numpy',
        image_mode='RGBA',
        format='png',
        sources=(),
        transforms=(),
        layers=False,
        buttons=[],
        brush=gr.Brush(
          default_size=64,
          colors=[_COLOUR],
          default_color=_COLOUR,
          color_mode='fixed',
        ),
        canvas_size=(_SIDE, _SIDE),
        height=640,
        elem_classes='canvas',
      )
      button = gr.Button('Complete', variant='primary')
      shown = gr.HTML()
      results = inputs.Results()

  def start(image: np.ndarray) -> list[Any]:
    painting = {'background': canvas(image), 'layers': [], 'composite': None}
    return [image, painting]

  def run(
    image: np.ndarray, painting: dict[str, Any], name: str, *values: Any
  ) -> tuple[Any, ...]:
    if image is None:
      raise errors.UserError('choose an image first')
    request = asked.request(*values)
    hidden = name
    if name == _BRUSH:
      hidden = painted(painting['layers'], model.image_size)
    files, html, command, zipped = complete(session, image, hidden, request)
    return html, files, command, zipped

  with source:
    sources.add(session, opened, start, [chosen, editor])
  button.click(
    inputs.with_messages(run),
    [chosen, editor, mask, *asked.components],
    [shown, *results.components],
    concurrency_id='model',
  )
