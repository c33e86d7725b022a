"""A run's trained prior: what sampling and scoring need of it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dermvq_jax import errors
from dermvq_jax.models import build
from dermvq_jax.models.priors import base, sampler
from dermvq_jax.runs import phase as phase_lib
from dermvq_jax.runs import run as run_lib


@dataclasses.dataclass(frozen=True)
class TrainedPrior:
  """A trained prior.

  Attributes:
    model: the module.
    variables: its variables, `{'params': ...}`, and `base.WEAK` if it has kept
      a weak prior.
    loss: the loss that it was trained with.
    drop_rates: the share of training images that did not know a condition, by
      its name.
    score: codes and conditions to log-likelihoods, `build.likelihood`.
  """

  model: base.Prior
  variables: Any
  loss: str
  drop_rates: Mapping[str, float]
  score: Callable[..., tuple[jax.Array, jax.Array]]

  def check(self, controls: sampler.Controls):
    """Raises UserError if guidance needs what this prior has not learned."""
    never = [name for name, rate in self.drop_rates.items() if not rate]
    if controls.guides and never:
      raise errors.UserError(
        'guidance is on, but this prior was trained with '
        f'config.conditions.{", ".join(never)}=0 and does not know its null '
        'value'
      )
    if controls.autoguides and base.WEAK not in self.variables:
      raise errors.UserError(
        'autoguidance is on, but this prior has no weak prior; train it again, '
        'with config.weak_share above 0 and until its best step is later'
      )


def has_weak_prior(phase: phase_lib.Phase) -> bool:
  """Whether a prior has kept a weak prior, of an earlier step than its own."""
  config = phase.config
  if not config.weak_share or 'start_digest' in config:
    # One that was trained on keeps what it started with, and counts anew.
    return bool(config.weak_share)
  return int(phase.weights_id.partition('-')[0]) > base.weak_step(config)


def load(run: run_lib.Run) -> TrainedPrior:
  """Loads the prior of a run; raises UserError if there is none."""
  workdir, phase = run.workdir, run.prior
  if not phase.started:
    raise errors.UserError(
      f'{workdir} has no trained prior; run dermvq encode --workdir='
      f'{workdir}, then dermvq train --config=prior --workdir={workdir}'
    )
  weights = phase.weights  # first, as those of the VQ-VAE
  model = build.prior(phase.config, phase.facts)
  variables = jax.device_put(build.variables(weights))
  if not has_weak_prior(phase):
    variables.pop(base.WEAK, None)
  return TrainedPrior(
    model,
    variables,
    phase.config.loss,
    dict(phase.config.conditions),
    functools.partial(build.likelihood(model, phase.config.loss), variables),
  )
