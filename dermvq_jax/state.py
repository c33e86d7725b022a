"""The state of training: all that a step changes."""

from typing import Any, Self

import flax
import jax
import jax.numpy as jnp
import optax

PyTree = Any


@flax.struct.dataclass
class TrainState:
  """What a step takes and returns.

  Attributes:
    step: int32 scalar, number of updates made.
    params: trained by gradients.
    model_state: other collections, for example the codebook's statistics.
    ema_params: moving average of params; None when it is off.
    opt_state: of the optimiser.
  """

  step: jax.Array
  params: PyTree
  model_state: PyTree
  ema_params: PyTree | None
  opt_state: PyTree

  @classmethod
  def create(
    cls,
    params: PyTree,
    model_state: PyTree,
    tx: optax.GradientTransformation,
    ema: bool,
  ) -> Self:
    """The state before the first step."""
    return cls(
      step=jnp.zeros((), jnp.int32),
      params=params,
      model_state=model_state,
      # A copy: two donated arguments must not share memory.
      ema_params=jax.tree.map(jnp.copy, params) if ema else None,
      opt_state=tx.init(params),
    )

  def update(
    self,
    grads: PyTree,
    model_state: PyTree,
    tx: optax.GradientTransformation,
    ema_decay: float,
  ) -> Self:
    """One update. The average's decay starts small: (1 + t) / (10 + t)."""
    updates, opt_state = tx.update(grads, self.opt_state, self.params)
    params = optax.apply_updates(self.params, updates)
    ema_params = self.ema_params
    if ema_params is not None:
      decay = jnp.minimum(ema_decay, (1 + self.step) / (10 + self.step))
      ema_params = optax.incremental_update(params, ema_params, 1 - decay)
    return self.replace(
      step=self.step + 1,
      params=params,
      model_state=model_state,
      ema_params=ema_params,
      opt_state=opt_state,
    )

  @property
  def eval_params(self) -> PyTree:
    """The parameters to evaluate and to keep."""
    return self.params if self.ema_params is None else self.ema_params
