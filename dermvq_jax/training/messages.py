"""What a training says on the console; metrics.jsonl has all numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from dermvq_jax.data import facts as facts_lib
from dermvq_jax.training import task as task_lib

# A warm-up that takes a larger share of the steps leaves too few to learn in.
_MAX_WARMUP_SHARE = 0.2


def plan(
  config: ml_collections.ConfigDict, facts: Mapping[str, Any], params: Any
) -> str:
  """Says how large the model is and how long it is trained.

  Args:
    config: the phase's config, from `trainer.resolve`.
    facts: the facts of its dataset.
    params: all parameters.
  """
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  steps, batch = config.num_train_steps, config.batch_size
  num_images = facts_lib.num_images(facts)
  epochs = steps * batch / num_images
  return (
    f'{config.task}: {size:,} parameters, {steps:,} steps of {batch} images '
    f'({epochs:.3g} times the {num_images:,} training images)'
  )


def short_training(config: ml_collections.ConfigDict) -> str:
  """Says that most steps are warm-up, and what to do; '' if they are not."""
  steps, warmup = config.num_train_steps, config.optim.warmup_steps
  if warmup <= _MAX_WARMUP_SHARE * steps:
    return ''
  return (
    f'The learning rate warms up in {warmup:,} of only {steps:,} steps, so '
    f'little will be learned. A small dataset needs more epochs: give '
    f'--config.num_train_steps (2,000 or more), in a new --workdir.'
  )


def evaluation(
  task: task_lib.Task, step: int, row: Mapping[str, float], best: float
) -> str:
  """Says what the validation split shows, and whether it is the best so far.

  Args:
    task: what is trained.
    step: number of the step.
    row: the metrics after it.
    best: the lowest value of `best_metric` before it.
  """
  said = _values(task, row)
  is_best = row[f'val/{task.best_metric}'] < best
  return f'step {step:,}: {said}' + (', the best so far' if is_best else '')


def outcome(
  task: task_lib.Task, folder: epath.Path, rows: Sequence[Mapping[str, float]]
) -> str:
  """Says which weights were kept, and where.

  Args:
    task: what was trained.
    folder: the phase's folder.
    rows: all rows of its metrics.
  """
  key = f'val/{task.best_metric}'
  row = min((row for row in rows if key in row), key=lambda row: row[key])
  return (
    f'Trained. {folder / "best"} has the weights of step {row["step"]:,}: '
    + _values(task, row)
  )


def _values(task: task_lib.Task, row: Mapping[str, float]) -> str:
  names = (f'val/{name}' for name in (task.best_metric, *task.shown))
  return ', '.join(f'{name} {row[name]:.4g}' for name in names if name in row)
