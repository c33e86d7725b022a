"""Bayes' rule over the classes of an image."""

import numpy as np


def posterior(
  log_likelihoods: np.ndarray, class_prior: np.ndarray
) -> np.ndarray:
  """Applies Bayes' rule.

  Args:
    log_likelihoods: log p(x | class) `[B, C]`.
    class_prior: p(class) `[C]`; the sum is 1.

  Returns:
    log p(class | x), float32 `[B, C]`.
  """
  with np.errstate(divide='ignore'):  # A class may have probability 0.
    joint = np.float64(log_likelihoods) + np.log(class_prior)
  total = np.logaddexp.reduce(joint, axis=1, keepdims=True)
  return (joint - total).astype(np.float32)


def mixture_log_probs(
  log_probs: np.ndarray, class_prior: np.ndarray
) -> np.ndarray:
  """Log-probabilities of codes if the class is not known.

  The class before code t has the posterior given the codes before it, so the
  sum over the codes is the logarithm of the mixture sum_c p(c) p(codes | c).

  Args:
    log_probs: log p(code t | codes before it, class), `[B, C, T]`.
    class_prior: p(class) `[C]`; the sum is 1.

  Returns:
    log p(code t | codes before it), float64 `[B, T]`.
  """
  with np.errstate(divide='ignore'):  # A class may have probability 0.
    prior = np.log(np.asarray(class_prior, np.float64))
  so_far = np.cumsum(log_probs, axis=2, dtype=np.float64) + prior[:, None]
  total = np.logaddexp.reduce(so_far, axis=1)
  return np.diff(total, axis=1, prepend=0.0)
