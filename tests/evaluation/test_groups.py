"""Results of groups of images, by condition and value."""

import types

import numpy as np
import pytest
import scipy.stats

from dermvq_jax.evaluation import groups, result_tables, results


def test_each_lesion_counts_once():
  values = np.array([1.0, 3.0, 5.0, 4.0])
  found = groups.estimate(values, np.array(['a', 'a', 'b', 'c']))
  means = [2.0, 5.0, 4.0]
  interval = scipy.stats.t.interval(
    0.95, 2, np.mean(means), scipy.stats.sem(means)
  )
  assert found.mean == pytest.approx(np.mean(means))
  assert (found.low, found.high) == pytest.approx(interval)


def test_one_lesion_has_no_interval():
  assert groups.estimate(np.array([1.0, 2.0]), np.array(['a', 'a'])) is None


def test_the_interval_covers_the_mean_as_often_as_it_says():
  rng = np.random.default_rng(0)
  lesions = np.arange(6)
  found = [groups.estimate(rng.normal(size=6), lesions) for _ in range(300)]
  covered = np.mean([e.low <= 0 <= e.high for e in found])
  assert covered == pytest.approx(0.95, abs=0.04)


def test_a_share_has_an_interval_of_shares():
  values = np.array([True, True, False])
  found = groups.estimate(values, np.arange(3))
  assert (found.low, found.high) == (0, 1)
  assert groups.estimate(np.float64(values), np.arange(3)).high > 1


def test_groups_are_by_condition_and_value():
  found = groups.measure(
    {'sex': np.array([0, 0, 2, 0])},
    {'sex': ['female', 'male']},
    np.array(['a', 'b', 'c', 'd']),
    {
      'bits_per_code': np.array([1.0, 2.0, 9.0, 3.0]),
      'bits_per_code_given': None,
      'mse': np.array([0.1, 0.2, 0.9, 0.3]),
      'agreement': np.array([True, False, True, True]),
    },
  )
  assert list(found['sex']) == ['female', results.NOT_KNOWN]  # None is male.
  female = found['sex']['female']
  assert female.num_images == 3
  assert female.bits_per_code.mean == pytest.approx(2)
  assert female.mse.mean == pytest.approx(0.2)
  assert female.bits_per_code_given is None and female.flagged is None
  assert female.agreement.mean == pytest.approx(2 / 3)
  assert found['sex'][results.NOT_KNOWN].mse is None


def test_classifier_and_calibration_are_used_if_there_are(monkeypatch):
  images = np.zeros((70, 2, 2, 3), np.uint8)
  labels = np.arange(70) % 2
  real = types.SimpleNamespace(
    images=images,
    reconstructions=images,
    labels=labels,
    groups=np.arange(70),
    values=lambda name: np.arange(70) // 35,
  )
  run = types.SimpleNamespace(
    images=types.SimpleNamespace(
      facts={'conditions': {'label': 'ab', 'sex': ['female', 'male']}}
    )
  )
  classifier = types.SimpleNamespace(predict=lambda x: np.zeros(len(x), int))
  subject = types.SimpleNamespace(model=None, real=real, classifier=classifier)
  bits = {'bits_per_code': np.ones(70), 'bits_per_code_given': None}
  scored = []

  def score(model, calibration, images):
    scored.extend(images)
    p_values = np.where(np.arange(len(images)) < 7, 0.05, 0.06)
    return types.SimpleNamespace(p_values=p_values)

  monkeypatch.setattr(groups.scoring, 'score', score)
  monkeypatch.setattr(groups.reference, 'stored', lambda run: 'calibration')
  found = groups.of_subject(run, subject, bits)['sex']
  assert len(scored) == 70
  assert found['female'].agreement.mean == pytest.approx(18 / 35)
  assert found['female'].flagged.mean == pytest.approx(7 / 35)
  assert found['male'].flagged.mean == pytest.approx(6 / 35)  # the last chunk
  table = result_tables._groups('sex', found)
  assert table.columns[2:] == ('bits per code', 'MSE', 'class kept', 'flagged')

  monkeypatch.setattr(groups.reference, 'stored', lambda run: None)
  subject.classifier = None
  found = groups.of_subject(run, subject, bits)['sex']['female']
  assert found.agreement is None and found.flagged is None
