"""Tests of the sections about evaluations."""

import dataclasses

import numpy as np
import pytest
from evaluations import an_evaluation

from dermvq_jax import errors
from dermvq_jax.evaluation import evaluate, results
from dermvq_jax.reporting import evaluation_page, page
from dermvq_jax.runs import run as run_lib


def sections(run):
  return evaluation_page.sections(run, evaluation_page.current_results(run))


@pytest.fixture
def run(tmp_path):
  """A run in which nothing was trained, with two evaluations."""
  run = run_lib.Run(tmp_path)
  run.report_dir.mkdir()
  evaluation = dataclasses.replace(an_evaluation(), weights={})
  for split, space in (('val', 'classifier'), ('test', 'inception')):
    changed = dataclasses.replace(evaluation, split=split, space=space)
    evaluate.result_path(run, split).write_text(results.as_json(changed))
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (3, 2, 16, 16, 3), np.uint8)
  np.savez(
    evaluate.nearest_path(run, 'val'),
    pixels_closest=np.arange(2),
    pixels_closest_samples=pictures[0],
    pixels_closest_train=pictures[1],
    pixels_closest_held_out=pictures[2],
  )
  return run


def test_a_section_for_each_split(run):
  test, val = sections(run)
  assert [s.title for s in (test, val)] == [
    'Evaluation on test',
    'Evaluation on val',
  ]
  # Only the features of a classifier need a warning.
  assert [len(s.text) for s in (test, val)] == [1, 2]
  assert 'seed 7' in val.text[0] and 'temperature 1' in val.text[0]
  names = [f.name for f in val.figures]
  assert names == ['confusion_val', 'closest_pixels_val']
  assert [f.name for f in test.figures] == ['confusion_test']
  assert len(test.tables) == len(val.tables) == 8


def test_confusions_of_the_prior_and_the_classifier(run):
  path = evaluate.result_path(run, 'test')
  evaluation = results.read(path)
  prior = dataclasses.replace(evaluation.prior, confusion=[[123, 0], [0, 0]])
  samples = dataclasses.replace(
    evaluation.labels.samples, confusion=[[456, 0], [0, 0]]
  )
  labels = dataclasses.replace(evaluation.labels, samples=samples)
  changed = dataclasses.replace(evaluation, prior=prior, labels=labels)
  path.write_text(results.as_json(changed))
  svg = sections(run)[0].figures[0].svg
  assert '>123<' in svg and '>456<' in svg
  changed = dataclasses.replace(evaluation, prior=prior, labels=None)
  path.write_text(results.as_json(changed))
  svg = sections(run)[0].figures[0].svg
  assert '>123<' in svg and '>456<' not in svg


def test_an_evaluation_of_other_weights(run):
  path = evaluate.result_path(run, 'test')
  stale = dataclasses.replace(results.read(path), weights={'prior': '3-0'})
  path.write_text(results.as_json(stale))
  section, _ = sections(run)
  assert not section.tables
  assert 'dermvq evaluate --split=test' in section.text[0]


def test_a_damaged_evaluation(run):
  evaluate.result_path(run, 'test').write_text('{"weights": {')
  with pytest.raises(errors.UserError, match='evaluate_test.json is damaged'):
    evaluation_page.current_results(run)


def test_the_page_shows_the_tables(run):
  text = page.render('A run', 'of images', sections(run))
  assert '0.0100 ± 0.0050</td>' in text and '1 of 8</td>' in text
  assert 'None' not in text


@pytest.mark.parametrize('damage', ['empty', 'cut', 'no images', 'a part gone'])
def test_damaged_closest_images_are_one_line(run, damage):
  path = evaluate.nearest_path(run, 'val')
  whole = path.read_bytes()
  if damage == 'empty':
    path.write_bytes(b'')
  elif damage == 'cut':
    path.write_bytes(whole[: len(whole) // 2])
  else:
    arrays = dict(np.load(path))
    del arrays['pixels_closest_train']
    if damage == 'no images':
      arrays['pixels_closest_train'] = np.arange(3)
    np.savez(path, **arrays)
  match = 'nearest_val.npz is damaged .* dermvq evaluate --split=val again'
  with pytest.raises(errors.UserError, match=match) as e:
    sections(run)
  assert '\n' not in str(e.value)
