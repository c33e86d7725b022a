"""Tests of experiments/usefulness."""

import collections
import json
import math

import numpy as np
import pytest
from etils import epath

from dermvq_jax import errors
from dermvq_jax.data import prepared
from experiments.usefulness import __main__ as command
from experiments.usefulness import folds, statistics


def _images(labels):
  """Images that tell their own number."""
  numbers = np.arange(len(labels), dtype=np.uint8)
  return {
    'image': np.broadcast_to(
      numbers[:, None, None, None], (len(labels), 2, 2, 3)
    ),
    'label': np.array(labels),
  }


def test_compose():
  real = _images([0, 0, 0, 1, 2, 2])
  new = np.full((3, 3, 2, 2, 3), 100, np.uint8)
  new += np.arange(9, dtype=np.uint8).reshape(3, 3, 1, 1, 1)
  made = {way: command.compose(way, real, new) for way in command.WAYS}
  told = {
    way: list(zip(m['image'][:, 0, 0, 0].tolist(), m['label'].tolist()))
    for way, m in made.items()
  }
  before = [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (5, 2)]
  assert told['real'] == before
  assert collections.Counter(told['oversampled']) == collections.Counter(
    [*before, (3, 1), (3, 1), (4, 2)]
  )
  # What a class lacks comes from its own samples.
  assert told['real_and_synthetic'] == [*before, (103, 1), (104, 1), (106, 2)]
  assert told['synthetic'] == [(100 + i, i // 3) for i in range(9)]
  assert told['oversampled_and_synthetic'] == (
    told['oversampled'] + told['synthetic']
  )


@pytest.mark.parametrize('way', command.WAYS)
def test_classes_that_no_prior_saw_are_not_made_up(way):
  made = command.compose(
    way, _images([0, 0, 0, 1]), np.zeros((3, 3, 2, 2, 3), np.uint8)
  )
  assert set(made['label']) == {0, 1}
  assert len(made['image']) == len(made['label'])


def test_recalls():
  labels = np.array([0, 0, 1, 1, 1])
  correct = np.array([[[1, 0, 1, 1, 0], [1, 1, 0, 0, 0]]], bool)
  found = statistics.recalls(correct, labels, 3)
  np.testing.assert_allclose(found, [[3 / 4, 2 / 6, np.nan]])


@pytest.mark.parametrize('images_a_lesion', [1, 4])
def test_bootstrap_is_that_of_a_share(images_a_lesion):
  """Of n lesions of equal images: normal with the variance p (1 - p) / n."""
  n, p = 200, 0.3
  lesions = np.repeat(np.arange(n), images_a_lesion)
  correct = (lesions < p * n)[None, None]
  draws = statistics.bootstrap_recalls(
    correct,
    np.zeros(len(lesions), int),
    lesions.astype(str),
    lesions % 2,
    1,
    num_draws=8000,
  )[:, 0, 0]
  error = math.sqrt(p * (1 - p) / n)
  assert draws.mean() == pytest.approx(p, abs=4 * error / 8000**0.5)
  assert draws.std() == pytest.approx(error, rel=0.05)
  found = statistics.estimate(p, draws)
  assert found.low == pytest.approx(p - 1.96 * error, abs=0.006)
  assert found.high == pytest.approx(p + 1.96 * error, abs=0.006)


@pytest.mark.parametrize('num_folds', [1, 5])
def test_bootstrap_draws_seeds_too(num_folds):
  """Seeds that differ, lesions that do not: sd of the mean of drawn seeds.

  Folds have seeds of their own.
  """
  correct = np.zeros((1, 4, 20), bool)
  correct[:, :2] = True
  draws = statistics.bootstrap_recalls(
    correct,
    np.zeros(20, int),
    [str(i) for i in range(20)],
    np.arange(20) % num_folds,
    1,
    num_draws=8000,
  )
  # s^2 / S of 1, 1, 0, 0, in each fold. Its share of the lesions is drawn too,
  # which adds 1/19 to the folds' sum of squared shares.
  shares = 1 / num_folds + (1 - 1 / num_folds) / 19
  assert draws.std() == pytest.approx((1 / 3 / 4 * shares) ** 0.5, rel=0.05)


def test_bootstrap_of_lesions_and_seeds_is_wide_enough():
  """At least the sd of the mean over data drawn anew, and not much more."""
  rng = np.random.default_rng(0)
  means, found = [], []
  for _ in range(200):
    lesions, seeds = rng.normal(size=60), 0.3 * rng.normal(size=(3, 1))
    correct = lesions + seeds + rng.normal(size=(3, 60)) > 0
    means.append(correct.mean())
    draws = statistics.bootstrap_recalls(
      correct[None],
      np.zeros(60, int),
      [str(i) for i in range(60)],
      np.zeros(60, int),
      1,
      num_draws=200,
    )
    found.append(draws.var())
  assert 0.95 < np.mean(found) ** 0.5 / np.std(means) < 1.4


def test_differences_are_paired():
  rng = np.random.default_rng(0)
  correct = np.repeat(rng.integers(0, 2, (1, 2, 30)).astype(bool), 2, axis=0)
  labels, groups = rng.integers(0, 3, 30), [f'g{i}' for i in range(30)]
  draws = statistics.bootstrap_recalls(
    correct, labels, groups, np.zeros(30, int), 3
  )
  np.testing.assert_allclose(draws[:, 0], draws[:, 1])
  assert draws[:, 0].std(0).min() > 0


@pytest.mark.parametrize(
  ('low', 'high', 'said'),
  [
    (-0.01, 0.05, 'no difference shown'),
    (0.0, 0.05, 'no difference shown'),
    (0.01, 0.05, 'better'),
    (-0.05, -0.01, 'worse'),
  ],
)
def test_conclusions(low, high, said):
  told = statistics.conclude('a', 'b', statistics.Estimate(0.02, low, high), 3)
  assert told.startswith(f'a against b: {said} (+0.020, 95% [')
  told = statistics.conclude('a', 'b', statistics.Estimate(0.02, low, high), 1)
  assert told.startswith('a against b: not decided by one seed (')


def test_folds_hold_out_every_lesion_once():
  rng = np.random.default_rng(0)
  lesion = rng.integers(0, 120, 300)  # of several images each
  groups = [f'lesion_{i}' for i in lesion]
  labels = [('a', 'b', 'c')[i % 12 // 5] for i in lesion]
  out = [folds.assign(groups, labels, i, 5) for i in range(5)]
  for splits in out:
    by_split = {
      split: {g for g, s in zip(groups, splits) if s == split}
      for split in ('train', 'val', 'test')
    }
    assert all(by_split.values())
    assert sum(map(len, by_split.values())) == len(set(groups))  # disjoint
    for name in 'abc':
      of_class = {g for g, label in zip(groups, labels) if label == name}
      share = len(by_split['test'] & of_class) / len(of_class)
      assert share == pytest.approx(1 / 5, abs=1 / len(of_class))
  held_out = [splits.count('test') for splits in out]
  assert sum(held_out) == len(groups)
  assert all(
    sum(splits[i] == 'test' for splits in out) == 1 for i in range(len(groups))
  )


@pytest.mark.parametrize('size', [2, 9])
def test_small_classes_keep_their_lesions_for_training(size):
  groups = [str(i) for i in range(size)]
  for i in range(5):
    assert 'val' not in folds.assign(groups, ['rare'] * size, i, 5)


def test_a_fold_is_the_dataset_divided_anew(smoke_run, tmp_path):
  original = epath.Path(smoke_run / 'data')
  data_dir = tmp_path / 'data'
  data_dir.mkdir()
  (data_dir / 'synthetic_dermoscopy').symlink_to(
    smoke_run / 'data' / 'synthetic_dermoscopy'
  )
  name = folds.prepare_fold('synthetic_dermoscopy/smoke', data_dir, 0, 2)
  assert name == 'folds/synthetic_dermoscopy_smoke_1of2'
  facts = prepared.describe(name, data_dir)
  before = prepared.describe('synthetic_dermoscopy/smoke', original)
  assert facts['class_names'] == before['class_names']

  def records(dataset, folder):
    return {
      r['id']: (r['label'], r['group'], r['image'].tobytes(), split)
      for split in ('train', 'val', 'test')
      for r in prepared.open_split(dataset, folder, split)
    }

  new, old = (
    records(name, data_dir),
    records('synthetic_dermoscopy/smoke', original),
  )
  assert {k: v[:3] for k, v in new.items()} == {
    k: v[:3] for k, v in old.items()
  }
  assert sum(v[3] == 'test' for v in new.values()) == facts['num_test']
  assert abs(facts['num_test'] - len(new) / 2) <= len(facts['class_names'])


def test_a_generator_sees_its_fold_only(tmp_path, monkeypatch):
  trained = []
  monkeypatch.setattr(folds, 'prepare_fold', lambda *args: 'folds/x_1of5')
  monkeypatch.setattr(folds.encode, 'run', lambda folder: None)
  monkeypatch.setattr(
    folds.train,
    'run',
    lambda config, folder: trained.append((config.task, config.dataset)),
  )
  fold = folds.make_fold(
    epath.Path(tmp_path), 'ham10000/64', tmp_path, 0, 5, 'full'
  )
  # Codes are those of the VQ-VAE in the folder.
  assert trained == [('vqvae', 'folds/x_1of5'), ('prior', 'codes')]
  assert (fold.dataset, fold.held_out) == ('folds/x_1of5', ('test',))


@pytest.mark.slow
def test_one_command(smoke_run, tmp_path, capsys, monkeypatch):
  arguments = [f'--workdir={tmp_path}', '--size=smoke', f'--run={smoke_run}']
  command.main(arguments)
  printed = capsys.readouterr().out
  results = sorted((tmp_path / 'results' / 'run').iterdir())
  assert [p.stem for p in results] == sorted(f'{w}_0' for w in command.WAYS)
  result = json.loads(results[0].read_text())
  facts = prepared.describe('synthetic_dermoscopy/smoke', smoke_run / 'data')
  assert len(result['predicted']) == facts['num_test']
  assert set(result['predicted']) <= set(range(7))
  for way in command.WAYS:
    assert f'| {way.replace("_", " ")} | 0.' in printed
  assert printed.count('not decided by one seed') == 5
  assert (tmp_path / 'usefulness.md').read_text().strip() in printed

  with pytest.raises(SystemExit):
    command.main([*arguments, '--guidance_scale=2'])
  assert 'was started with guidance_scale 1.0, not 2.0' in (
    capsys.readouterr().err
  )

  def fail(*unused_args):
    raise AssertionError('it was done')

  monkeypatch.setattr(command, 'Trainer', fail)
  command.main(arguments)
  assert capsys.readouterr().out == printed[printed.index('| trained on') :]


def test_numbers_of_the_table(tmp_path):
  """Two folds, one of which has only its first seed."""
  predicted = {'real': [0, 1, 1, 1], 'oversampled': [0, 0, 1, 1]}
  for fold, seeds in (('a', 2), ('b', 1)):
    for way in command.WAYS:
      for seed in range(seeds):
        path = tmp_path / fold / f'{way}_{seed}.json'
        path.parent.mkdir(exist_ok=True)
        result = {
          'class_names': ['x', 'y'],
          'label': [0, 0, 1, 1],
          'group': [fold + str(i) for i in range(4)],
          'predicted': predicted.get(way, [1, 1, 0, 0]),
        }
        path.write_text(json.dumps(result))
  results = command.read_results(epath.Path(tmp_path), list(command.WAYS))
  assert results.correct.shape == (5, 1, 8)
  assert results.folds.tolist() == [0] * 4 + [1] * 4
  assert len(results.labels) == len(set(results.groups)) == 8
  text = command.table(results)
  assert '| real | 0.750 [' in text
  assert '| oversampled | 1.000 [1.000, 1.000] |' in text
  assert '8 lesions and 1 seed(s) of the classifier, of 2 fold(s)' in text
  assert 'synthetic against real: not decided by one seed (-0.750' in text
  # Of some ways all seeds are shown that these have.
  (tmp_path / 'b' / 'real_1.json').write_text(path.read_text())
  some = command.read_results(epath.Path(tmp_path), ['real'])
  assert some.correct.shape == (1, 2, 8)
  assert ' against ' not in command.table(some)


def test_lesions_in_several_splits_are_refused(tmp_path, monkeypatch):
  images = _images([0, 1]) | {'group': np.array(['a', 'b'])}
  fold = folds.Fold('run', tmp_path, 'mine/64', tmp_path, ('test',))
  monkeypatch.setattr(folds.Fold, 'read', lambda *_: images)
  with pytest.raises(errors.UserError, match='one lesion in several splits'):
    command.run_fold(fold, epath.Path(tmp_path), 'smoke', ['real'], 1, 1.0)


def test_a_run_that_is_trained_anew_is_another(run_copy, tmp_path, capsys):
  def check():
    args = command._parser().parse_args(
      [f'--workdir={tmp_path}', f'--run={run_copy}']
    )
    command._check_settings(args)

  check()
  check()
  [best] = (run_copy / 'prior' / 'best').iterdir()
  best.rename(best.with_name('5'))
  with pytest.raises(errors.UserError, match='was started with weights'):
    check()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--table'], 'no fold is complete'),
    (['--folds=1'], 'give 2 or more'),
    (['--run=nowhere'], 'nowhere/vqvae holds no run'),
    ([], '--manual_dir=FOLDER'),
    (['--ways=real,unreal'], '--ways are some of real,oversampled'),
  ],
)
def test_mistakes(tmp_path, arguments, message, capsys):
  with pytest.raises(SystemExit):
    command.main([f'--workdir={tmp_path}', *arguments])
  assert message in capsys.readouterr().err
