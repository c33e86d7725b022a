"""Tests of the evaluation of a run."""

import json
import shutil

import numpy as np
import pytest
from skimage import metrics as skimage_metrics

import dermvq_jax
from dermvq_jax import errors
from dermvq_jax.data import prepared
from dermvq_jax.evaluation import (
  evaluate,
  feature_spaces,
  generation_metrics,
  memorisation,
)
from dermvq_jax.runs import logs, workdirs

IMAGES = 'synthetic_dermoscopy/smoke'


def test_measure_by_hand():
  likelihoods = -np.log(2) * np.asarray(
    [[10, 30, 99], [20, 10, 99], [50, 40, 99], [16, 12, 99]]
  )
  result = evaluate.measure_prior(
    likelihoods, np.asarray([0, 0, 0, 1]), ['a', 'b', 'c'], 4, 48
  )
  bits = (10 + 20 + 50 + 12) / 4
  assert result['num_images'] == 4
  assert result['nll_nats'] == pytest.approx(bits * np.log(2))
  assert result['bits_per_code'] == pytest.approx(bits / 4)
  assert result['bits_per_dim'] == pytest.approx(bits / 48)
  assert result['accuracy'] == 0.5
  assert result['balanced_accuracy'] == pytest.approx((1 / 3 + 1) / 2)
  assert result['confusion'] == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]
  a, b, c = result['classes'].values()
  assert a['bits_per_code'] == pytest.approx(80 / 3 / 4)
  assert a['recall'] == pytest.approx(1 / 3)
  assert (b['num_images'], b['recall']) == (1, 1)
  assert b['bits_per_dim'] == pytest.approx(12 / 48)
  assert c == {
    'num_images': 0,
    'nll_nats': None,
    'bits_per_code': None,
    'bits_per_dim': None,
    'recall': None,
  }


@pytest.fixture(scope='module')
def classifier_run(smoke_run, tmp_path_factory):
  """A run with a classifier, to be read only but for its report."""
  workdir = tmp_path_factory.mktemp('classifier') / 'run'
  return shutil.copytree(
    smoke_run, workdir, ignore=shutil.ignore_patterns('report')
  )


@pytest.fixture(scope='module')
def result(classifier_run):
  return evaluate.run(str(classifier_run), seed=3)


@pytest.fixture(scope='module')
def nearest(classifier_run, result):
  with np.load(classifier_run / 'report' / 'nearest_val.npz') as arrays:
    return dict(arrays)


def read(run, split):
  source = prepared.open_split(IMAGES, run / 'data', split)
  records = [source[i] for i in range(len(source))]
  return (
    np.stack([record['image'] for record in records]),
    np.asarray([record['label'] for record in records]),
  )


def test_run_without_samples(run_copy, caplog):
  """Nor a classifier; what an evaluation with both left is gone."""
  shutil.rmtree(run_copy / 'classifier')
  assert (run_copy / 'report' / 'nearest_val.npz').exists()
  caplog.set_level('INFO')
  result = evaluate.run(str(run_copy), num_samples=0)
  written = (run_copy / 'report' / 'evaluate_val.json').read_text()
  assert json.loads(written) == result
  assert f'{run_copy}/report/evaluate_val.json' in caplog.text
  assert not (run_copy / 'report' / 'nearest_val.npz').exists()
  assert 'memorisation' not in result and result['space'] is None
  _, facts = workdirs.load_config(run_copy / 'prior')
  assert (result['dataset'], result['split']) == (IMAGES, 'val')
  prior = result['prior']
  assert prior['dataset'] == facts['dataset']
  source = prepared.open_split(facts['dataset'], run_copy / 'data', 'val')
  records = [source[i] for i in range(len(source))]
  codes = np.stack([record['codes'] for record in records])
  labels = np.asarray([record['label'] for record in records])
  model = dermvq_jax.load(run_copy)
  nll = -model.log_likelihood(codes, labels)
  assert prior['nll_nats'] == pytest.approx(nll.mean(), rel=1e-5)
  # As the training loop has it, of the weights that it found best.
  best = min(
    row['val/bits_per_code']
    for row in logs.read(run_copy / 'prior')
    if 'val/bits_per_code' in row
  )
  assert prior['bits_per_code'] == pytest.approx(best, rel=1e-5)
  assert prior['bits_per_dim'] == pytest.approx(best * 16 / (16 * 16 * 3))
  # The images themselves, which are stored in another order.
  source = prepared.open_split(IMAGES, run_copy / 'data', 'val')
  images = {source[i]['id']: source[i]['image'] for i in range(len(source))}
  images = np.stack([images[record['id']] for record in records])
  right = model.classify(images).argmax(1) == labels
  assert prior['accuracy'] == pytest.approx(right.mean())
  assert sum(map(sum, prior['confusion'])) == len(labels)
  for label, name in enumerate(model.class_names):
    mine, row = labels == label, prior['classes'][name]
    assert row['num_images'] == mine.sum()
    if mine.any():
      assert row['nll_nats'] == pytest.approx(nll[mine].mean(), rel=1e-5)
      assert row['recall'] == pytest.approx(right[mine].mean())
      assert f'{row["bits_per_code"]:.4f}' in caplog.text
  # As the training loop has it, but for the rounding to uint8.
  best = min(
    row['val/mse'] for row in logs.read(run_copy / 'vqvae') if 'val/mse' in row
  )
  assert result['reconstruction']['mse'] == pytest.approx(best, rel=2e-3)
  assert result['reconstruction']['psnr'] == pytest.approx(
    -10 * np.log10(result['reconstruction']['mse'])
  )
  _, facts = workdirs.load_config(run_copy / 'vqvae')
  assert result['reconstruction']['nmse'] == pytest.approx(
    result['reconstruction']['mse'] / facts['train_variance']
  )
  ssim = [
    skimage_metrics.structural_similarity(
      a,
      b,
      gaussian_weights=True,
      sigma=1.5,
      use_sample_covariance=False,
      channel_axis=-1,
    )
    for a, b in zip(images, model.reconstruct(images))
  ]
  assert result['reconstruction']['ssim'] == pytest.approx(
    np.mean(ssim), abs=2e-3
  )


def test_generation(classifier_run, result):
  assert result['space'] == 'classifier'
  generation = result['generation']
  model = dermvq_jax.load(classifier_run)
  space = feature_spaces.Classifier(classifier_run)
  real, _ = read(classifier_run, 'val')
  floor, labels = read(classifier_run, 'test')
  assert generation['num_real'] == len(real)
  assert generation['num_features'] == 16
  assert generation['floor_split'] == 'test'
  assert generation['classes'] == {}  # None has 100 images.
  sets = generation['sets']
  expected = {
    'real': floor,
    'reconstructions': model.reconstruct(real),
    'real_codes': model.reconstruct(floor),
  }
  for name, images in expected.items():
    assert sets[name] == pytest.approx(
      generation_metrics.compare(space(real), space(images)), rel=1e-4
    )
  # One sample for each image of the other split, of its class.
  samples = model.sample(np.sort(labels), seed=3)
  assert sets['samples'] == pytest.approx(
    generation_metrics.compare(space(real), space(samples)), rel=1e-3, abs=1e-9
  )
  assert sets['independent_codes']['num_images'] == len(floor)
  assert generation['kid_over_independent'] == pytest.approx(
    sets['samples']['kid'] / sets['independent_codes']['kid']
  )


def test_labels(classifier_run, result):
  real, labels = read(classifier_run, 'val')
  predicted = feature_spaces.Classifier(classifier_run).predict(real)
  told = result['labels']['real']
  recalls = [(predicted == c)[labels == c].mean() for c in np.unique(labels)]
  assert told['balanced_accuracy'] == pytest.approx(np.mean(recalls))
  assert told['num_images'] == len(real)
  samples = result['labels']['samples']
  assert samples['num_images'] >= 7 * 25
  assert None not in samples['recalls'].values()
  assert result['labels']['samples_over_real'] == pytest.approx(
    samples['balanced_accuracy'] / told['balanced_accuracy']
  )


class _Oracle:
  """A classifier that reads the class from the image; 3 is no image's."""

  class_names = ('a', 'b', 'c', 'd')

  def predict(self, images):
    return images[:, 0, 0, 0]


def _showing(*seen):
  return np.uint8(seen)[:, None, None, None]


def test_samples_over_real_is_of_the_classes_that_both_have():
  real = _showing(0, 3, 1, 3), np.array([0, 0, 1, 1])
  made = _showing(0, 3, 1, 3, 3, 3), np.array([0, 0, 1, 1, 2, 2])
  sets = {'real': real, 'reconstructions': real, 'samples': made}
  result = evaluate.measure_labels(_Oracle(), sets)
  assert result['real']['recalls'] == {
    'a': 0.5,
    'b': 0.5,
    'c': None,
    'd': None,
  }
  assert result['samples']['balanced_accuracy'] == pytest.approx(1 / 3)
  assert result['samples_over_real'] == 1
  sets['real'] = _showing(3, 3), np.array([0, 1])
  result = evaluate.measure_labels(_Oracle(), sets)
  assert result['samples_over_real'] is None


def test_features_that_are_all_the_same(classifier_run):
  result = evaluate.run(
    classifier_run,
    'test',
    space=lambda images: np.ones((len(images), 2)),
    num_samples=10,
  )
  assert result['generation']['kid_over_independent'] is None


def test_memorisation(classifier_run, result, nearest):
  told = result['memorisation']
  _, facts = workdirs.load_config(classifier_run / 'vqvae')
  assert told['num_train'] == facts['num_train']
  assert told['num_held_out'] == facts['num_val'] + facts['num_test']
  model = dermvq_jax.load(classifier_run)
  names = [model.class_names[label] for label in nearest['label']]
  samples = model.sample(names, ids=nearest['sample_id'], seed=3)
  assert told['num_samples'] == len(samples) == facts['num_test']
  train_images, _ = read(classifier_run, 'train')
  held_out = [read(classifier_run, split)[0] for split in ('val', 'test')]
  banks = {'train': train_images, 'held_out': np.concatenate(held_out)}
  for space in ('pixels', 'features'):
    row = told['spaces'][space]
    ratios, order = nearest[f'{space}_ratio'], nearest[f'{space}_closest']
    assert (np.diff(ratios[order]) >= 0).all()
    assert row['num_copied'] == (ratios < row['threshold']).sum()
    assert row['num_copied'] == nearest[f'{space}_copied'].sum()
    closer = (
      nearest[f'{space}_train_distance'] < nearest[f'{space}_held_out_distance']
    )
    assert row['share_closer_to_train'] == pytest.approx(closer.mean())
    np.testing.assert_array_equal(
      nearest[f'{space}_closest_samples'], samples[order]
    )
    for bank, images in banks.items():
      index = nearest[f'{space}_{bank}_index'][order]
      np.testing.assert_array_equal(
        nearest[f'{space}_closest_{bank}'], images[index]
      )
  found = memorisation.nearest_pixels(
    samples,
    memorisation.describe(train_images),
    np.arange(len(train_images)),
  )
  np.testing.assert_allclose(found.ratio, nearest['pixels_ratio'], rtol=1e-4)


def test_run_tells_and_writes_it_all(classifier_run, caplog):
  def brightness(images):
    return images.reshape(len(images), -1, 3).mean(1)

  caplog.set_level('INFO')
  path = classifier_run / 'report' / 'evaluate_test.json'
  result = evaluate.run(
    classifier_run, 'test', space=brightness, num_samples=10, temperature=0.5
  )
  assert json.loads(path.read_text()) == result
  assert result['space'] == 'brightness'
  assert result['controls']['temperature'] == 0.5
  assert result['generation']['num_features'] == 3
  assert result['generation']['sets']['samples']['num_images'] == 10
  for text in ('samples', 'independent codes', 'balanced', 'look copied'):
    assert text in caplog.text


def test_classifier_of_other_images(classifier_run, tmp_path):
  workdir = tmp_path / 'run'
  for phase in ('vqvae', 'prior', 'classifier'):
    shutil.copytree(classifier_run / phase, workdir / phase)
  path = workdir / 'classifier' / 'config.json'
  path.write_text(path.read_text().replace(f'"{IMAGES}"', '"others/64"'))
  with pytest.raises(errors.UserError, match='move .*classifier away'):
    evaluate.run(workdir, data_dir=f'{classifier_run}/data')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'num_samples': 9}, '9 samples: give --num_samples from 10 to'),
    ({'num_samples': 1000}, 'from 10 to'),
    ({'top_p': 2.0}, 'top_p is 2.0'),
    ({'space': lambda images: images, 'num_samples': 10}, 'must be'),
    (
      {'space': lambda x: np.full((len(x), 2), np.nan), 'num_samples': 10},
      'finite',
    ),
  ],
)
def test_mistakes(classifier_run, arguments, message):
  with pytest.raises(errors.UserError, match=message):
    evaluate.run(classifier_run, **arguments)


def test_too_few_images(classifier_run, monkeypatch):
  monkeypatch.setattr(evaluate, '_MIN_SAMPLES', 14)  # 13 in val and in test
  with pytest.raises(errors.UserError, match='has 13; give --num_samples=0'):
    evaluate.run(classifier_run)


def test_a_result_is_current_while_the_weights_are(run_copy):
  assert evaluate.current_result(run_copy)['split'] == 'val'
  assert evaluate.current_result(run_copy, 'test') is None
  [best] = (run_copy / 'prior' / 'best').iterdir()
  best.rename(best.with_name('5'))  # as another training has it
  assert evaluate.current_result(run_copy) is None
  shutil.rmtree(run_copy / 'prior')
  assert evaluate.current_result(run_copy) is None


def test_independent_codes():
  codes = np.arange(3 * 2 * 2).reshape(3, 2, 2)
  drawn = evaluate.independent_codes(codes, 4000, np.random.default_rng(0))
  assert drawn.shape == (4000, 2, 2)
  for i, j in np.ndindex(2, 2):
    values, counts = np.unique(drawn[:, i, j], return_counts=True)
    np.testing.assert_array_equal(values, codes[:, i, j])
    np.testing.assert_allclose(counts / 4000, 1 / 3, atol=0.04)
  # Independently: pairs of positions hold every pair.
  pairs = np.unique(drawn[:, 0], axis=0)
  assert len(pairs) == 9
