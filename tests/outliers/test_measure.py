"""What is measured with a model, on a stand-in whose values are known."""

import numpy as np
import pytest

from dermvq_jax.outliers import measure


class _Model:
  """Codes are the mean brightness of blocks; 4 of them, of one value each."""

  class_names = ('a', 'b')
  num_levels = 1
  knows_null_label = True

  def encode(self, images):
    means = images.reshape(len(images), 4, 4, 4, 4, 3).mean((2, 4, 5))
    return np.int32(means // 64)

  def decode(self, codes):
    grey = np.uint8(64 * codes + 32).repeat(4, 1).repeat(4, 2)
    return np.stack([grey] * 3, -1)

  def latent_distances(self, images):
    return np.float32(self.encode(images) == 3) + 1

  def code_log_probs(self, codes, labels):
    """Under 'a' code 0 has p = 1/2, under 'b' 1/8; without label 1/4."""
    p = {0: 0.5, 1: 0.125, 2: 0.25}[int(np.ravel(labels)[0])]
    return np.log(np.where(codes == 0, p, (1 - p) / 3))

  def class_log_likelihoods(self, codes):
    return np.stack(
      [self.code_log_probs(codes, [c]).sum((1, 2)) for c in (0, 1)], 1
    )


IMAGES = np.zeros((2, 16, 16, 3), np.uint8)
IMAGES[1, :8, :8] = 255
UNIFORM = np.array([0.5, 0.5])


def test_values():
  found = measure.measure(_Model(), IMAGES, UNIFORM)
  assert found.codes.tolist()[0] == np.zeros((4, 4)).tolist()
  np.testing.assert_allclose(found.code_bits, 2)  # -log2(1/4)
  np.testing.assert_allclose(found.values['bits'], 2)
  np.testing.assert_allclose(found.values['local_bits'], 2)
  # All values are off by 32 of 255; by 255 - 224 in a quarter of image 1.
  errors = np.square(np.array([32, 32 * 0.75**0.5, 31 * 0.25**0.5]) / 255)
  expected = np.log([errors[0], errors[1] + errors[2]])
  np.testing.assert_allclose(found.values['error'], expected, atol=1e-4)
  distances = found.values['latent_distance']
  np.testing.assert_allclose(distances, np.log([1, 1.25]), atol=1e-4)
  np.testing.assert_array_equal(
    found.reconstructions, _Model().decode(found.codes)
  )
  assert {part.shape for part in found.parts.values()} == {(2, 16, 16)}


def test_where():
  """The distance is high in one quarter, and the colour is strange there."""
  image = np.full((1, 16, 16, 3), 100, np.uint8)
  image[0, :8, :8] = [0, 0, 255]
  parts = measure.measure(_Model(), image, UNIFORM).parts
  colour = parts['colour'][0]
  assert colour[:7, :7].min() > colour[9:, 9:].max()
  image[0, :8, :8] = 255
  distance = measure.measure(_Model(), image, UNIFORM).parts['distance'][0]
  assert distance[:6, :6].min() > distance[10:, 10:].max()


def test_a_prior_that_does_not_know_images_without_a_label():
  """Then its classes are mixed by Bayes' rule."""
  model = _Model()
  model.knows_null_label = False
  prior = np.array([0.75, 0.25])
  found = measure.measure(model, IMAGES[:1], prior)
  joint = 0.75 * 0.5**16 + 0.25 * 0.125**16
  assert found.code_bits.sum() == pytest.approx(-np.log2(joint), rel=1e-5)
  assert found.code_bits[0, 0, 0] == pytest.approx(-np.log2(0.40625))


def test_levels_are_added():
  model = _Model()
  model.num_levels = 2
  found = measure.measure(model, IMAGES, UNIFORM)
  assert found.code_bits.shape == (2, 4, 2)
  np.testing.assert_allclose(found.code_bits, 4)
  np.testing.assert_allclose(found.values['local_bits'], 2)


def test_many_images_are_measured_in_chunks():
  images = np.random.default_rng(0).integers(0, 256, (130, 16, 16, 3), np.uint8)
  found = measure.measure(_Model(), images, UNIFORM)
  alone = measure.measure(_Model(), images[129:], UNIFORM)
  for name, values in alone.values.items():
    np.testing.assert_allclose(found.values[name][129:], values, rtol=1e-5)
  np.testing.assert_array_equal(found.codes[129:], alone.codes)


def test_posterior_of_labels():
  codes = _Model().encode(IMAGES)[:1]
  prior = np.array([0.75, 0.25])
  found = measure.label_log_probs(_Model(), codes, [1], prior)
  joint = np.array([0.75 * 0.5**16, 0.25 * 0.125**16])
  np.testing.assert_allclose(np.exp(found), joint[1:] / joint.sum(), rtol=1e-5)
