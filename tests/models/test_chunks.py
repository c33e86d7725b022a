import jax
import numpy as np
import pytest

from dermvq_jax.models import chunks


@pytest.mark.parametrize(
  ('number', 'size'),
  [(0, 1), (1, 1), (2, 8), (8, 8), (9, 32), (32, 32), (67, 32)],
)
def test_chunks_give_what_all_rows_give(number, size):
  """Arrays and trees work; the function sees a single shape."""
  shapes = set()

  def f(x, tree):
    shapes.add(x.shape)
    return {'sum': x + tree['a'][:, None], 'row': tree['a']}

  x = np.arange(3 * number, dtype=np.float32).reshape(number, 3)
  tree = {'a': np.arange(number, dtype=np.int32)}
  found = chunks.apply(jax.jit(f), x, tree)
  np.testing.assert_array_equal(found['sum'], x + tree['a'][:, None])
  np.testing.assert_array_equal(found['row'], tree['a'])
  assert shapes == {(size, 3)}
