"""The state of training: everything that a step changes."""

from typing import Any, Self

import flax
import jax
import jax.numpy as jnp
import optax
from jax import lax

PyTree = Any
# What can stop being finite, in the order of the checks.
FAILURES = ('the loss', 'a gradient', 'a weight')


@flax.struct.dataclass
class TrainState:
  """What a step takes and returns.

  Attributes:
    step: int32 scalar, number of updates made.
    params: trained by gradients.
    model_state: other collections, for example the codebook's statistics.
    ema_params: moving average of params; None when it is off.
    opt_state: of the optimiser.
    failure: int32 `[2]`: the first step whose result was not finite, and which
      of `FAILURES` it was, counted from 1. Zeros if there is no such step.
  """

  step: jax.Array
  params: PyTree
  model_state: PyTree
  ema_params: PyTree | None
  opt_state: PyTree
  failure: jax.Array

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
      failure=jnp.zeros(2, jnp.int32),
    )

  def update(
    self,
    grads: PyTree,
    model_state: PyTree,
    tx: optax.GradientTransformation,
    ema_decay: float,
  ) -> Self:
    """One update. The average's decay starts small: (1 + t) / (10 + t).

    Args:
      grads: like `params`.
      model_state: the new collections.
      tx: the transformation of the optimiser.
      ema_decay: decay of the moving average of params, if there is one.
    """
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

  def accept(
    self, new: Self, loss: jax.Array, grads: PyTree, *, skip: bool
  ) -> tuple[Self, jax.Array]:
    """Takes `new` only if it, the loss and the gradients are finite.

    Otherwise this state stays as it is: with `skip` until the next step, and
    otherwise forever, with the reason in `failure`.

    Args:
      new: the state after this one.
      loss: scalar, the same on all devices.
      grads: the same on all devices.
      skip: whether to continue after a step that is not finite.

    Returns:
      The next state, and whether it is `new`, bool scalar.
    """
    finite = jnp.stack([_all_finite(tree) for tree in (loss, grads, new)])
    # Otherwise XLA fuses the flags of all arrays into the update of each array,
    # and the time to compile grows with the square of their number.
    finite = lax.optimization_barrier(finite)
    good = finite.all()
    if skip:
      old = self.replace(step=new.step)
    else:
      good &= self.failure[0] == 0
      # argmin finds the first one that is false.
      failure = jnp.stack([new.step, 1 + jnp.argmin(finite).astype(jnp.int32)])
      failed_before = self.failure[0] > 0
      old = self.replace(
        failure=jnp.where(failed_before, self.failure, failure)
      )
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old), good

  @property
  def eval_params(self) -> PyTree:
    """The parameters to evaluate and to keep."""
    return self.params if self.ema_params is None else self.ema_params


def _all_finite(tree: PyTree) -> jax.Array:
  """Whether all numbers are finite, bool scalar."""
  leaves = jax.tree.leaves(tree)
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
