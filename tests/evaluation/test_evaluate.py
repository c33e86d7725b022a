"""Tests of the evaluation of a run."""

import collections
import shutil

import jax
import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from dermvq_jax import errors, inference, main
from dermvq_jax.data import prepared
from dermvq_jax.evaluation import evaluate, results
from dermvq_jax.models import build
from dermvq_jax.runs import checkpoints
from dermvq_jax.runs import run as run_lib

IMAGES = 'synthetic_dermoscopy/smoke'


def test_an_interrupted_evaluation_removes_nothing(run_copy, monkeypatch):
  before = {p: p.read_bytes() for p in (run_copy / 'report').iterdir()}

  def interrupt(*args, **kwargs):
    raise KeyboardInterrupt

  monkeypatch.setattr(evaluate.sample_measures, 'measure_samples', interrupt)
  with pytest.raises(KeyboardInterrupt):
    evaluate.evaluate(run_lib.Run(run_copy), num_samples=10)
  assert before == {p: p.read_bytes() for p in (run_copy / 'report').iterdir()}


def test_without_samples_and_classifier(run_copy, caplog):
  """Everything else is measured; files of an earlier evaluation are removed."""
  shutil.rmtree(run_copy / 'classifier')
  assert (run_copy / 'report' / 'nearest_val.npz').exists()
  caplog.set_level('INFO')
  run = run_lib.Run(run_copy)
  result = evaluate.evaluate(run, num_samples=0)
  assert evaluate.current_result(run) == result
  assert f'{run_copy}/report/evaluate_val.json' in caplog.text
  assert not (run_copy / 'report' / 'nearest_val.npz').exists()
  assert result.generation is result.labels is result.memorisation is None
  assert result.space is None
  assert (result.dataset, result.split) == (IMAGES, 'val')
  prior = result.prior
  assert prior.dataset == run.codes.name
  records = list(run.codes.split('val'))
  codes = np.stack([record['codes'] for record in records])
  labels = np.asarray([record['label'] for record in records])
  model = inference.Model(run)
  nll = -model.log_likelihood(codes, labels)
  assert prior.nll_nats == pytest.approx(nll.mean(), rel=1e-5)
  # The training loop has the same value at the weights that it kept.
  best = min(
    row['val/bits_per_code']
    for row in run.prior.metrics()
    if 'val/bits_per_code' in row
  )
  assert prior.bits_per_code == pytest.approx(best, rel=1e-5)
  assert prior.bits_per_dim == pytest.approx(best * 16 / (16 * 16 * 3))
  # The images are stored in another order.
  images = {r['id']: r['image'] for r in run.images.split('val')}
  images = np.stack([images[record['id']] for record in records])
  right = model.classify(images).log_probs.argmax(1) == labels
  assert prior.accuracy == pytest.approx(right.mean())
  assert sum(map(sum, prior.confusion)) == len(labels)
  for label, name in enumerate(model.class_names):
    mine, row = labels == label, prior.classes[name]
    assert row.num_images == mine.sum()
    if mine.any():
      assert row.nll_nats == pytest.approx(nll[mine].mean(), rel=1e-5)
      assert row.recall == pytest.approx(right[mine].mean())
      assert f'{row.bits_per_code:.3f}' in caplog.text
  # The training loop has the same value, except for rounding to uint8.
  best = min(row['val/mse'] for row in run.vqvae.metrics() if 'val/mse' in row)
  assert result.reconstruction.mse == pytest.approx(best, rel=2e-3)
  assert result.reconstruction.psnr == pytest.approx(
    -10 * np.log10(result.reconstruction.mse)
  )
  facts = run.vqvae.facts
  assert result.reconstruction.nmse == pytest.approx(
    result.reconstruction.mse / facts['train_variance']
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
  assert result.reconstruction.ssim == pytest.approx(np.mean(ssim), abs=2e-3)


def brightness(images):
  """The mean colour as features."""
  return images.reshape(len(images), -1, 3).mean(1)


def test_everything_is_written_and_printed(classifier_run, caplog):
  caplog.set_level('INFO')
  result = evaluate.evaluate(
    classifier_run, 'test', space=brightness, num_samples=10, temperature=0.5
  )
  assert evaluate.current_result(classifier_run, 'test') == result
  assert result.space == 'brightness'
  assert result.controls['temperature'] == 0.5
  assert result.generation.num_features == 3
  assert result.generation.sets['samples'].num_images == 10
  for text in ('samples', 'independent codes', 'balanced', 'flagged'):
    assert text in caplog.text


@pytest.mark.parametrize('split', ['val', 'train'])
def test_each_split_is_read_and_reconstructed_once(
  classifier_run, split, monkeypatch
):
  reads, reconstructed = collections.Counter(), []
  read, reconstruct = prepared.Records.__getitem__, inference.Model.reconstruct

  def counted_read(self, index):
    record = read(self, index)
    if 'image' in record:
      reads[record['id']] += 1
    return record

  def counted_reconstruct(self, images):
    reconstructed.extend(image.tobytes() for image in images)
    return reconstruct(self, images)

  monkeypatch.setattr(prepared.Records, '__getitem__', counted_read)
  monkeypatch.setattr(inference.Model, 'reconstruct', counted_reconstruct)
  evaluate.evaluate(classifier_run, split)
  counts = dict(reads)
  reads.clear()
  splits = {
    name: list(classifier_run.images.split(name))
    for name in ('train', 'val', 'test')
  }
  for name, records in splits.items():
    found = [counts[record['id']] for record in records]
    if name == 'train' != split:
      # Then there are pictures of the nearest images, for 2 times 13 samples.
      assert min(found) == 1 and sum(found) <= len(records) + 26
    else:
      assert found == [1] * len(records)
  expected = [
    record['image'].tobytes()
    for name in {split, 'val', 'test'}
    for record in splits[name]
  ]
  assert sorted(reconstructed) == sorted(expected)


def test_features_that_are_all_the_same(classifier_run):
  result = evaluate.evaluate(
    classifier_run,
    'test',
    space=lambda images: np.ones((len(images), 2)),
    num_samples=10,
  )
  assert result.generation.kid_over_independent is None


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'num_samples': 9}, 'give --num_samples from 10 to 13'),
    ({'num_samples': 1000}, 'from 10 to'),
    ({'top_p': 2.0}, 'top_p is 2.0'),
    ({'split': 'all'}, "no split 'all'"),
    ({'space': lambda images: images, 'num_samples': 10}, 'must be'),
  ],
)
def test_mistakes(classifier_run, arguments, message):
  with pytest.raises(errors.UserError, match=message):
    evaluate.evaluate(classifier_run, **arguments)


def test_too_few_images(classifier_run, monkeypatch):
  monkeypatch.setattr(evaluate, '_MIN_SAMPLES', 14)  # 13 in val and in test
  with pytest.raises(errors.UserError, match='has 13; give --num_samples=0'):
    evaluate.evaluate(classifier_run)


def test_a_result_is_current_while_the_weights_are(run_copy):
  run = run_lib.Run(run_copy)
  assert evaluate.current_result(run).split == 'val'
  assert evaluate.current_result(run, 'test') is None
  [best] = (run_copy / 'prior' / 'best').iterdir()
  best.rename(best.with_name('5'))  # as if trained again
  assert evaluate.current_result(run) is None
  shutil.rmtree(run_copy / 'prior')
  assert evaluate.current_result(run_lib.Run(run_copy)) is None


def a_classifier(run, workdir, **fields):
  """A run of only a classifier of other fields, with random weights."""
  other = run_lib.Run(workdir)
  config = run.classifier.config.copy_and_resolve_references()
  config.update(fields)
  phase = other.classifier
  phase.start(config, run.classifier.facts)
  model = build.classifier(config, run.classifier.facts)
  image = np.zeros((1, 16, 16, 3), np.float32)
  store = checkpoints.Checkpoints(phase.folder)
  weights = dict(run.classifier.weights)
  weights |= model.init(jax.random.key(0), image)
  store.save_best(1, weights)
  store.close()
  return run_lib.Run(workdir)


def test_what_chooses_does_not_judge(classifier_run, tmp_path):
  """Its own classifier, and one of the same seed or architecture, are not."""
  chosen = {'num_samples': 10, 'choose': 2}
  same = a_classifier(classifier_run, tmp_path / 'a', seed=1)
  for judge, what in ((None, 'seed'), (same, 'architecture')):
    with pytest.raises(
      errors.UserError,
      match=f'must not judge them, nor .* same {what}; give --judge.*dermvq '
      'train --config=classifier .*--config.seed=1',
    ):
      evaluate.evaluate(classifier_run, judge=judge, **chosen)
  empty = run_lib.Run(tmp_path / 'empty')
  with pytest.raises(errors.MissingError, match='empty has no trained class'):
    evaluate.evaluate(classifier_run, judge=empty, **chosen)


def test_chosen_samples_are_judged_by_another(classifier_run, tmp_path, capsys):
  parts = {'features': 8, 'num_stages': 1}
  workdir = tmp_path / 'judge'
  a_classifier(classifier_run, workdir, seed=1, classifier=parts)
  argv = ['evaluate', f'--workdir={classifier_run.workdir}', '--split=test']
  argv += ['--num_samples=10', '--choose=2']
  assert main.main([*argv, f'--judge={workdir}']) == 0
  result = evaluate.current_result(classifier_run, 'test')
  choice = results.Choice(2, 'classifier', 'seed 0, features 16, num_stages 2')
  assert result.choice == choice
  assert result.judge == 'seed 1, features 8, num_stages 1'
  assert result.generation.num_features == 8
  said = (
    f'the best of 2 candidates by a classifier ({choice.chooser}). Classes and '
    f'features are judged by another one ({result.judge}).'
  )
  assert said in capsys.readouterr().out


def test_samples_chosen_by_likelihood(classifier_run):
  result = evaluate.evaluate(
    classifier_run,
    'test',
    num_samples=10,
    choose=2,
    choose_by='likelihood',
    space=brightness,
  )
  assert result.choice.chooser is None
  assert result.labels.samples.num_images >= 10
