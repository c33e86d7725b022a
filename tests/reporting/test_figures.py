"""Tests of charts."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from dermvq_jax.reporting import figures

_ROWS = [
  {'step': 5, 'step/nmse': 0.5, 'step/perplexity': 3.0},
  {'step': 10, 'step/nmse': 0.1, 'step/perplexity': 7.0, 'val/nmse': 0.2},
]


def _texts(svg):
  root = ElementTree.fromstring(svg)
  return {''.join(e.itertext()) for e in root.iter() if e.tag.endswith('text')}


@pytest.mark.parametrize(
  ('svg', 'titles'),
  [
    (figures.curves(_ROWS, 'vqvae'), {'Reconstruction error', 'validation'}),
    (figures.curves([], 'prior'), {'Length of the codes'}),
    (figures.smoothed(_ROWS), {'Smoothed NMSE', 'mean of 10 log lines'}),
    (figures.smoothed([]), {'Smoothed perplexity'}),
    (figures.usage_histogram(np.array([5, 0, 3])), {'Use of the codes'}),
    (figures.usage_histogram(np.zeros(4, int)), {'Use of the codes'}),
  ],
)
def test_charts_take_the_colour_of_the_page(svg, titles):
  assert titles <= _texts(svg)
  assert 'currentColor' in svg
  assert figures._PLACEHOLDER not in svg


def test_confusion_writes_counts_and_shades_shares():
  counts = np.array([[90, 10], [0, 0]])
  svg = figures.confusion({'Some': counts, 'Others': counts.T}, 'ab', 'name')
  assert {'Some', 'Others', 'a', 'b', '90', '10', '0'} <= _texts(svg)
  assert figures._PLACEHOLDER not in svg and '<image' not in svg
  shades = re.findall(r'fill-opacity: ([\d.]+)', svg)
  assert {0.81, 0.09, 0.9} <= {round(float(x), 2) for x in shades}


def test_a_chart_is_the_same_every_time():
  assert figures.smoothed(_ROWS) == figures.smoothed(_ROWS)


def test_charts_share_no_ids():
  first, second = (
    set(re.findall(r'\bid="(.*?)"', svg))
    for svg in (figures.smoothed(_ROWS), figures.curves(_ROWS, 'vqvae'))
  )
  assert first and second and not first & second


def test_the_same_chart_twice_on_a_page():
  first, second = (
    set(re.findall(r'\bid="(.*?)"', figures.smoothed(_ROWS, name)))
    for name in 'ab'
  )
  assert first and second and not first & second


def test_compare_names_the_runs_that_have_the_metric():
  runs = {'this': _ROWS, 'that': _ROWS[:1], 'none': []}
  texts = _texts(figures.compare(runs, 'step/nmse', 'NMSE', name='x'))
  assert {'this', 'that', 'NMSE', 'step'} <= texts and 'none' not in texts
  texts = _texts(
    figures.compare(runs, 'val/nmse', 'y', name='x', log_scale=True)
  )
  assert 'this' in texts and 'that' not in texts


def test_curves_show_what_is_logged():
  with_val, without = (
    figures.curves(rows, 'vqvae') for rows in (_ROWS, _ROWS[:1])
  )
  assert 'validation' in with_val and 'validation' not in without


def test_logarithmic_axes_have_plain_numbers():
  """Formulas are not drawn, so the text of one would be shown as it is."""
  rows = [{'step': i, 'step/nmse': v} for i, v in enumerate((0.5, 0.02))]
  texts = _texts(figures.smoothed(rows))
  assert {'0.1', '0.02', '0.4'} <= texts
  assert not any('$' in text for text in texts)


def test_smooth():
  values = np.random.default_rng(0).normal(size=30)
  expected = [values[max(0, i - 6) : i + 1].mean() for i in range(30)]
  np.testing.assert_allclose(figures.smooth(values, 7), expected)
  assert len(figures.smooth([])) == 0


def test_dollars_in_names_are_dollars():
  """Otherwise matplotlib would read formulas, and fail at wrong ones."""
  names = ['$a^', r'$\frac{1}{$']
  svg = figures.confusion({'Some': np.eye(2, dtype=int)}, names, 'name')
  assert set(names) <= _texts(svg)
