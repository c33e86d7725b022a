"""The optimiser from a config."""

import ml_collections
import optax

from dermvq_jax import errors


def make(
  config: ml_collections.ConfigDict, num_train_steps: int
) -> optax.GradientTransformation:
  """AdamW with warm-up, schedule and clipping.

  Args:
    config: `learning_rate`; `schedule` ('constant', or 'cosine' to zero);
      `warmup_steps`; `b2`; `weight_decay`; `max_grad_norm` (0: no clipping).
    num_train_steps: where the cosine ends.

  Raises:
    UserError: unknown schedule, or a warm-up as long as the training.
  """
  peak = config.learning_rate
  if config.schedule == 'cosine':
    if config.warmup_steps >= num_train_steps:
      raise errors.UserError(
        f'config.optim.warmup_steps={config.warmup_steps} leaves nothing of '
        f'{num_train_steps} training steps; lower it or train longer'
      )
    schedule = optax.warmup_cosine_decay_schedule(
      0.0, peak, config.warmup_steps, num_train_steps
    )
  elif config.schedule == 'constant':
    schedule = optax.linear_schedule(0.0, peak, config.warmup_steps)
    if not config.warmup_steps:
      schedule = optax.constant_schedule(peak)
  else:
    raise errors.UserError(
      f"config.optim.schedule is {config.schedule!r}; it must be 'constant' "
      "or 'cosine'"
    )
  steps = [
    optax.adamw(schedule, b2=config.b2, weight_decay=config.weight_decay)
  ]
  if config.max_grad_norm:
    steps.insert(0, optax.clip_by_global_norm(config.max_grad_norm))
  return optax.chain(*steps)
