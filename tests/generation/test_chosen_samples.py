"""The best of several candidates for each new image."""

import json

import numpy as np
import pytest
from pictures import read_csv, read_png, sample_file

import dermvq_jax
from dermvq_jax import errors, main
from dermvq_jax.generation import samples
from dermvq_jax.inference import choosing
from dermvq_jax.runs import run as run_lib


def test_the_best_by_hand():
  """Each image gets the candidate with the best score, the first of equals."""
  asked = []

  def draw(ids):
    asked.append(ids.tolist())
    return ids[:, None, None].copy()

  def score(codes):
    return np.array([0.0, 2, 1, 3, 5, 5])[codes[:, 0, 0]]

  codes, ids = choosing.best(draw, score, [0, 1], 3)
  assert asked == [[0, 3], [1, 4], [2, 5]]
  assert ids.tolist() == codes[:, 0, 0].tolist() == [1, 4]


@pytest.mark.parametrize('by', choosing.BY)
def test_sample_chooses(model, by):
  """What is chosen is the best of the images with the candidates' ids."""
  labels, choose = ['mel', 'nv'], 3
  candidates = model.sample_codes(
    np.repeat(labels, choose), ids=[0, 1, 2, 0, 1, 2], seed=5
  )
  numbers = np.repeat(model.labels(labels), choose)
  if by == 'likelihood':
    scores = model.log_likelihood(candidates, numbers)
  else:
    logits = model.classifier.logits(model.decode(candidates))
    scores = logits[np.arange(6), numbers] - np.log(np.exp(logits).sum(1))
  best = scores.reshape(2, choose).argmax(1) + [0, choose]
  assert len(set(scores.tolist())) > 2
  chosen = model.sample(labels, seed=5, choose=choose, choose_by=by)
  np.testing.assert_array_equal(chosen, model.decode(candidates[best]))
  codes = model.sample_codes(labels, seed=5, choose=choose, choose_by=by)
  np.testing.assert_array_equal(codes, candidates[best])


def test_the_folder_says_what_was_chosen(smoke_run, model, out, caplog):
  caplog.set_level('INFO')
  counts = {'mel': 2, 'nv': 1}
  samples.sample(run_lib.Run(smoke_run), out, counts=counts, seed=5, choose=4)
  rows = read_csv(out / 'metadata.csv')
  assert [(row['choose'], row['choose_by']) for row in rows] == [
    ('4', 'classifier')
  ] * 3
  ids = [int(row['id']) for row in rows]
  assert [id_ // 4 for id_ in ids] == [0, 1, 0]
  # An id is enough to make the image again.
  labels = [row['label'] for row in rows]
  again = model.sample(labels, ids=ids, seed=5)
  expected = model.sample(labels, seed=5, choose=4)
  for label, id_, image, right in zip(labels, ids, again, expected):
    np.testing.assert_array_equal(image, right)
    np.testing.assert_array_equal(
      read_png(out / sample_file(label, id_)), right
    )
  record = json.loads((out / 'samples.json').read_text())
  assert (record['choose'], record['choose_by']) == (4, 'classifier')
  assert record['weights'].keys() == {'vqvae', 'prior', 'classifier'}
  assert (record['images'], record['drawn']) == (3, 12)
  assert record['dropped'] == {'not_chosen': 9}
  assert 'Kept 3 of 12 images that were drawn (25.0%)' in caplog.text


def test_a_run_without_a_classifier(run_copy, out, capsys):
  (run_copy / 'classifier').rename(run_copy / 'away')
  argv = ['sample', f'--workdir={run_copy}', f'--out={out}', '--counts=mel=1']
  assert main.main([*argv, '--choose=2']) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert f'train --config=classifier --workdir={run_copy}, or give' in line
  assert line.endswith('--choose_by=likelihood')
  assert not out.parent.exists()
  assert main.main([*argv, '--choose=2', '--choose_by=likelihood']) == 0


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'choose': 0}, 'choose is 0; give the number of candidates'),
    ({'choose': 1.5}, 'choose is 1.5'),
    ({'choose': 2, 'choose_by': 'me'}, "choose_by is 'me'; give classifier or"),
    ({'choose': 2, 'labels': [7]}, 'only images of a class; give a class'),
    ({'choose': 2, 'ids': [2**31]}, 'ids must be whole numbers from 0'),
  ],
)
def test_mistakes(model, arguments, message):
  arguments = {'labels': ['mel']} | arguments
  with pytest.raises(errors.UserError, match=message):
    model.sample(**arguments)


def test_an_export_chooses_too(exported_run, model):
  images = dermvq_jax.load(exported_run).sample('mel', 2, choose=2)
  np.testing.assert_array_equal(images, model.sample('mel', 2, choose=2))
