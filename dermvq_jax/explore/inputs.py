"""The inputs of a page that say what to sample and how."""

import functools
import html
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from dermvq_jax import errors, inference, sampling_flags
from dermvq_jax.explore import requests

_NOT_KNOWN = 'not known'
_MAX_IMAGES = 32  # of each class


class Inputs:
  """Sliders and lists for a `requests.Request`.

  Attributes:
    components: the inputs of an event; `request` takes their values.
  """

  def __init__(
    self,
    model: inference.Model,
    *,
    several: bool = True,
    start: int = 8,
    selection: bool = False,
  ):
    """Adds the inputs to the page.

    Args:
      model: has the classes and conditions.
      several: whether there can be several classes and images.
      start: the number of images at first.
      selection: whether images can be chosen and replaced.
    """
    names = list(model.class_names)
    self._conditions = model.conditions
    self._classes = gr.Dropdown(
      names,
      value=names[:1] if several else names[0],
      multiselect=several,
      label='Classes' if several else 'Class',
    )
    self._count = gr.Slider(
      1,
      _MAX_IMAGES,
      value=start if several else 1,
      step=1,
      label='Images of each class',
      visible=several,
    )
    self._where = [
      gr.Dropdown(
        [_NOT_KNOWN, *values], value=_NOT_KNOWN, label=name.capitalize()
      )
      for name, values in self._conditions.items()
    ]
    self._seed = gr.Number(
      0, precision=0, minimum=0, maximum=2**32 - 1, label='Seed'
    )
    numbers = requests.controls(model)
    sliders = [_slider(number, model) for number in numbers]
    choose_by = []
    if selection:
      with gr.Accordion('Choose the best of several', open=False):
        sliders.append(_slider(sampling_flags.CHOOSE, model))
        numbers.append(sampling_flags.CHOOSE)
        choose_by.append(_choose_by(model))
      with gr.Accordion('Replace some images', open=False):
        more = sampling_flags.REJECTIONS
        sliders += [_slider(number, model) for number in more]
        numbers += more
    self._numbers = [number.name for number in numbers]
    self.components = [
      self._classes,
      self._count,
      self._seed,
      *self._where,
      *sliders,
      *choose_by,
    ]

  def request(
    self, classes: str | list[str], count: int, seed: int, *values: Any
  ) -> requests.Request:
    """Returns what the inputs say; the arguments are their values.

    Raises:
      UserError: no class is chosen, or an input is empty.
    """
    classes = [classes] if isinstance(classes, str) else classes or []
    split = len(self._conditions)
    where = dict(zip(self._conditions, values[:split]))
    numbers = dict(zip(self._numbers, values[split:]))
    chosen = values[split + len(numbers) :]
    return requests.Request(
      counts=dict.fromkeys(classes, int(count)),
      where={k: v for k, v in where.items() if v and v != _NOT_KNOWN},
      seed=seed,
      numbers=numbers,
      **dict(zip(['choose_by'], chosen)),
    )


def gallery(label: str) -> gr.Gallery:
  """Adds a place for images; readers of screens say its label."""
  return gr.Gallery(
    label=label,
    show_label=False,
    format='png',
    object_fit='contain',
    buttons=['fullscreen'],
    interactive=False,
    elem_classes='pictures',
  )


class Results:
  """New images, the command that makes the same, and all as a zip.

  Attributes:
    components: the three, outputs of an event.
  """

  def __init__(self):
    """Adds them to the page."""
    self.components = [
      gallery('New images'),
      gr.Textbox(
        label='The command that makes the same images',
        buttons=['copy'],
        lines=3,
        interactive=False,
        elem_classes='command',
      ),
      gr.DownloadButton('Download all of it as a zip'),
    ]


def _slider(number: sampling_flags.Number, model: inference.Model) -> gr.Slider:
  return gr.Slider(
    number.least,
    number.most or model.codebook_size,
    value=number.default,
    step=number.step,
    label=number.name,
    info=number.text,
  )


def _choose_by(model: inference.Model) -> gr.Radio:
  """Adds the list of what can be best; a run may have no classifier."""
  by_classifier, by_likelihood = sampling_flags.CHOOSE_BY
  has_classifier = model.run.classifier.has_weights
  return gr.Radio(
    list(sampling_flags.CHOOSE_BY),
    value=by_classifier if has_classifier else by_likelihood,
    label='choose_by',
    info="what the run's classifier finds most of its class, or what has the "
    'most likely codes',
  )


def _message(error: errors.UserError) -> gr.Error:
  """What the page shows of a mistake; it takes HTML."""
  text = html.escape(errors.printable(str(error)))
  return gr.Error(text, title='This cannot be done', print_exception=False)


def with_messages(function: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a function of an event show a `UserError` on the page."""

  @functools.wraps(function)
  def call(*args: Any) -> Any:
    try:
      return function(*args)
    except errors.UserError as e:
      raise _message(e) from None

  return call


def steps_with_messages(
  function: Callable[..., Iterator[Any]],
) -> Callable[..., Iterator[Any]]:
  """Does the same for a function that yields one result after the other."""

  @functools.wraps(function)
  def call(*args: Any) -> Iterator[Any]:
    try:
      yield from function(*args)
    except errors.UserError as e:
      raise _message(e) from None

  return call
