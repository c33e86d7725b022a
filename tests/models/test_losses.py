import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from dermvq_jax import errors
from dermvq_jax.models import losses


def _logits(shape=(2, 3, 4, 11), scale=5.0):
  return np.random.default_rng(0).normal(size=shape) * scale


def test_log_probs():
  logits = _logits()
  logits[0, 0, 0] += 1e4  # a shared constant changes nothing, no overflow
  shifted = logits - logits.max(-1, keepdims=True)
  expected = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  actual = losses.log_probs(jnp.asarray(logits, jnp.float32))
  np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=2e-3)
  np.testing.assert_allclose(np.exp(actual).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_log_probs_are_float32(dtype):
  logits = jnp.asarray(_logits(), dtype)
  expected = losses.log_probs(logits.astype(jnp.float32))
  actual = losses.log_probs(logits)
  assert actual.dtype == jnp.float32
  np.testing.assert_array_equal(actual, expected)


def test_log_probs_of_impossible_codes():
  log_probs = losses.log_probs(jnp.asarray([0.0, -jnp.inf, 0.0]))
  np.testing.assert_allclose(np.exp(log_probs), [0.5, 0, 0.5])


def test_cross_entropy():
  logits = _logits()
  codes = np.random.default_rng(1).integers(0, 11, logits.shape[:-1])
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = -np.log(np.take_along_axis(probs, codes[..., None], -1)[..., 0])
  actual = jax.jit(losses.cross_entropy)(jnp.float32(logits), codes)
  assert actual.shape == codes.shape
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_cross_entropy_of_equal_logits_is_log_k():
  nll = losses.cross_entropy(jnp.zeros((3, 7)), jnp.arange(3))
  np.testing.assert_allclose(nll, np.log(7), rtol=1e-6)


def test_cross_entropy_gradient():
  logits, codes = jnp.float32(_logits((5, 11))), jnp.arange(5)
  gradient = jax.grad(lambda x: losses.cross_entropy(x, codes).sum())(logits)
  expected = jax.nn.softmax(logits) - np.eye(11)[codes]
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


def _one_hot(codes, smoothing):
  return (1 - smoothing) * np.eye(11)[codes] + smoothing / 11


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('loss', losses.LOSSES)
def test_losses_against_numpy(loss, smoothing):
  logits = _logits()
  codes = np.random.default_rng(1).integers(0, 11, logits.shape[:-1])
  target = _one_hot(codes, smoothing)
  if loss == 'bce':  # Equation 3 of the report, with its misprints corrected.
    p = 1 / (1 + np.exp(-logits))
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(-1)
  else:
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -(target * np.log(p)).sum(-1)
  actual = losses.code_loss(jnp.float32(logits), codes, loss, smoothing)
  assert actual.shape == codes.shape
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_binary_cross_entropy_gradient(smoothing):
  """Each decision moves to its own target; large logits stay finite."""
  logits, codes = jnp.float32(_logits((5, 11), 30.0)), jnp.arange(5)
  gradient = jax.grad(
    lambda x: losses.code_loss(x, codes, 'bce', smoothing).sum()
  )(logits)
  expected = jax.nn.sigmoid(logits) - _one_hot(codes, smoothing)
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_probabilities_of_bce_are_normalised_sigmoids():
  logits = _logits()
  sigmoids = 1 / (1 + np.exp(-logits))
  expected = sigmoids / sigmoids.sum(-1, keepdims=True)
  log_p = losses.log_probs(jnp.float32(logits), 'bce')
  np.testing.assert_allclose(np.exp(log_p), expected, rtol=1e-4)
  codes = np.random.default_rng(1).integers(0, 11, logits.shape[:-1])
  picked = np.take_along_axis(expected, codes[..., None], -1)[..., 0]
  nll = losses.nll(jnp.float32(logits), codes, 'bce')
  np.testing.assert_allclose(nll, -np.log(picked), rtol=1e-4, atol=1e-5)
  # Far below zero a sigmoid is 0 in float32, but its logarithm is finite.
  log_p = losses.log_probs(jnp.asarray([-200.0, -201.0]), 'bce')
  np.testing.assert_allclose(
    log_p, losses.log_probs(jnp.asarray([1.0, 0])), rtol=1e-4
  )


def test_impossible_codes_cost_nothing():
  logits = jnp.asarray([0.0, -jnp.inf, 1.0])
  for loss in losses.LOSSES:
    log_p = losses.log_probs(logits, loss)
    assert log_p[1] == -jnp.inf and np.isfinite(log_p[0] + log_p[2])
    assert np.isfinite(losses.code_loss(logits, jnp.int32(0), loss))


def test_wrong_arguments_are_refused():
  for loss in losses.LOSSES:
    losses.check(loss, 0.0)
  with pytest.raises(errors.UserError, match="'mse'.*'cross_entropy', 'bce'"):
    losses.check('mse', 0.0)
  for smoothing in (-0.1, 1.0, float('nan')):
    with pytest.raises(errors.UserError, match='label_smoothing'):
      losses.check('bce', smoothing)


def test_squared_error():
  a, b = _logits((2, 3, 3, 3)), _logits((2, 3, 3, 3), 2.0)
  actual = losses.squared_error(jnp.float32(a), jnp.float32(b))
  np.testing.assert_allclose(actual, (a - b) ** 2, rtol=1e-5)
  half = losses.squared_error(jnp.bfloat16(a), jnp.bfloat16(b))
  assert half.dtype == jnp.float32


def _pictures(size=24, channels=3):
  """Smooth pictures in [0, 1], and noisy copies: [2, H, W, C] each."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:size, : size + 4] / size
  smooth = 0.5 + 0.4 * np.sin(5 * x + 3 * y)
  a = np.stack([np.roll(smooth, i, 1) for i in range(2 * channels)], -1)
  a = np.moveaxis(a.reshape(size, size + 4, 2, channels), 2, 0)
  b = np.clip(a + rng.normal(0, [[[[0.05]]], [[[0.2]]]], a.shape), 0, 1)
  return np.float32(a), np.float32(b)


def test_ssim_equals_that_of_scikit_image():
  a, b = _pictures()
  expected = [
    skimage_metrics.structural_similarity(
      np.float64(x),
      np.float64(y),
      gaussian_weights=True,
      use_sample_covariance=False,
      sigma=1.5,
      data_range=1,
      channel_axis=-1,
    )
    for x, y in zip(a, b)
  ]
  assert 0.05 < expected[1] < expected[0] < 0.95
  np.testing.assert_allclose(jax.jit(losses.ssim)(a, b), expected, atol=1e-5)
  np.testing.assert_allclose(losses.ssim(a, a), 1, atol=1e-5)


def _numpy_terms(prediction, target, variance):
  """The reconstruction terms by their definitions, in float64."""
  error = np.float64(prediction) - np.float64(target)
  x = error / np.sqrt(variance)
  near = np.abs(x) < 0.1
  return {
    'mse': np.mean(error**2) / variance,
    'l1': np.mean(np.abs(x)),
    'huber': np.mean(np.where(near, x**2 / 0.2, np.abs(x) - 0.05)),
    'ssim': 1 - float(losses.ssim(prediction, target).mean()),
    'gradient': np.mean(np.abs(x[:, 1:] - x[:, :-1]))
    + np.mean(np.abs(x[:, :, 1:] - x[:, :, :-1])),
  }


@pytest.mark.parametrize('name', losses.RECONSTRUCTION_TERMS)
def test_reconstruction_terms(name):
  target, prediction = _pictures()
  expected = _numpy_terms(prediction, target, 0.04)
  assert expected.keys() == losses.RECONSTRUCTION_TERMS.keys()

  def loss(prediction, **weights):
    return losses.reconstruction(prediction, target, weights, 0.04)[0]

  weights = dict.fromkeys(expected, 0.0) | {name: 2.0}
  value = loss(prediction, **weights)
  np.testing.assert_allclose(value, 2 * expected[name], rtol=1e-5)
  # A step against the gradient moves towards the target.
  gradient = jax.grad(loss)(prediction, **weights)
  step = 1e-3 * gradient / jnp.linalg.norm(gradient)
  assert loss(prediction - step, **weights) < value
  np.testing.assert_allclose(loss(target, **weights), 0, atol=1e-5)


def test_reconstruction_is_the_weighted_sum_of_its_terms():
  target, prediction = _pictures()
  terms = _numpy_terms(prediction, target, 0.04)
  weights = {name: 0.5 + i for i, name in enumerate(terms)}
  value, metrics = losses.reconstruction(prediction, target, weights, 0.04)
  expected = sum(weights[name] * terms[name] for name in weights)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  # The metrics have one value per image; the terms are not weighted.
  assert {value.shape for value in metrics.values()} == {(2,)}
  reconstruction_loss = metrics.pop('reconstruction_loss')
  np.testing.assert_allclose(reconstruction_loss.mean(), expected, rtol=1e-5)
  assert metrics.keys() == {f'{name}_loss' for name in terms}
  for i in range(2):
    alone = _numpy_terms(prediction[i : i + 1], target[i : i + 1], 0.04)
    for name, value in alone.items():
      np.testing.assert_allclose(metrics[f'{name}_loss'][i], value, rtol=1e-5)


def test_terms_of_weight_zero_are_not_computed():
  target, prediction = _pictures()
  _, metrics = losses.reconstruction(
    prediction, target, {'mse': 1.0, 'ssim': 0.0}, 0.04
  )
  assert metrics.keys() == {'mse_loss', 'reconstruction_loss'}


@pytest.mark.parametrize(
  'weights, message',
  [
    ({'mse': 1.0, 'lpips': 1.0}, 'config.loss has no lpips; there are mse'),
    ({'mse': 0.0, 'l1': 0.0}, 'at least one above 0'),
    ({'mse': 1.0, 'l1': -1.0}, '0 or more'),
    ({'mse': float('nan')}, '0 or more'),
  ],
)
def test_wrong_weights_are_refused(weights, message):
  with pytest.raises(errors.UserError, match=message):
    losses.check_reconstruction(weights)
