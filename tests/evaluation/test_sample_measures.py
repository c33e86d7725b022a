"""Tests of the measures of samples, with the run of the demo."""

import dataclasses

import numpy as np
import pytest

from dermvq_jax import inference
from dermvq_jax.evaluation import (
  generation_metrics,
  nearest_images,
)
from dermvq_jax.inference import classifier as classifier_lib


def read(run, split):
  """Images uint8 `[N, H, W, 3]` and labels `[N]` of a split."""
  records = list(run.images.split(split))
  return (
    np.stack([record['image'] for record in records]),
    np.asarray([record['label'] for record in records]),
  )


def assert_close(found, expected, **tolerance):
  assert dataclasses.asdict(found) == pytest.approx(
    dataclasses.asdict(expected), **tolerance
  )


def test_generation(classifier_run, result):
  assert result.space == 'classifier'
  generation = result.generation
  model = inference.Model(classifier_run)
  space = classifier_lib.Classifier(classifier_run)
  real, _ = read(classifier_run, 'val')
  floor, labels = read(classifier_run, 'test')
  assert generation.num_real == len(real)
  assert generation.num_features == 16
  assert generation.floor_split == 'test'
  assert generation.classes == {}  # No class has 100 images.
  sets = generation.sets
  pictures = {
    'real': floor,
    'reconstructions': model.reconstruct(real),
    'real_codes': model.reconstruct(floor),
  }
  for name, images in pictures.items():
    expected = generation_metrics.compare(space(real), space(images))
    assert_close(sets[name], expected, rel=1e-4)
  # One sample for each image of the other split, with the same class.
  samples = model.sample(np.sort(labels), seed=3)
  expected = generation_metrics.compare(space(real), space(samples))
  assert_close(sets['samples'], expected, rel=1e-3, abs=1e-9)
  assert sets['independent_codes'].num_images == len(floor)
  assert generation.kid_over_independent == pytest.approx(
    sets['samples'].kid / sets['independent_codes'].kid
  )


def test_labels(classifier_run, result):
  real, labels = read(classifier_run, 'val')
  predicted = classifier_lib.Classifier(classifier_run).predict(real)
  told = result.labels.real
  recalls = [(predicted == c)[labels == c].mean() for c in np.unique(labels)]
  assert told.balanced_accuracy == pytest.approx(np.mean(recalls))
  assert told.num_images == len(real)
  samples = result.labels.samples
  assert samples.num_images >= 7 * 25
  assert None not in samples.recalls.values()
  assert result.labels.samples_over_real == pytest.approx(
    samples.balanced_accuracy / told.balanced_accuracy
  )


def test_memorisation(classifier_run, result, nearest):
  told = result.memorisation
  facts = classifier_run.vqvae.facts
  assert told.num_train == facts['num_train']
  assert told.num_held_out == facts['num_val'] + facts['num_test']
  model = inference.Model(classifier_run)
  names = [model.class_names[label] for label in nearest['label']]
  samples = model.sample(names, ids=nearest['sample_id'], seed=3)
  assert told.num_samples == len(samples) == facts['num_test']
  train_images, _ = read(classifier_run, 'train')
  held_out = [read(classifier_run, split)[0] for split in ('val', 'test')]
  banks = {'train': train_images, 'held_out': np.concatenate(held_out)}
  for space in ('pixels', 'features'):
    row = told.spaces[space]
    ratios, order = nearest[f'{space}_ratio'], nearest[f'{space}_closest']
    assert (np.diff(ratios[order]) >= 0).all()
    assert row.num_copied == (ratios < row.threshold).sum()
    assert row.num_copied == nearest[f'{space}_copied'].sum()
    closer = (
      nearest[f'{space}_train_distance'] < nearest[f'{space}_held_out_distance']
    )
    assert row.share_closer_to_train == pytest.approx(closer.mean())
    np.testing.assert_array_equal(
      nearest[f'{space}_closest_samples'], samples[order]
    )
    for bank, images in banks.items():
      index = nearest[f'{space}_{bank}_index'][order]
      np.testing.assert_array_equal(
        nearest[f'{space}_closest_{bank}'], images[index]
      )
  found = nearest_images.nearest_pixels(
    samples,
    nearest_images.describe(train_images),
    np.arange(len(train_images)),
  )
  np.testing.assert_allclose(found.ratio, nearest['pixels_ratio'], rtol=1e-4)
