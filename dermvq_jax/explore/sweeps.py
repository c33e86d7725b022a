"""The tab that changes two controls at once: a table of images."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from dermvq_jax import errors, inference, sampling_flags
from dermvq_jax.explore import inputs, markup, requests
from dermvq_jax.explore import session as session_lib
from dermvq_jax.generation import sample_folder
from dermvq_jax.reporting import model_sections

_MAX_VALUES = 12
_NUMBERS = {number.name: number for number in sampling_flags.CONTROLS}
_SEEDS = '0, 1, 2, 3'


def names(model: inference.Model) -> list[str]:
  """What can be changed: controls, the seed, the class, conditions."""
  numbers = (number.name for number in requests.controls(model))
  return [*numbers, 'seed', 'class', *model.conditions]


def suggestion(model: inference.Model, name: str) -> str:
  """Values of a control that show what it does, as `read_values` reads them."""
  if name == 'seed':
    return _SEEDS
  if name in _NUMBERS:
    values = [f'{value:g}' for value in model_sections.CONTROLS[name]]
  else:
    values = model.class_names if name == 'class' else model.conditions[name]
  return ', '.join(values[:_MAX_VALUES])


def read_values(name: str, text: str) -> list[Any]:
  """Reads the values of a control, which have commas between them.

  Raises:
    UserError: there are none or too many, or they are not numbers.
  """
  words = [word.strip() for word in text.split(',') if word.strip()]
  if not 0 < len(words) <= _MAX_VALUES:
    raise errors.UserError(
      f'{name} has {len(words)} values; give 1 to {_MAX_VALUES}, with commas '
      'between them'
    )
  kind = int if name == 'seed' else str
  if name in _NUMBERS:
    kind = type(_NUMBERS[name].default)
  try:
    return [kind(word) for word in words]
  except ValueError:
    raise errors.UserError(
      f'{name} has the values {text!r}; give numbers with commas between them, '
      f'whole ones for seed and top_k'
    ) from None


def sweep(
  session: session_lib.Session,
  request: requests.Request,
  down: tuple[str, str],
  across: tuple[str, str],
) -> Iterator[tuple[str, str]]:
  """Samples an image for each pair of values.

  Args:
    session: the session.
    request: everything else.
    down: what changes from row to row: its name and its values.
    across: the same for columns.

  Yields:
    The table as HTML and the commands that make its images, after each row.

  Raises:
    UserError: wrong values, or as `Model.sample`.
  """
  (row_name, _), (column_name, _) = down, across
  if row_name == column_name:
    raise errors.UserError(
      f'rows and columns both change {row_name}; choose two controls'
    )
  row_values, column_values = read_values(*down), read_values(*across)
  rows, commands = [], []
  for i, row_value in enumerate(row_values):
    cells = []
    for j, column_value in enumerate(column_values):
      asked = request.changed(row_name, row_value)
      asked = asked.changed(column_name, column_value)
      [image] = session.model.sample(
        asked.counts, seed=asked.seed, **asked.controls, **asked.where
      )
      what = f'{row_name} {row_value}, {column_name} {column_value}'
      cells.append(markup.picture(image, what, sample_folder.MARKS))
      out = f'SWEEP/row{i}_column{j}'
      commands.append(asked.command(*session.flags(out)))
    rows.append((str(row_value), cells))
    corner = f'{row_name} \\ {column_name}'
    yield markup.grid(corner, column_values, rows), '\n'.join(commands)


def add(session: session_lib.Session, opened: Callable[..., Any]):
  """Adds the tab."""
  del opened  # It does nothing before it is asked to.
  model = session.model
  gr.HTML(
    '<p class="soft">One image for each pair of values. All else, the random '
    'numbers included, stays the same.</p>'
  )
  with gr.Row():
    with gr.Column(scale=2, min_width=300):
      chosen = [
        _axis(model, title, name)
        for title, name in (('Rows', 'temperature'), ('Columns', 'class'))
      ]
      with gr.Accordion('What stays the same', open=False):
        given = inputs.Inputs(model, several=False)
    with gr.Column(scale=3, min_width=300):
      button = gr.Button('Sweep', variant='primary')
      table = gr.HTML(label='Sweep')
      commands = gr.Textbox(
        label='The commands that make the same images',
        buttons=['copy'],
        lines=3,
        max_lines=6,
        interactive=False,
        elem_classes='command',
      )

  def run(
    row: str, row_values: str, column: str, column_values: str, *values: Any
  ) -> Iterator[tuple[str, str]]:
    yield from sweep(
      session,
      given.request(*values),
      (row, row_values),
      (column, column_values),
    )

  button.click(
    inputs.steps_with_messages(run),
    [component for axis in chosen for component in axis] + given.components,
    [table, commands],
    concurrency_id='model',
  )


def _axis(
  model: inference.Model, title: str, name: str
) -> tuple[gr.Dropdown, gr.Textbox]:
  control = gr.Dropdown(
    names(model), value=name, label=f'{title}: what changes'
  )
  values = gr.Textbox(
    suggestion(model, name), label=f'{title}: values', max_lines=2
  )
  control.input(lambda name: suggestion(model, name), control, values)
  return control, values
