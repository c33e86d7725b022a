"""Data parallelism: jit or pmap; no other module knows which.

Both run the same function on the same state, which has no device axis, so
either can resume from the checkpoints of the other.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dermvq_jax import errors

PyTree = Any
_AXIS = 'data'


class Parallel:
  """Runs functions of a replicated tree and a batch split over all devices.

  A function `f(tree, batch, *, axis_name)` returns a replicated tree. Under
  jit it sees the global batch and `axis_name=None`; under pmap it sees its
  device's part and reduces over `axis_name` itself.
  """

  def __init__(self, kind: str = 'jit'):
    if kind not in ('jit', 'pmap'):
      raise errors.UserError(
        f"config.parallel is {kind!r}; it must be 'jit' or 'pmap'"
      )
    self._kind = kind
    if kind == 'pmap':  # A host sees its own devices, in pmap's order.
      mesh = Mesh(jax.local_devices(), (_AXIS,))
    else:
      mesh = jax.make_mesh(
        (jax.device_count(),), (_AXIS,), axis_types=(AxisType.Auto,)
      )
    self._replicated = NamedSharding(mesh, PartitionSpec())
    self._split = NamedSharding(mesh, PartitionSpec(_AXIS))

  def check_batch_size(self, batch_size: int, num_microbatches: int = 1):
    """Raises UserError unless every microbatch splits evenly over devices."""
    if batch_size % (jax.device_count() * num_microbatches):
      times = f' times config.num_microbatches={num_microbatches}'
      raise errors.UserError(
        f'config.batch_size={batch_size} is not divisible by the '
        f'{jax.device_count()} devices{times if num_microbatches > 1 else ""}; '
        'give a multiple'
      )

  def compile(self, f: Callable, *, donate: bool = False) -> Callable:
    """Compiles `f(tree, batch, *, axis_name)`; `donate` reuses the tree."""
    donated = (0,) if donate else ()
    if self._kind == 'pmap':
      return jax.pmap(
        functools.partial(f, axis_name=_AXIS),
        axis_name=_AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=donated,
      )
    return jax.jit(
      functools.partial(f, axis_name=None),
      donate_argnums=donated,
      out_shardings=self._replicated,
    )

  def put_tree(self, tree: PyTree) -> PyTree:
    """Puts a tree, the same on every host, on all devices."""
    # Other hosts' devices take host arrays only.
    return jax.device_put(jax.device_get(tree), self._replicated)

  def put_batch(self, batch: dict[str, np.ndarray]) -> PyTree:
    """Puts this host's part of a batch on its devices."""
    if self._kind == 'pmap':
      n = jax.local_device_count()
      return {k: v.reshape(n, -1, *v.shape[1:]) for k, v in batch.items()}
    return {
      k: jax.make_array_from_process_local_data(self._split, v)
      for k, v in batch.items()
    }
