"""Applies compiled functions to any number of rows, in bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PyTree = Any
# Each size compiles when it is first used, so there are few. A single row does
# not pay for many; larger requests run in chunks of the last size.
SIZES = (1, 8, 32)


def size_for(n: int) -> int:
  """The number of rows in a chunk, for `n` rows in all."""
  return next((size for size in SIZES if n <= size), SIZES[-1])


def apply(f: Callable[..., PyTree], *trees: PyTree) -> PyTree:
  """Applies a function to the rows of arrays, a few rows at a time.

  The last chunk is padded with zeros, so `f` compiles once for each of `SIZES`.

  Args:
    f: a function of arrays, or trees of arrays, with a chunk of rows each.
    *trees: its arguments, of any number of rows N.

  Returns:
    The results of `f`, with N rows.
  """
  n = len(jax.tree.leaves(trees)[0])
  most = size_for(n)
  results = []
  for start in range(0, max(n, 1), most):  # At least once, for the shapes.
    size = min(most, n - start)

    def chunk(rows: np.ndarray) -> np.ndarray:
      part = rows[start : start + most]  # noqa: B023
      padding = [(0, most - size)] + [(0, 0)] * (part.ndim - 1)  # noqa: B023
      return np.pad(part, padding)

    out = jax.device_get(f(*jax.tree.map(chunk, trees)))
    results.append(jax.tree.map(lambda x: x[:size], out))  # noqa: B023
  return jax.tree.map(lambda *xs: np.concatenate(xs), *results)
