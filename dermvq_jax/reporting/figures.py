"""Charts as SVG text.

A chart has no background and takes the colour of the text around it, so it can
be read on a light and on a dark page.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib import ticker  # noqa: E402

_PLACEHOLDER = '#010203'  # becomes the colour of the text around the chart
_COLOURS = ('#8a8f98', '#2f7fd1', '#dd7a2f')  # readable on light and dark
_STYLE = {
  'axes.edgecolor': _PLACEHOLDER,
  'axes.facecolor': 'none',
  'axes.labelcolor': _PLACEHOLDER,
  'axes.prop_cycle': matplotlib.cycler(color=_COLOURS),
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlesize': 'medium',
  'figure.facecolor': 'none',
  'font.family': 'sans-serif',
  'grid.alpha': 0.25,
  'grid.color': _PLACEHOLDER,
  'legend.fontsize': 'small',
  'legend.frameon': False,
  'legend.labelcolor': _PLACEHOLDER,
  'savefig.facecolor': 'none',
  'svg.fonttype': 'none',  # text stays text
  'text.color': _PLACEHOLDER,
  'text.parse_math': False,  # A $ in the name of a class is a $.
  'xtick.color': _PLACEHOLDER,
  'ytick.color': _PLACEHOLDER,
}
_PANEL_SIZE = (4.4, 3.2)  # inches

# phase -> panels: (title, y label, log scale, metric)
_PANELS = {
  'vqvae': (
    ('Reconstruction error', 'NMSE', True, 'nmse'),
    ('Reconstruction quality', 'PSNR (dB)', False, 'psnr'),
    ('Perplexity of the codes', 'perplexity', False, 'perplexity'),
    ('Codebook usage', 'share of codes in use', False, 'codebook_usage'),
  ),
  'prior': (
    ('Length of the codes', 'bits per code', False, 'bits_per_code'),
    ('Accuracy of the most likely code', 'share of codes', False, 'accuracy'),
  ),
}
_SERIES = (
  ('step/', 'training, last steps'),
  ('train/', 'training, epoch'),
  ('val/', 'validation'),
)
_SMOOTHING = 10  # a smoothed value is the mean of this many log lines


def _svg(figure: plt.Figure, name: str) -> str:
  """Turns a figure into SVG; its ids depend on `name`, so no two clash."""
  out = io.StringIO()
  with matplotlib.rc_context({'svg.hashsalt': name}):
    figure.savefig(out, format='svg', metadata={'Date': None})
  plt.close(figure)
  svg = out.getvalue()
  svg = svg[svg.index('<svg') :].replace(_PLACEHOLDER, 'currentColor')
  # Groups have the same ids in every chart; nothing refers to them.
  return re.sub(r'<g id="[^"]*"', '<g', svg)


def _panels(count: int, columns: int) -> tuple[plt.Figure, Sequence[plt.Axes]]:
  """Makes a figure of `count` panels or more, in rows of `columns`."""
  rows = -(-count // columns)
  width, height = _PANEL_SIZE
  figure, axes = plt.subplots(
    rows,
    columns,
    figsize=(width * columns, height * rows),
    layout='constrained',
    squeeze=False,
  )
  return figure, axes.ravel()


class _PlainNumbers(ticker.LogFormatter):
  """Writes 0.02; the default is a formula, and formulas are not drawn here."""

  def __call__(self, x: float, pos: int | None = None) -> str:
    """The text of a tick; '' if it gets none."""
    return f'{x:g}' if super().__call__(x, pos) else ''


def _use_log_scale(axis: plt.Axes):
  """Makes the y axis logarithmic."""
  axis.set_yscale('log')
  axis.yaxis.set_major_formatter(_PlainNumbers())
  axis.yaxis.set_minor_formatter(_PlainNumbers(labelOnlyBase=False))


def _series(
  rows: Sequence[dict[str, Any]], metric: str
) -> tuple[Sequence[int], Sequence[float]]:
  """The steps and the values of the rows that have a metric."""
  points = [(row['step'], row[metric]) for row in rows if metric in row]
  return tuple(zip(*points)) or ((), ())


@matplotlib.rc_context(_STYLE)
def curves(rows: Sequence[dict[str, Any]], phase: str) -> str:
  """Draws a phase's metrics over the steps.

  Args:
    rows: the rows of metrics.jsonl.
    phase: 'vqvae' or 'prior'.

  Returns:
    SVG.
  """
  panels = _PANELS[phase]
  figure, axes = _panels(len(panels), 2)
  for axis, (title, unit, log_scale, metric) in zip(axes, panels):
    for colour, (prefix, name) in enumerate(_SERIES):
      if prefix == 'step/' and metric == 'codebook_usage':
        continue  # Over a few steps this metric means nothing.
      steps, values = _series(rows, prefix + metric)
      if steps:
        axis.plot(
          steps,
          values,
          marker='' if prefix == 'step/' else 'o',
          ms=3,
          lw=0.8 if prefix == 'step/' else 1.6,
          label=name,
          c=_COLOURS[colour],
        )
    axis.set(title=title, xlabel='step', ylabel=unit)
    if log_scale:
      _use_log_scale(axis)
    if metric == 'codebook_usage':
      axis.set_ylim(0, 1.05)
    axis.grid()
    if axis.lines:
      axis.legend()
  return _svg(figure, f'{phase}_curves')


def smooth(values: Sequence[float], window: int = _SMOOTHING) -> np.ndarray:
  """The mean of the last `window` values at each place, `[N]`.

  At the start there are fewer.
  """
  sums = np.cumsum(np.concatenate([[0.0], values]))
  ends = np.arange(1, len(values) + 1)
  starts = np.maximum(ends - window, 0)
  return (sums[ends] - sums[starts]) / (ends - starts)


@matplotlib.rc_context(_STYLE)
def smoothed(rows: Sequence[dict[str, Any]], name: str = 'smoothed') -> str:
  """Draws NMSE (log scale) and perplexity of the training steps.

  Args:
    rows: the rows of the VQ-VAE's metrics.jsonl.
    name: the name of the figure, unique on its page.

  Returns:
    SVG.
  """
  figure, axes = _panels(2, 2)
  for axis, metric, title in zip(
    axes, ('nmse', 'perplexity'), ('NMSE', 'perplexity')
  ):
    steps, values = _series(rows, f'step/{metric}')
    if steps:
      axis.plot(steps, values, c=_COLOURS[0], lw=0.8, label='as logged')
      label = f'mean of {_SMOOTHING} log lines'
      axis.plot(steps, smooth(values), c=_COLOURS[1], lw=1.8, label=label)
      axis.legend()
    axis.set(title=f'Smoothed {title}', xlabel='step', ylabel=title)
    axis.grid()
  _use_log_scale(axes[0])
  return _svg(figure, name)


@matplotlib.rc_context(_STYLE)
def compare(
  runs: Mapping[str, Sequence[dict[str, Any]]],
  metric: str,
  unit: str,
  *,
  name: str,
  log_scale: bool = False,
) -> str:
  """Draws one metric over the steps, with a curve for each run.

  Args:
    runs: name of a run to the rows of its metrics.jsonl; at most two runs.
    metric: the metric with its prefix, for example 'step/mse'.
    unit: the label of the axis.
    name: the name of the figure.
    log_scale: whether the axis is logarithmic.

  Returns:
    SVG.
  """
  figure, (axis,) = _panels(1, 1)
  figure.set_figwidth(2 * _PANEL_SIZE[0])
  for colour, (label, rows) in zip(_COLOURS[1:], runs.items()):
    steps, values = _series(rows, metric)
    if steps:
      axis.plot(steps, values, c=colour, lw=1.2, label=label)
  axis.set(xlabel='step', ylabel=unit)
  if log_scale:
    _use_log_scale(axis)
  axis.grid()
  if axis.lines:
    axis.legend()
  return _svg(figure, name)


@matplotlib.rc_context(_STYLE)
def usage_histogram(counts: np.ndarray) -> str:
  """Draws how often each code is used, the most frequent first.

  Args:
    counts: how often each code is used, int `[K]`.

  Returns:
    SVG.
  """
  figure, (axis,) = _panels(1, 1)
  figure.set_figwidth(2 * _PANEL_SIZE[0])
  shares = np.sort(counts)[::-1] / max(counts.sum(), 1)
  axis.fill_between(np.arange(len(shares)), shares, step='mid', alpha=0.6)
  even = 1 / len(counts)
  axis.axhline(even, c=_COLOURS[2], lw=1.2, label='all codes equally often')
  axis.set(
    title='Use of the codes',
    xlabel='codes, the most frequent first',
    ylabel='share of all positions',
  )
  axis.set_xlim(0, len(shares))
  axis.set_ylim(0)
  axis.legend()
  axis.grid()
  return _svg(figure, 'usage')


@matplotlib.rc_context(_STYLE)
def distance_histogram(distances: np.ndarray) -> str:
  """Draws how far codes are from the nearest other code.

  Args:
    distances: the distance of each code, `[K]`.

  Returns:
    SVG.
  """
  figure, (axis,) = _panels(1, 1)
  figure.set_figwidth(2 * _PANEL_SIZE[0])
  axis.hist(distances, bins=40, alpha=0.6)
  axis.set(
    title='How far apart the codes are',
    xlabel='distance to the nearest other code',
    ylabel='codes',
  )
  axis.set_xlim(0)
  axis.grid()
  return _svg(figure, 'code_distances')


@matplotlib.rc_context(_STYLE)
def confusion(
  counts: Mapping[str, np.ndarray], class_names: Sequence[str], name: str
) -> str:
  """Draws how the images of each class are classified.

  Args:
    counts: title of a panel to int `[C, C]`, `[true][predicted]`.
    class_names: the names of the C classes.
    name: the name of the figure.

  Returns:
    SVG. The shade of a cell is its share of the row.
  """
  figure, axes = _panels(len(counts), 2)
  colour = matplotlib.colors.to_rgb(_COLOURS[1])
  shades = matplotlib.colors.LinearSegmentedColormap.from_list(
    'shades', [(*colour, 0.0), (*colour, 0.9)]
  )
  ticks = np.arange(len(class_names)) + 0.5
  for axis, (title, table) in zip(axes, counts.items()):
    table = np.asarray(table)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axis.pcolor(shares, cmap=shades, vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(table):
      axis.text(
        column + 0.5, row + 0.5, count, ha='center', va='center', fontsize=7
      )
    axis.set(title=title, xlabel='predicted class', ylabel='class')
    axis.set_xticks(ticks, class_names, rotation=45, fontsize=8)
    axis.set_yticks(ticks, class_names, fontsize=8)
    axis.tick_params(length=0)
    axis.invert_yaxis()
  for axis in axes[len(counts) :]:
    axis.remove()
  return _svg(figure, name)
