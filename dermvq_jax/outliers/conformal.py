"""Conformal p-values: how often held-out values are as extreme as new ones.

They hold if the new image's lesion and the held-out lesions are exchangeable:
drawn in the same way from the same source, in any order. Then the probability
of p <= alpha is at most alpha, whatever the values are (Vovk et al. 2005,
chapter 2). Images of one lesion resemble each other, so lesions count, not
images: each held-out lesion has weight 1, shared by its images (Lee, Barber,
Willett 2023, 'Distribution-free inference with hierarchical data').

In the shapes, N is the number of held-out images, B of new ones.
"""

import numpy as np


def group_weights(groups: np.ndarray) -> np.ndarray:
  """The weight of each image, float64 `[N]`: they sum to 1 in each group."""
  _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
  return 1 / sizes[numbers]


def upper_p_values(
  held_out: np.ndarray, weights: np.ndarray, new: np.ndarray
) -> np.ndarray:
  """P-values for values that are too high.

  Args:
    held_out: float `[N]`.
    weights: `group_weights` of the held-out images, `[N]`.
    new: float `[B]`.

  Returns:
    (1 + the weight of the held-out values that are at least as high) / (1 + the
    weight of all), float64 `[B]`. It is at least 1 / (1 + number of groups).
  """
  order = np.argsort(held_out)
  above = np.append(np.cumsum(weights[order][::-1])[::-1], 0)
  first = np.searchsorted(held_out[order], new, side='left')
  return (1 + above[first]) / (1 + weights.sum())


def two_sided_p_values(
  held_out: np.ndarray, weights: np.ndarray, new: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """P-values for values that are too high or too low.

  Args:
    held_out: float `[N]`.
    weights: `group_weights` of the held-out images, `[N]`.
    new: float `[B]`.

  Returns:
    Twice the lesser of both one-sided p-values, at most 1, `[B]`; and whether
    the value is high, bool `[B]`.
  """
  high = upper_p_values(held_out, weights, new)
  low = upper_p_values(-held_out, weights, -new)
  return np.minimum(1, 2 * np.minimum(high, low)), high < low
