"""The weak prior: what a prior has learned early, kept for autoguidance.

Karras et al. 2024, 'Guiding a Diffusion Model with a Bad Version of Itself',
guide by a model that was trained less.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from dermvq_jax.models.priors import base
from dermvq_jax.training import task as task_lib

PyTree = Any


@dataclasses.dataclass(frozen=True)
class WeakPrior:
  """How a training keeps the weak prior.

  Attributes:
    init: the state before the first step, as a function of the parameters.
    update_state: as in `task.Task`.
  """

  init: Callable[[PyTree], PyTree] = lambda params: {}
  update_state: Callable[..., PyTree] = task_lib.keep_state


def make(config: ml_collections.ConfigDict) -> WeakPrior:
  """Keeps the average of the parameters at the share `config.weak_share`.

  It is the average that `state.TrainState` has after so many steps; without
  one, it is the parameters.

  Args:
    config: a prior's config, from `trainer.resolve`.
  """
  if not config.weak_share:
    return WeakPrior()
  num_steps = base.weak_step(config)

  def init(params):
    # A copy: two donated arguments must not share memory.
    return {base.WEAK: jax.tree.map(jnp.copy, params)}

  def update_state(
    params, model_state, observed, rng, *, step=0, axis_name=None
  ):
    del observed, rng, axis_name
    weak = model_state[base.WEAK]
    decay = jnp.minimum(config.params_ema_decay, step / (9 + step))

    def follow(weak):
      return optax.incremental_update(params, weak, 1 - decay)

    return {
      base.WEAK: jax.lax.cond(step <= num_steps, follow, lambda x: x, weak)
    }

  return WeakPrior(init, update_state)
