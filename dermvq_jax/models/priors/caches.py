"""How a prior's cache stores earlier rows and columns.

Inside a loop, XLA updates an array in place only if nothing else in the same
iteration reads its old value; otherwise it copies the entire array. So values
that every step reads are a small window, which is replaced (`push`). Values
that only a later row reads are written to their place (`write`) and not read
before.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def push(window: Array, entry: Array) -> Array:
  """Drops the first of n entries [n, ...] and appends `entry` [...]."""
  return jnp.concatenate([window[1:], entry[None]])


def write(buffer: Array, entry: Array, index: Array, axis: int = 0) -> Array:
  """Returns `buffer` with `entry` at `index` along `axis`."""
  return lax.dynamic_update_index_in_dim(buffer, entry, index, axis)
