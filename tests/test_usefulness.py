"""Tests of experiments/usefulness."""

import collections
import json
import math

import numpy as np
import pytest
from etils import epath

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
    correct, np.zeros(len(lesions), int), lesions.astype(str), 1, num_draws=8000
  )[:, 0, 0]
  error = math.sqrt(p * (1 - p) / n)
  assert draws.mean() == pytest.approx(p, abs=4 * error / 8000**0.5)
  assert draws.std() == pytest.approx(error, rel=0.05)
  found = statistics.estimate(p, draws)
  assert found.low == pytest.approx(p - 1.96 * error, abs=0.006)
  assert found.high == pytest.approx(p + 1.96 * error, abs=0.006)


def test_bootstrap_draws_seeds_too():
  """Seeds that differ, lesions that do not: sd of the mean of drawn seeds."""
  correct = np.zeros((1, 4, 10), bool)
  correct[:, :2] = True
  draws = statistics.bootstrap_recalls(
    correct, np.zeros(10, int), list('abcdefghij'), 1, num_draws=8000
  )
  # s^2 / S of 1, 1, 0, 0.
  assert draws.std() == pytest.approx((1 / 3 / 4) ** 0.5, rel=0.05)


def test_differences_are_paired():
  rng = np.random.default_rng(0)
  correct = np.repeat(rng.integers(0, 2, (1, 2, 30)).astype(bool), 2, axis=0)
  labels, groups = rng.integers(0, 3, 30), [f'g{i}' for i in range(30)]
  draws = statistics.bootstrap_recalls(correct, labels, groups, 3)
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
  assert len(result['predicted']) == facts['num_val'] + facts['num_test']
  assert set(result['predicted']) <= set(range(7))
  for way in command.WAYS:
    assert f'| {way.replace("_", " ")} | 0.' in printed
  assert printed.count('not decided by one seed') == 4
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
  results = command.read_results(epath.Path(tmp_path))
  correct, labels, groups, names, num_folds = results
  assert correct.shape == (4, 1, 8) and num_folds == 2
  assert len(labels) == len(set(groups)) == 8
  text = command.table(*results)
  assert '| real | 0.750 [' in text
  assert '| oversampled | 1.000 [1.000, 1.000] |' in text
  assert '8 lesions and 1 seed(s), of 2' in text
  assert 'synthetic against real: not decided by one seed (-0.750' in text


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--table'], 'no fold is complete'),
    (['--folds=1'], 'give 2 or more'),
    (['--run=nowhere'], 'nowhere/vqvae holds no run'),
    ([], '--manual_dir=FOLDER'),
  ],
)
def test_mistakes(tmp_path, arguments, message, capsys):
  with pytest.raises(SystemExit):
    command.main([f'--workdir={tmp_path}', *arguments])
  assert message in capsys.readouterr().err
