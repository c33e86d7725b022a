"""Bayes' rule over the classes."""

import numpy as np

from dermvq_jax.models import bayes


def test_posterior_does_not_underflow():
  likelihoods = np.float32([[-1e5, -1e5 - 1, -2e5]])
  log_p = bayes.posterior(likelihoods, np.ones(3) / 3)
  expected = -np.log1p(np.exp(-1))
  np.testing.assert_allclose(log_p[0, :2], [expected, expected - 1], rtol=1e-5)
  assert log_p[0, 2] < -9e4


def test_mixture():
  """Against the sum over classes, with all codes and with the first alone."""
  rng = np.random.default_rng(0)
  log_probs = np.log(rng.dirichlet(np.ones(5), (2, 3, 4))[..., 0])  # [B, C, T]
  prior = np.array([0.5, 0.5, 0])
  mixed = bayes.mixture_log_probs(log_probs, prior)
  joint = np.exp(log_probs.sum(2)) @ prior
  np.testing.assert_allclose(mixed.sum(1), np.log(joint))
  first = np.exp(log_probs[:, :, 0]) @ prior
  np.testing.assert_allclose(mixed[:, 0], np.log(first))
