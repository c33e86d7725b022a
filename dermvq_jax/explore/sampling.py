"""The tab that samples images, with every control of `dermvq sample`."""

import csv
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import gradio as gr

from dermvq_jax.explore import inputs, requests
from dermvq_jax.explore import session as session_lib
from dermvq_jax.generation import samples

_OUT = 'SAMPLES'


def sample(
  session: session_lib.Session, request: requests.Request
) -> tuple[list[tuple[str, str]], str, str]:
  """Samples as `dermvq sample` does, into a folder of the session.

  Returns:
    The file and the caption of each image; the command that makes the same; a
    zip of the folder that it makes.

  Raises:
    UserError: as `samples.write`, or no command can ask for this.
  """
  command = request.command(*session.flags(_OUT))
  folder = session.new_folder()
  out = folder / _OUT
  samples.write(session.model, out, **request.arguments)
  zipped = shutil.make_archive(str(folder / _OUT), 'zip', folder, _OUT)
  return captions(out), command, zipped


def captions(out: pathlib.Path) -> list[tuple[str, str]]:
  """Returns the file and the caption of each image in a folder of samples."""
  paths = {path.name: str(path) for path in out.glob('*/*.png')}
  with (out / 'metadata.csv').open(newline='') as file:
    return [
      (paths[row['image']], f'{row["label"]} {row["id"]}')
      for row in csv.DictReader(file)
    ]


def add(session: session_lib.Session, opened: Callable[..., Any]):
  """Adds the tab; it samples a few images when the page opens."""
  with gr.Row():
    with gr.Column(scale=2, min_width=300):
      given = inputs.Inputs(session.model, selection=True)
    with gr.Column(scale=3, min_width=300):
      button = gr.Button('Sample', variant='primary')
      results = inputs.Results()

  def run(*values: Any) -> tuple[Any, ...]:
    return sample(session, given.request(*values))

  event = {
    'fn': inputs.with_messages(run),
    'inputs': given.components,
    'outputs': results.components,
    'concurrency_id': 'model',
  }
  button.click(**event)
  opened(**event)
