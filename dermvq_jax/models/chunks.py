"""Applies compiled functions to any number of rows, in bounded memory."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PyTree = Any
# Larger requests run in chunks of this many rows.
SIZE = 32


def apply(f: Callable[..., PyTree], *trees: PyTree) -> PyTree:
  """Applies a function to the rows of arrays, `SIZE` rows at a time.

  The last chunk is padded with zeros, so `f` compiles once.

  Args:
    f: a function of arrays, or trees of arrays, of `SIZE` rows each.
    *trees: its arguments, of any number of rows N.

  Returns:
    The results of `f`, with N rows.
  """
  n = len(jax.tree.leaves(trees)[0])
  results = []
  for start in range(0, max(n, 1), SIZE):  # At least once, for the shapes.
    size = min(SIZE, n - start)

    def chunk(rows: np.ndarray) -> np.ndarray:
      part = rows[start : start + SIZE]  # noqa: B023
      padding = [(0, SIZE - size)] + [(0, 0)] * (part.ndim - 1)  # noqa: B023
      return np.pad(part, padding)

    out = jax.device_get(f(*jax.tree.map(chunk, trees)))
    results.append(jax.tree.map(lambda x: x[:size], out))  # noqa: B023
  return jax.tree.map(lambda *xs: np.concatenate(xs), *results)
