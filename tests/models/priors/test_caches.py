"""Windows and buffers of the priors' caches."""

import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax.models.priors import caches


@pytest.mark.parametrize('size', [1, 3])
def test_a_window_holds_the_last_entries_in_order(size):
  window = jnp.zeros((size, 2))
  entries = [np.zeros(2)] * size
  for i in range(5):
    entries.append(np.asarray([i + 1.0, -i]))
    window = caches.push(window, entries[-1])
    np.testing.assert_array_equal(window, entries[-size:])


@pytest.mark.parametrize('axis', [0, 2])
def test_writes_one_entry(axis):
  buffer = np.arange(27.0).reshape(3, 3, 3)
  written = caches.write(jnp.asarray(buffer), jnp.full((3, 3), -1.0), 2, axis)
  np.moveaxis(buffer, axis, 0)[2] = -1
  np.testing.assert_array_equal(written, buffer)
