"""Tests of the tables that the console and the page show."""

import dataclasses

import pytest
from evaluations import an_evaluation

from dermvq_jax.evaluation import result_tables


def cells(tables):
  return {cell for table in tables for row in table.rows for cell in row}


def test_as_text():
  table = result_tables.Table(
    ('class', 'n'), [('a', '1'), ('longer', '1,000')], 'Caption', 'Not shown.'
  )
  assert table.as_text().split('\n') == [
    'Caption',
    'class       n',
    'a           1',
    'longer  1,000',
  ]
  words = dataclasses.replace(table, words=True).as_text().split('\n')
  assert words[1:3] == ['class   n', 'a       1']
  better = dataclasses.replace(table, better='Lower is better.').as_text()
  assert better.split('\n')[-2:] == ['longer  1,000', 'Lower is better.']
  empty = result_tables.Table(('class', 'n'), [], 'Caption')
  assert empty.as_text() == 'Caption\nclass  n'


def test_tables_of_an_evaluation():
  tables = result_tables.of_evaluation(an_evaluation())
  assert [t.caption.split()[-1] for t in tables] == [
    'originals?',
    'ones?',
    'class?',
    'sex?',
    'images?',
    'images',  # of each class
    'for?',
    'images?',
  ]
  for table in tables:
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert all(isinstance(cell, str) for row in table.rows for cell in row)
    assert 'None' not in table.as_text() + table.text
  expected = {'20.00', '5.000', '0.1000', '0.0100 ± 0.0050', '1.500'}
  expected |= {
    '0.90',
    '0.500 ± 0.250',
    '1 of 8',
    '2 of 20',
    '0.01',
    '0.57',
    '-',
  }
  assert expected <= cells(tables)


def test_tables_of_what_was_measured():
  evaluation = an_evaluation()
  less = dataclasses.replace(
    evaluation, generation=None, labels=None, memorisation=None
  )
  assert len(result_tables.of_evaluation(less)) == 4


@pytest.mark.parametrize('share', [None, 0.25])
def test_shares_are_left_out_if_they_can_not_be_computed(share):
  evaluation = an_evaluation()
  evaluation = dataclasses.replace(
    evaluation,
    generation=dataclasses.replace(
      evaluation.generation, kid_over_independent=share
    ),
    labels=dataclasses.replace(evaluation.labels, samples_over_real=share),
  )
  tables = result_tables.of_evaluation(evaluation)
  shown = share is not None
  assert any('KID is 0.250 of' in t.text for t in tables) == shown
  rows = [row for table in tables for row in table.rows]
  assert (('samples / real', '-', '-', '0.25') in rows) == shown


def test_the_balanced_accuracy_of_the_prior_is_a_row():
  evaluation = an_evaluation()
  evaluation = dataclasses.replace(
    evaluation,
    prior=dataclasses.replace(evaluation.prior, balanced_accuracy=0.875),
  )
  assert {'balanced accuracy', '0.875'} <= cells(
    result_tables.of_evaluation(evaluation)
  )


def test_numbers():
  best = {
    'vqvae': {'step': 1500, 'val/psnr': 21.234, 'step/mse': 3},
    'classifier': {'step': 3, 'val/accuracy': 0.5},
    'prior': {'step': 20, 'val/bits_per_code': 4.5, 'val/accuracy': 0.25},
  }
  assert result_tables.numbers(best).rows == [
    ('PSNR (dB)', '21.23', 'vqvae', '1,500'),
    ('Bits per code', '4.500', 'prior', '20'),
    ('Accuracy of the most likely code', '0.250', 'prior', '20'),
  ]
  assert result_tables.numbers({}).rows == []
