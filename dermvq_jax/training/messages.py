"""What a training says on the console; metrics.jsonl has all numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from dermvq_jax.data import facts as facts_lib
from dermvq_jax.training import task as task_lib

_SHORT = 60  # seconds; nobody asks how long such a training takes


def plan(
  given: ml_collections.ConfigDict,
  config: ml_collections.ConfigDict,
  facts: Mapping[str, Any],
  params: Any,
) -> str:
  """Says how large the model is, how long it is trained, and why so long.

  Args:
    given: the phase's config, before `trainer.resolve`.
    config: the same after it.
    facts: the facts of its dataset.
    params: the parameters that are kept.
  """
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  steps, batch = config.num_train_steps, config.batch_size
  num_images = facts_lib.num_images(facts)
  lines = [
    f'{config.task}: {size:,} parameters',
    f'Plan: {steps:,} steps of {batch} images, '
    f'{steps * batch / num_images:.3g} times the {num_images:,} training '
    f'images. The learning rate warms up until step '
    f'{config.optim.warmup_steps:,}; validation every '
    f'{config.eval_every_steps:,} steps.',
  ]
  epochs = config.num_epochs * facts_lib.steps_per_epoch(facts, batch)
  if not given.num_train_steps and math.ceil(epochs) < steps:
    lines.append(
      f'There are few images: {config.num_epochs:g} epochs would be fewer '
      f'steps than config.min_train_steps={steps}.'
    )
  if given.optim.warmup_steps > config.optim.warmup_steps:
    lines.append(
      f'A warm-up of {given.optim.warmup_steps:,} steps would be more than a '
      'tenth of the training, so it is shorter.'
    )
  return '\n'.join(lines)


def time_left(step: int, end: int, seconds: float) -> str:
  """Says how long the rest takes.

  Args:
    step: number of the step.
    end: number of the last step.
    seconds: how long a step takes.
  """
  left = (end - step) * seconds
  if left < _SHORT:
    return ''
  hours, minutes = divmod(math.ceil(left / 60), 60)
  text = f'{hours} h {minutes} min' if hours else f'{minutes} min'
  return (
    f'A step takes {seconds:.2g} s, so the rest takes about {text}, plus '
    'validations.'
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


def stalled(step: int, config: ml_collections.ConfigDict) -> str:
  """Says why a training ends before its last step; at that step ''.

  Args:
    step: the step after which it ends.
    config: the phase's config.
  """
  end = config.num_train_steps
  if step == end:
    return ''
  return (
    f'The last {config.patience} validations were not better, so the training '
    f'ends after step {step:,} of {end:,}.'
  )


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
