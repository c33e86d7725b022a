"""`Model.score`: how unlike the others images are."""

import numpy as np
import pytest

import dermvq_jax
from dermvq_jax import errors
from dermvq_jax.data import prepared
from dermvq_jax.outliers import conformal, scoring

IMAGES = 'synthetic_dermoscopy/smoke'


@pytest.fixture(scope='module')
def model(calibrated_run):
  return dermvq_jax.load(calibrated_run)


@pytest.fixture(scope='module')
def records(smoke_run):
  return list(prepared.Dataset(IMAGES, smoke_run / 'data').split('test'))


@pytest.fixture(scope='module')
def images(records):
  return np.stack([record['image'] for record in records])


@pytest.fixture(scope='module')
def scores(model, images, records):
  return model.score(images, [record['label'] for record in records])


def test_p_values(model, scores):
  calibration = model.calibration
  lowest = 1 / (1 + calibration.weights.sum())
  assert scores.p_values.min() >= lowest - 1e-12
  assert scores.p_values.max() <= 1
  # The strangest image has the lowest p-value.
  assert scores.p_values[scores.distances.argmax()] == scores.p_values.min()
  held_out = calibration.values[:, calibration.names.index('bits')]
  expected, _ = conformal.two_sided_p_values(
    held_out, calibration.weights, scores.values['bits']
  )
  np.testing.assert_array_equal(scores.value_p_values['bits'], expected)


def test_bits(model, images, records, scores):
  codes = model.encode(images)
  np.testing.assert_allclose(
    scores.code_bits.sum((1, 2)) * np.log(2),
    -model.log_likelihood(codes, [7]),
    rtol=1e-4,
  )
  labels = [record['label'] for record in records]
  nats = -model.log_likelihood(codes, labels) / codes[0].size
  np.testing.assert_allclose(scores.label_bits, nats / np.log(2), rtol=1e-4)


def test_labels(model, images, records, scores):
  calibration = model.calibration
  labels = np.array([record['label'] for record in records])
  log_p = model.classify(images, class_prior=calibration.class_prior).log_probs
  probs = np.exp(log_p[np.arange(len(labels)), labels])
  np.testing.assert_allclose(scores.label_probs, probs, rtol=1e-4)
  i = 0
  same = calibration.labels == labels[i]
  worse = np.exp(calibration.label_log_probs[same]) <= probs[i]
  expected = (1 + calibration.weights[same][worse].sum()) / (
    1 + calibration.weights[same].sum()
  )
  assert scores.label_p_values[i] == pytest.approx(expected)


def test_an_image_that_is_no_skin(model, images):
  strange = np.full_like(images[:1], 255)
  found = model.score(np.concatenate([strange, images[:1]]))
  calibration = model.calibration
  assert found.p_values[0] == 1 / (1 + calibration.weights.sum())
  assert found.distances[0] > found.distances[1]
  assert found.reasons[0]
  assert found.label_probs is None
  np.testing.assert_allclose(
    found.p_values[1], model.score(images[:1]).p_values[0]
  )


def test_every_statistic_has_words(model):
  reasons = scoring.REASONS
  assert set(model.calibration.names) == reasons.keys()
  assert all(low and high for low, high in reasons.values())


@pytest.mark.parametrize(
  ('label', 'message'),
  [
    ('melanoma', 'no class'),
    (['mel', 'nv'], '1 images but 2 labels'),
    (7, 'any class'),
  ],
)
def test_refuses_labels(model, images, label, message):
  with pytest.raises(errors.UserError, match=message):
    model.score(images[:1], label)


def test_no_images(model):
  with pytest.raises(errors.UserError, match='no image'):
    model.score(np.zeros((0, 16, 16, 3), np.uint8))
