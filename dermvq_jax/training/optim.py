"""Optimisers from a config, one for each sub-tree of the parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections
import optax

from dermvq_jax import errors

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """How the parameters are optimised.

  Attributes:
    tx: the transformation of the gradients of all parameters.
    schedules: the learning rate of each sub-tree as a function of the number
      of updates before.
  """

  tx: optax.GradientTransformation
  schedules: Mapping[str, optax.Schedule]

  def subtrees(self, tree: PyTree) -> dict[str, PyTree]:
    """Divides a tree like the parameters; a single sub-tree is all of it."""
    if len(self.schedules) == 1:
      return dict.fromkeys(self.schedules, tree)
    parts = {name: {} for name in self.schedules}
    for key, value in tree.items():
      parts[key if key in parts else ''][key] = value
    return parts


def make(
  config: ml_collections.ConfigDict, optimizers: Mapping[str, str]
) -> Optimizer:
  """Makes AdamW with warm-up, schedule and clipping for each sub-tree.

  Args:
    config: the run's config; a cosine ends at `num_train_steps`. A field of an
      optimiser has `learning_rate`; `schedule` ('constant', or 'cosine' to
      zero); `warmup_steps`; `b1`; `b2`; `weight_decay`; `max_grad_norm` (0: no
      clipping).
    optimizers: see `task.Task`.

  Raises:
    UserError: an unknown schedule, or a warm-up as long as the training.
  """
  schedules, txs = {}, {}
  for name, field in optimizers.items():
    if field:
      schedules[name] = _schedule(config, field)
      txs[name] = _adamw(config[field], schedules[name])
    else:
      schedules[name] = optax.constant_schedule(0.0)
      txs[name] = optax.set_to_zero()
  if len(txs) == 1:
    return Optimizer(*txs.values(), schedules)

  def names(params: PyTree) -> PyTree:
    return {key: key if key in txs else '' for key in params}

  return Optimizer(optax.multi_transform(txs, names), schedules)


def _adamw(
  config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
  steps = [
    optax.adamw(
      schedule, config.b1, config.b2, weight_decay=config.weight_decay
    )
  ]
  if config.max_grad_norm:
    steps.insert(0, optax.clip_by_global_norm(config.max_grad_norm))
  return optax.chain(*steps)


def _schedule(config: ml_collections.ConfigDict, field: str) -> optax.Schedule:
  """The learning rate that `config.<field>` describes."""
  optim, num_train_steps = config[field], config.num_train_steps
  peak, warmup_steps = optim.learning_rate, optim.warmup_steps
  if optim.schedule == 'cosine':
    if warmup_steps >= num_train_steps:
      raise errors.UserError(
        f'config.{field}.warmup_steps={warmup_steps} leaves none of the '
        f'{num_train_steps} training steps; lower it or train longer'
      )
    return optax.warmup_cosine_decay_schedule(
      0.0, peak, warmup_steps, num_train_steps
    )
  if optim.schedule == 'constant':
    if not warmup_steps:
      return optax.constant_schedule(peak)
    return optax.linear_schedule(0.0, peak, warmup_steps)
  raise errors.UserError(
    f'config.{field}.schedule is {optim.schedule!r}; it must be '
    "'constant' or 'cosine'"
  )
