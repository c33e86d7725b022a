"""The study of usefulness: its statistics, folds and queue."""

import collections
import json
import math
import re
import types

import jax
import numpy as np
import pytest
from etils import epath

from dermvq_jax import errors
from dermvq_jax.data import prepared
from dermvq_jax.runs import run as run_lib
from experiments.usefulness import __main__ as command
from experiments.usefulness import classifiers, folds, results, statistics


def _images(labels):
  """Returns images whose pixels are their own number."""
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
  made = {way: classifiers.compose(way, real, new) for way in classifiers.WAYS}
  found = {
    way: list(zip(m['image'][:, 0, 0, 0].tolist(), m['label'].tolist()))
    for way, m in made.items()
  }
  before = [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (5, 2)]
  assert found['real'] == before
  assert collections.Counter(found['oversampled']) == collections.Counter(
    [*before, (3, 1), (3, 1), (4, 2)]
  )
  # Each class is topped up with its own samples.
  assert found['real_and_synthetic'] == [*before, (103, 1), (104, 1), (106, 2)]
  assert found['synthetic'] == [(100 + i, i // 3) for i in range(9)]
  assert found['oversampled_and_synthetic'] == (
    found['oversampled'] + found['synthetic']
  )


@pytest.mark.parametrize('way', classifiers.WAYS)
def test_classes_without_real_images_get_no_samples(way):
  made = classifiers.compose(
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
  """Equal images of n lesions: normal, with the variance p (1 - p) / n."""
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
def test_bootstrap_samples_seeds_too(num_folds):
  """Seeds differ and lesions do not: standard deviation of a mean of seeds.

  Each fold has its own seeds.
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
  # s^2 / S of 1, 1, 0, 0 in each fold. The fold's share of the lesions is
  # random too, which adds 1/19 to the sum of the squared shares.
  shares = 1 / num_folds + (1 - 1 / num_folds) / 19
  assert draws.std() == pytest.approx((1 / 3 / 4 * shares) ** 0.5, rel=0.05)


def test_bootstrap_of_lesions_and_seeds_is_wide_enough():
  """At least the standard deviation over new data, and not much more."""
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
  difference = statistics.Estimate(0.02, low, high)
  text = statistics.conclude('a', 'b', difference, 3)
  assert text.startswith(f'a against b: {said} (+0.020, 95% [')
  text = statistics.conclude('a', 'b', difference, 1)
  assert text.startswith('a against b: not decided by one seed (')


def test_a_fold_has_all_images_of_the_dataset(smoke_run, tmp_path):
  name = 'synthetic_dermoscopy/smoke'
  data_dir = tmp_path / 'data'
  data_dir.mkdir()
  (data_dir / 'synthetic_dermoscopy').symlink_to(
    smoke_run / 'data' / 'synthetic_dermoscopy'
  )
  dataset = prepared.Dataset(name, data_dir)
  fold = folds.prepare_fold(dataset, 0, 2)
  match = r'folds/synthetic_dermoscopy_smoke_[0-9a-f]{8}_1of2'
  assert re.fullmatch(match, fold.name)
  assert fold.facts['class_names'] == dataset.facts['class_names']

  def records(dataset):
    return {
      r['id']: (r['label'], r['group'], r['image'].tobytes(), split)
      for split in ('train', 'val', 'test')
      for r in dataset.split(split)
    }

  new, old = records(fold), records(dataset)
  assert {k: v[:3] for k, v in new.items()} == {
    k: v[:3] for k, v in old.items()
  }
  num_test = fold.facts['num_test']
  assert sum(v[3] == 'test' for v in new.values()) == num_test
  assert abs(num_test - len(new) / 2) <= len(fold.facts['class_names'])


def test_a_fold_of_other_images_has_another_name(monkeypatch):
  monkeypatch.setattr(folds.prepare, 'write', lambda make: None)

  def name(**fingerprint):
    dataset = types.SimpleNamespace(
      name='x/64',
      data_dir='data',
      facts={
        'class_names': ['a'],
        'image_size': 64,
        'fingerprint': fingerprint,
      },
      split=lambda *args, **kwargs: [],
    )
    return folds.prepare_fold(dataset, 0, 2).name

  assert name(train='1', val='2') == name(val='2', train='1')
  assert name(train='1', val='2') != name(train='1', val='3')


def test_a_generator_trains_on_its_fold(tmp_path, monkeypatch):
  trained = []
  monkeypatch.setattr(
    folds,
    'prepare_fold',
    lambda *_: prepared.Dataset('folds/x_1of5', tmp_path),
  )
  monkeypatch.setattr(folds.encode, 'encode', lambda run: None)

  def train(config, run):
    trained.append((config.task, config.dataset, config.data_dir))

  monkeypatch.setattr(folds.loop, 'train', train)
  dataset = prepared.Dataset('ham10000/64', tmp_path)
  fold = folds.make_fold(epath.Path(tmp_path), dataset, 0, 5, 'full')
  # 'codes' are the codes of the VQ-VAE in the run.
  assert trained == [
    ('vqvae', 'folds/x_1of5', str(tmp_path)),
    ('prior', 'codes', ''),
  ]
  assert fold.name == fold.run.workdir.name == 'fold_1of5'


def test_classifiers_of_several_seeds_compile_once(monkeypatch):
  facts = {
    'dataset': 'x/16',
    'class_names': ['a', 'b'],
    'image_size': 16,
    'num_train': 100,
  }
  compiled, starts = [], []
  trainer = classifiers.trainer_lib.Trainer
  compile_train_step, start = trainer.compile_train_step, trainer.start

  def compile_once(self):
    compiled.append(self.config.num_train_steps)
    return compile_train_step(self)

  def start_with(self, rng):
    tree = start(self, rng)
    leaves = jax.tree.leaves(tree['state'].params)
    starts.append(np.concatenate([leaf.ravel() for leaf in leaves]))
    return tree

  monkeypatch.setattr(trainer, 'compile_train_step', compile_once)
  monkeypatch.setattr(trainer, 'start', start_with)
  rng = np.random.default_rng(0)
  labels = np.arange(20) % 2
  images = {
    'image': rng.integers(0, 99, (20, 16, 16, 3), np.uint8)
    + (150 * labels[:, None, None, None]).astype(np.uint8),
    'label': labels,
  }
  made = classifiers.Classifiers(facts, 'smoke')
  for way, seed in (('real', 0), ('real', 1), ('synthetic', 0)):
    predicted = made.train(images, way, seed)(images['image'])
    assert predicted.shape == (20,) and set(predicted) <= {0, 1}
  assert compiled == [4]
  assert not np.array_equal(starts[0], starts[1])
  np.testing.assert_array_equal(starts[0], starts[2])


def test_a_training_that_diverges_is_an_error(monkeypatch):
  load = classifiers.common.load_config

  def load_config(*args, **kwargs):
    return load(*args, 'optim.learning_rate=1e38', **kwargs)

  monkeypatch.setattr(classifiers.common, 'load_config', load_config)
  images = {
    'image': np.zeros((16, 16, 16, 3), np.uint8),
    'label': np.arange(16) % 2,
  }
  facts = {'dataset': 'x', 'class_names': ['a', 'b'], 'image_size': 16}
  made = classifiers.Classifiers(facts, 'smoke')
  with pytest.raises(errors.UserError, match='of real 0 became infinite'):
    made.train(images, 'real', 0)


@pytest.mark.slow
def test_one_command(smoke_run, tmp_path, capsys, monkeypatch):
  arguments = [f'--workdir={tmp_path}', '--size=smoke', f'--run={smoke_run}']
  command.main(arguments)
  printed = capsys.readouterr().out
  files = sorted((tmp_path / 'results' / 'run').iterdir())
  assert [p.stem for p in files] == sorted(f'{w}_0' for w in classifiers.WAYS)
  result = json.loads(files[0].read_text())
  num_test = run_lib.Run(smoke_run).images.facts['num_test']
  assert len(result['predicted']) == num_test
  assert set(result['predicted']) <= set(range(7))
  for way in classifiers.WAYS:
    assert f'| {way.replace("_", " ")} | 0.' in printed
  assert printed.count('not decided by one seed') == 5
  assert (tmp_path / 'usefulness.md').read_text().strip() in printed

  with pytest.raises(SystemExit):
    command.main([*arguments, '--guidance_scale=2'])
  assert 'was started with guidance_scale 1.0, not 2.0' in (
    capsys.readouterr().err
  )

  def fail(*unused_args):
    raise AssertionError('it was trained already')

  monkeypatch.setattr(classifiers.Classifiers, 'train', fail)
  command.main(arguments)
  assert capsys.readouterr().out == printed[printed.index('| trained on') :]


def test_numbers_of_the_table(tmp_path):
  """Two folds, one of which has only its first seed."""
  predicted = {'real': [0, 1, 1, 1], 'oversampled': [0, 0, 1, 1]}
  for fold, seeds in (('a', 2), ('b', 1)):
    for way in classifiers.WAYS:
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
  found = results.read(epath.Path(tmp_path), list(classifiers.WAYS))
  assert found.correct.shape == (5, 1, 8)
  assert found.folds.tolist() == [0] * 4 + [1] * 4
  assert len(found.labels) == len(set(found.groups)) == 8
  text = results.table(found)
  assert '| real | 0.750 [' in text
  assert '| oversampled | 1.000 [1.000, 1.000] |' in text
  assert '8 lesions and 1 seed(s) of the classifier, in 2 fold(s)' in text
  assert 'synthetic against real: not decided by one seed (-0.750' in text
  # With some of the ways, all of their seeds count.
  (tmp_path / 'b' / 'real_1.json').write_text(path.read_text())
  some = results.read(epath.Path(tmp_path), ['real'])
  assert some.correct.shape == (1, 2, 8)
  assert ' against ' not in results.table(some)


def test_lesions_in_several_splits_are_refused(tmp_path, monkeypatch):
  images = _images([0, 1]) | {'group': np.array(['a', 'b'])}
  run = run_lib.Run(tmp_path)
  run.images = prepared.Dataset('mine/64', tmp_path)
  monkeypatch.setattr(folds.Fold, 'read', lambda *_: images)
  with pytest.raises(errors.UserError, match='one lesion in several splits'):
    command.read_fold(folds.Fold('run', run), epath.Path(tmp_path), 1.0)


def test_a_run_that_was_trained_again_is_another(run_copy, tmp_path, capsys):
  def check():
    args = command.make_parser().parse_args(
      [f'--workdir={tmp_path}', f'--run={run_copy}']
    )
    command.check_settings(args)

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
    (['--ways=real,unreal'], '--ways: give some of real,oversampled'),
  ],
)
def test_mistakes(tmp_path, arguments, message, capsys):
  with pytest.raises(SystemExit):
    command.main([f'--workdir={tmp_path}', *arguments])
  assert message in capsys.readouterr().err
