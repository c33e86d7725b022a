"""Where an image of a tab comes from: a file, a new sample, the data set."""

from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from dermvq_jax import errors
from dermvq_jax.data import splits
from dermvq_jax.explore import inputs
from dermvq_jax.explore import session as session_lib


def from_file(session: session_lib.Session, path: str | None) -> np.ndarray:
  """Reads an image file, uint8 `[H, W, 3]`, as `dermvq` does.

  Raises:
    UserError: there is none, or it is not readable.
  """
  if not path:
    raise errors.UserError('choose an image file')
  [image] = session.model.preprocess(path)
  return image


def from_prior(
  session: session_lib.Session, label: str, seed: int | None
) -> np.ndarray:
  """Samples an image, uint8 `[H, W, 3]`.

  Raises:
    UserError: there is no seed, or no trained prior.
  """
  if seed is None:
    raise errors.UserError('seed is empty; give a number')
  [image] = session.model.sample(label, seed=seed)
  return image


def from_data(
  session: session_lib.Session, split: str, number: int | None
) -> np.ndarray:
  """Reads an image of the run's data set, uint8 `[H, W, 3]`.

  Raises:
    UserError: the data set is not there, or has no such image.
  """
  records = session.model.run.images.split(split)
  if number is None or not 0 <= number < len(records):
    raise errors.UserError(
      f'{split} has the images 0 to {len(records) - 1}; give one of them'
    )
  return records[number]['image']


def add(
  session: session_lib.Session,
  opened: Callable[..., Any],
  function: Callable[[np.ndarray], list[Any]],
  outputs: list[gr.components.Component],
):
  """Adds the three ways to choose an image.

  Args:
    session: the session.
    opened: the event that the tab is opened; the first time an image is taken.
    function: is given the image, uint8 `[H, W, 3]`.
    outputs: what its results are; the first is None until there is an image.
  """
  event = {'outputs': outputs, 'concurrency_id': 'model'}

  def then(read: Callable[..., np.ndarray]) -> Callable[..., Any]:
    return inputs.with_messages(lambda *args: function(read(session, *args)))

  def at_first(read: Callable[..., np.ndarray]) -> Callable[..., Any]:
    def call(there: Any, *args: Any) -> Any:
      return (
        [gr.skip()] * len(outputs) if there is not None else then(read)(*args)
      )

    return call

  with gr.Accordion('Choose an image'):
    if not session.why_no_prior():
      names = list(session.model.class_names)
      with gr.Row():
        label = gr.Dropdown(names, value=names[-1], label='Class')
        seed = gr.Number(0, precision=0, minimum=0, label='Seed')
      new = gr.Button('Take a new sample')
      new.click(then(from_prior), [label, seed], **event)
      opened(at_first(from_prior), [outputs[0], label, seed], **event)
    if not session.why_no_data():
      with gr.Row():
        split = gr.Dropdown(
          list(splits.SPLITS), value='val', label='Split of the data set'
        )
        number = gr.Number(0, precision=0, minimum=0, label='Image')
      taken = gr.Button('Take an image of the data set')
      taken.click(then(from_data), [split, number], **event)
      if session.why_no_prior():
        opened(at_first(from_data), [outputs[0], split, number], **event)
    file = gr.File(
      file_types=['image', '.dcm'], label='A file of yours', height=120
    )
    file.upload(then(from_file), file, **event)
