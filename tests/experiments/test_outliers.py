"""The study of outliers: what it makes, and how it judges."""

import numpy as np
import PIL.Image
import pytest
import scipy.stats
from etils import epath

from dermvq_jax.runs import run as run_lib
from experiments.outliers import __main__ as study
from experiments.outliers import made, methods


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  return rng.integers(90, 160, (3, 64, 64, 3), np.uint8)


@pytest.mark.parametrize('kind', made.KINDS)
def test_made_outliers(images, kind):
  """They differ from the image only where they say so, and are repeatable."""
  new, wrong = made.make(kind, 1, images, seed=0)
  assert new.dtype == np.uint8 and new.shape == images.shape
  assert (new != images).any((1, 2, 3)).all()
  np.testing.assert_array_equal(new, made.make(kind, 1, images, seed=0)[0])
  if wrong is None:
    return
  assert wrong.dtype == bool and wrong.any((1, 2)).all()
  changed = np.abs(new.astype(int) - images).max(-1) > 60
  # Lines fade out at their sides.
  assert (changed & ~wrong).sum() <= 0.3 * wrong.sum()


@pytest.mark.parametrize('kind', [f.__name__ for f in made.GRADED])
def test_strengths(images, kind):
  def difference(strength):
    new, _ = made.make(kind, strength, images, seed=0)
    return np.abs(new.astype(int) - images).mean()

  if kind != 'wrong_crop':  # Of noise, all crops differ alike.
    assert difference(0) < difference(1) < difference(2)


def test_auroc_and_detection():
  rng = np.random.default_rng(0)
  inliers, outliers = rng.integers(0, 20, 200), rng.integers(5, 25, 100)
  statistic = scipy.stats.mannwhitneyu(outliers, inliers).statistic
  expected = statistic / (200 * 100)
  assert methods.auroc(inliers, outliers) == pytest.approx(expected)
  share = methods.detection(np.arange(100), np.array([50, 94, 95, 96, 200]))
  assert share == pytest.approx(3 / 5)


def test_overlap():
  maps = np.zeros((2, 10, 10))
  maps[:, 0] = 1  # The worst tenth is the first row.
  wrong = np.zeros((2, 10, 10), bool)
  wrong[0, 0, :5] = True  # fewer pixels than a tenth
  wrong[1, :4, :5] = True  # more
  np.testing.assert_allclose(study.overlap(maps, wrong), [1, 0.5])


def _table(rng, number, shift=0.0):
  values = rng.normal(shift, 1, (number, 8))
  features = rng.normal(shift, 1, (number, 4))
  return methods.Table(values, rng.normal(shift, 1, number), features)


def test_methods():
  """Far outliers are found by all that look at both sides."""
  names = ('asymmetry', 'bits', 'complexity', 'error', 'latent_distance')
  names += ('local_bits', 'local_distance', 'worst_error')
  rng = np.random.default_rng(0)
  train, val = _table(rng, 200), _table(rng, 100)
  combinations, baselines = methods.make(names, train, val)
  outliers = {'low': _table(rng, 50, -8), 'high': _table(rng, 50, 8)}
  found = methods.judge(combinations | baselines, _table(rng, 100), outliers)
  for name in combinations:
    assert found['low'][name][0] > 0.9 < found['high'][name][0], name
  assert found['high']['bits'] == (1, 1) and found['low']['bits'] == (0, 0)
  assert found['low']['bits, two-sided'][0] > 0.95


@pytest.mark.slow
def test_study(run_copy, tmp_path, monkeypatch):
  """Each kind has a row, and so have images of a folder."""
  monkeypatch.setattr(study, '_SETS', ((5, 1.0),))
  rng = np.random.default_rng(0)
  (tmp_path / 'unseen').mkdir()
  for i in range(3):
    pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / 'unseen' / f'{i}.png')
  run = run_lib.Run(run_copy)
  arguments = (run, epath.Path(tmp_path / 'study'), 'test', 4, 0)
  left_out = epath.Path(tmp_path / 'unseen')
  tables = study.study(*arguments, left_out=left_out)
  lines = [line for line in tables.splitlines() if '|' in line]
  rows = {line.split('|')[1].strip() for line in lines}
  assert {'hair, weak', 'photograph', 'left out', 'mean'} <= rows
  assert tables == study.study(*arguments, left_out=left_out)
