"""What a phase trains, as pure functions; the loop is the same for all."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dermvq_jax.training import metrics

PyTree = Any
Batch = dict[str, jax.Array]


def keep_state(params, model_state, observed, rng, *, step=0, axis_name=None):
  """Returns the state as it is; see `Task.update_state`."""
  del params, observed, rng, step, axis_name  # All is learned by gradients.
  return model_state


def _no_images(params, model_state, batch):
  del params, model_state, batch
  return {}


@dataclasses.dataclass(frozen=True)
class Task:
  """A phase of training.

  Attributes:
    keys: the fields that are read from each record.
    best_metric: the validation metric whose lowest value marks `best/`.
    shown: the other validation metrics that the console shows.
    init: `(rng, batches) -> (params, model_state)`; sees the unsharded stream,
      the same on every host. Shapes alone decide the result's structure.
    loss_fn: `(params, model_state, batch, rng, *, train, step, axis_name) ->
      (loss, (metrics, observed))`. `step` is the number of updates before this
      one. Every term of the loss is a metric with its own name. A field `mask`
      [B] of the batch weights the metrics. Metrics are sums over this device's
      part; `observed` are arrays [B, ...].
    update_state: `(params, model_state, observed, rng, *, step, axis_name) ->
      model_state`, once per training step: updates what is learned without
      gradients, from `observed` of all parts of the batch. `step` is as there.
    summary_images: `(params, model_state, batch) -> {name: [N, H, W, 3]}`.
    optimizers: how parameters are optimised: maps a top-level entry of params
      to the field of the config that describes its optimiser; '': it is not
      trained. The entry '' stands for all that are not named.
    kept: the part of params that is used after training; `best/` holds only
      this part.
  """

  keys: tuple[str, ...]
  best_metric: str
  shown: tuple[str, ...]
  init: Callable[[jax.Array, Iterator[Batch]], tuple[PyTree, PyTree]]
  loss_fn: Callable[..., tuple[jax.Array, tuple[metrics.Metrics, PyTree]]]
  update_state: Callable[..., PyTree] = keep_state
  summary_images: Callable[..., dict[str, np.ndarray]] = _no_images
  optimizers: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {'': 'optim'}
  )
  kept: Callable[[PyTree], PyTree] = lambda params: params
