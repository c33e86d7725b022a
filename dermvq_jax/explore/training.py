"""The tab of what was learned: use of the codebook, curves, for each run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import gradio as gr
import numpy as np

from dermvq_jax import errors
from dermvq_jax.explore import markup
from dermvq_jax.explore import session as session_lib
from dermvq_jax.generation import sample_folder
from dermvq_jax.reporting import figures, model_sections, page, report

_NUM_SHOWN = 8  # images
_NUM_SAMPLES = 8  # of each class, where there are no images
_COLLAPSED = 0.5  # share of codes in use; below it, many are wasted


def use_of_codes(session: session_lib.Session, index: int) -> str:
  """Shows how often a run uses each code, and some images, as HTML.

  The codes are those of validation images; without them, of new samples.

  Raises:
    UserError: there are neither images nor a prior.
  """
  model = session.models[index]
  run, size = model.run, model.codebook_size
  if not session.why_no_data(index):
    validation = model_sections.read_validation(run, model)
    codes, of_what = validation.codes, 'validation images'
    shown = validation.images[:_NUM_SHOWN]
    decoded = model.decode(codes[:_NUM_SHOWN])
    pictures = _row('images', shown) + _row('their reconstructions', decoded)
  else:
    codes = model.sample_codes(model.class_names, _NUM_SAMPLES)
    of_what = 'new samples, as the images are not here'
    pictures = _row(
      'samples', model.decode(codes[::_NUM_SAMPLES]), sample_folder.MARKS
    )
  counts = np.bincount(codes.ravel(), minlength=size)
  shares = counts[counts > 0] / counts.sum()
  perplexity = np.exp(-np.sum(shares * np.log(shares)))
  used = int((counts > 0).sum())
  said = (
    f'{used} of {size} codes are used in {len(codes)} {of_what}. They are as '
    f'varied as {perplexity:.0f} equally frequent codes (perplexity).'
  )
  if used < _COLLAPSED * size:
    said += (
      ' Most codes are never used: the codebook has collapsed. See '
      'config.quantizer.restart_after and codebook_init.'
    )
  chart = figures.usage_histogram(counts)
  return (
    f'<p>{markup.text(said)}</p><div class="wide" role="img" '
    f'aria-label="how often each code is used">{chart}</div>{pictures}'
  )


def _row(
  title: str, images: np.ndarray, marks: dict[str, str] | None = None
) -> str:
  shown = (markup.picture(image, title, marks) for image in images)
  return f'<p class="soft">{title}</p><div class="strip">{"".join(shown)}</div>'


def curves(session: session_lib.Session, index: int) -> str:
  """Shows the curves of a run's trainings, as HTML.

  Raises:
    UserError: a metrics.jsonl is damaged.
  """
  run = session.models[index].run
  if not any(phase.metrics() for phase in run.phases):
    return '<p class="soft">An export has no curves; its run has them.</p>'
  section = report.training(run)
  # Ids are unique on a page, which may show two runs.
  named = [
    dataclasses.replace(figure, name=f'{figure.name}_{index}')
    for figure in section.figures
  ]
  section = dataclasses.replace(
    section, id=f'training_{index}', title='Curves', figures=named
  )
  return page.render_section(section)


def about(session: session_lib.Session, index: int) -> str:
  """Shows a run: its name, its codes, its curves, as HTML."""
  parts = [f'<h2>{markup.text(session.names[index])}</h2>']
  for part in (use_of_codes, curves):
    try:
      parts.append(part(session, index))
    except errors.UserError as e:
      parts.append(f'<p class="soft">{markup.text(e)}</p>')
  return ''.join(parts)


def add(session: session_lib.Session, opened: Callable[..., Any]):
  """Adds the tab: a column for each run."""
  with gr.Row():
    shown = []
    for _ in session.models:
      with gr.Column(min_width=300):
        shown.append(gr.HTML('<p>...</p>', min_height=200))
  is_shown = gr.State(False)

  def show(there: bool) -> list[Any]:
    if there:
      return [gr.skip()] * (1 + len(shown))
    return [True, *(about(session, i) for i in range(len(shown)))]

  opened(show, is_shown, [is_shown, *shown], concurrency_id='model')
