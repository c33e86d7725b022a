"""One step of training and one of evaluation, as pure functions."""

import functools
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from dermvq_jax.training import metrics, optim, state
from dermvq_jax.training import task as task_lib

PyTree = Any


def _gradients(
  task: task_lib.Task,
  old: state.TrainState,
  batch: PyTree,
  rng: jax.Array,
  axis_name: str | None,
  num_microbatches: int,
) -> tuple[PyTree, metrics.Metrics, PyTree]:
  """Gradients of a batch's mean loss, metrics, and what was observed.

  Microbatches run one after the other, so that the activations of only one are
  in memory; together they give the same as the entire batch.
  """

  def of_part(part: PyTree, rng: jax.Array):
    grad_fn = jax.value_and_grad(task.loss_fn, has_aux=True)
    (loss, (parts, observed)), grads = grad_fn(
      old.params,
      old.model_state,
      part,
      rng,
      train=True,
      step=old.step,
      axis_name=axis_name,
    )
    # One value an example, as of other metrics: then a run may go on with
    # another number of devices between two log steps.
    losses = jnp.broadcast_to(loss, len(jax.tree.leaves(part)[0]))
    return grads, {'loss': metrics.Mean.of(losses), **parts}, observed

  if num_microbatches == 1:
    return of_part(batch, rng)

  def add(sums, numbered):
    n, part = numbered
    grads, parts, observed = of_part(part, jax.random.fold_in(rng, n))
    grads = jax.tree.map(jnp.add, sums[0], grads)
    return (grads, metrics.merge(sums[1], parts)), observed

  # Microbatch i holds every m-th example, starting with i, so every example
  # stays on its device.
  def split(x: jax.Array) -> jax.Array:
    return einops.rearrange(x, '(b m) ... -> m b ...', m=num_microbatches)

  def join(x: jax.Array) -> jax.Array:
    return einops.rearrange(x, 'm b ... -> (b m) ...')

  microbatches = jax.tree.map(split, batch)
  first = jax.tree.map(lambda x: x[0], microbatches)
  shapes = jax.eval_shape(of_part, first, rng)[:2]
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  (grads, parts), observed = jax.lax.scan(
    add, zeros, (jnp.arange(num_microbatches), microbatches)
  )
  grads = jax.tree.map(lambda g: g / num_microbatches, grads)
  return grads, parts, jax.tree.map(join, observed)


def norms(
  optimizer: optim.Optimizer, tree: PyTree, name: str
) -> dict[str, jax.Array]:
  """Euclidean norms of all values of each sub-tree, float32 scalars.

  Args:
    optimizer: the optimizer of the parameters.
    tree: a tree like the parameters.
    name: name of the norm; if a sub-tree has a name, it is appended.
  """

  def norm(subtree: PyTree) -> jax.Array:
    # As dot products: another sum over the gradients would make XLA:CPU round
    # the parameters differently.
    leaves = [x.astype(jnp.float32).ravel() for x in jax.tree.leaves(subtree)]
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in leaves))

  return {
    f'{name}/{key}' if key else name: norm(subtree)
    for key, subtree in optimizer.subtrees(tree).items()
  }


def _gradient_norms(
  optimizer: optim.Optimizer, grads: PyTree, is_due: jax.Array
) -> metrics.Metrics:
  """Norms of the gradients as metrics; those that are not due cost nothing."""

  def measure() -> dict[str, jax.Array]:
    return norms(optimizer, grads, 'grad_norm')

  def skip() -> dict[str, jax.Array]:
    return {name: jnp.zeros(()) for name in jax.eval_shape(measure)}

  count = is_due.astype(jnp.float32)
  found = jax.lax.cond(is_due, measure, skip)
  return {name: metrics.Mean(norm, count) for name, norm in found.items()}


def make_train_step(
  task: task_lib.Task,
  optimizer: optim.Optimizer,
  rng: jax.Array,
  *,
  ema_decay: float = 0.0,
  skip_nonfinite: bool = False,
  num_microbatches: int = 1,
  is_logged: Callable[[jax.Array], jax.Array] = lambda step: step > 0,
) -> Callable[..., PyTree]:
  """One update, as a function for `parallel.Parallel.compile`.

  The tree that it maps holds `state` (TrainState) and two sums of metrics:
  `window` since the last log step and `epoch` since the last validation. The
  step's randomness is a function of its number, so nothing random is stored. A
  step whose result is not finite changes none of them; see `TrainState.accept`.

  Args:
    task: what is trained.
    optimizer: the optimizer of the task's parameters.
    rng: the root of all randomness.
    ema_decay: decay of the moving average of the parameters.
    skip_nonfinite: whether to continue after a step that is not finite.
    num_microbatches: how many parts of the batch run one after the other.
    is_logged: whether the norms of the gradients are measured in a step, by its
      number from 1; by default always.
  """

  def train_step(tree: PyTree, batch: PyTree, *, axis_name: str | None):
    old = tree['state']
    step_rng = jax.random.fold_in(rng, old.step)
    grads, parts, observed = _gradients(
      task, old, batch, step_rng, axis_name, num_microbatches
    )
    model_state = task.update_state(
      old.params,
      old.model_state,
      observed,
      step_rng,
      step=old.step,
      axis_name=axis_name,
    )
    if axis_name is not None:
      grads = jax.lax.pmean(grads, axis_name)
      parts = jax.lax.psum(parts, axis_name)
    parts |= _gradient_norms(optimizer, grads, is_logged(old.step + 1))
    new, good = old.accept(
      old.update(grads, model_state, optimizer.tx, ema_decay),
      parts['loss'].total,
      grads,
      skip=skip_nonfinite,
    )
    parts = jax.tree.map(lambda x: jnp.where(good, x, 0), parts)
    if skip_nonfinite:
      parts['skipped_steps'] = metrics.Count(1 - good.astype(jnp.int32))
    return {
      'state': new,
      'window': metrics.merge(tree['window'], parts),
      'epoch': metrics.merge(tree['epoch'], parts),
    }

  return train_step


def make_eval_step(task: task_lib.Task) -> Callable[..., PyTree]:
  """Makes the function that adds a batch's metrics, for `Parallel.compile`."""

  def eval_step(tree: PyTree, batch: PyTree, *, axis_name: str | None):
    _, (parts, _) = task.loss_fn(
      tree['params'],
      tree['model_state'],
      batch,
      jax.random.key(0),  # evaluation is not random
      train=False,
      axis_name=axis_name,
    )
    if axis_name is not None:
      parts = jax.lax.psum(parts, axis_name)
    return metrics.merge(tree['metrics'], parts)

  return eval_step


def zero_metrics(
  task: task_lib.Task,
  train_state: state.TrainState,
  batch: PyTree,
  *,
  train: bool,
) -> metrics.Metrics:
  """The sums of the metrics of `task.loss_fn` before the first batch."""
  _, (parts, _) = jax.eval_shape(
    functools.partial(task.loss_fn, train=train, axis_name=None),
    train_state.params,
    train_state.model_state,
    batch,
    jax.random.key(0),
  )
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parts)


def zero_sums(
  task: task_lib.Task,
  optimizer: optim.Optimizer,
  train_state: state.TrainState,
  batch: PyTree,
  *,
  skip_nonfinite: bool = False,
) -> metrics.Metrics:
  """The sums of the metrics of `make_train_step` before the first step."""
  shapes = jax.eval_shape(
    lambda params: norms(optimizer, params, 'grad_norm'), train_state.params
  )
  zero = np.zeros((), np.float32)
  sums = {name: metrics.Mean(zero, zero) for name in ('loss', *shapes)}
  sums |= zero_metrics(task, train_state, batch, train=True)
  if skip_nonfinite:
    sums['skipped_steps'] = metrics.Count(np.zeros((), np.int32))
  return sums
