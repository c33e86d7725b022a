"""What a prior's incremental form keeps of earlier rows and columns.

Within a loop XLA updates an array in place only where nothing else in the same
iteration reads its old value; otherwise it copies all of it. So what each step
reads is a small window that is replaced (`push`), and what only a later row
reads is written where it belongs (`write`) and not looked at before.
"""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def push(window: Array, entry: Array) -> Array:
  """Drops the first of the n entries [n, ...] and appends one [...]."""
  return jnp.concatenate([window[1:], entry[None]])


def write(buffer: Array, entry: Array, index: Array, axis: int = 0) -> Array:
  """Writes buffer[index] = entry; or along another axis."""
  return lax.dynamic_update_index_in_dim(buffer, entry, index, axis)
