"""The only training loop, its validation loop included; it knows no model."""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import einops
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from etils import epath

from dermvq_jax import errors, progress
from dermvq_jax.data import augment, pipeline, prepared
from dermvq_jax.generation import encode
from dermvq_jax.runs import checkpoints, hosts, logs, workdirs
from dermvq_jax.training import metrics, optim, parallel, state, stopping, tasks

PyTree = Any


def _gradients(
  task: tasks.Task,
  old: state.TrainState,
  batch: PyTree,
  rng: jax.Array,
  axis_name: str | None,
  num_microbatches: int,
) -> tuple[PyTree, metrics.Metrics, PyTree]:
  """Gradients of a batch's mean loss, metrics, and what was observed.

  The microbatches follow each other, so that only one's activations are in
  memory; together they give what the whole batch does.
  """

  def of_part(part: PyTree, rng: jax.Array):
    grad_fn = jax.value_and_grad(task.loss_fn, has_aux=True)
    (loss, (parts, observed)), grads = grad_fn(
      old.params, old.model_state, part, rng, train=True, axis_name=axis_name
    )
    return grads, {'loss': metrics.Mean.of(loss[None]), **parts}, observed

  if num_microbatches == 1:
    return of_part(batch, rng)

  def add(sums, numbered):
    n, part = numbered
    grads, parts, observed = of_part(part, jax.random.fold_in(rng, n))
    grads = jax.tree.map(jnp.add, sums[0], grads)
    return (grads, metrics.merge(sums[1], parts)), observed

  # Every so many-th example: each device's microbatches are of its own.
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


def make_train_step(
  task: tasks.Task,
  tx: optax.GradientTransformation,
  rng: jax.Array,
  ema_decay: float,
  skip_nonfinite: bool = False,
  num_microbatches: int = 1,
) -> Callable[..., PyTree]:
  """One update, as a function for `parallel.Parallel.compile`.

  The tree it maps holds `state` (TrainState) and two sums of metrics: `window`
  since the last log step and `epoch` since the last validation. The step's
  randomness is a function of its number, so nothing random is stored. A step
  whose result is not finite changes none of them; see `TrainState.accept`.
  """

  def train_step(tree: PyTree, batch: PyTree, *, axis_name: str | None):
    old = tree['state']
    step_rng = jax.random.fold_in(rng, old.step)
    grads, parts, observed = _gradients(
      task, old, batch, step_rng, axis_name, num_microbatches
    )
    model_state = task.update_state(
      old.params, old.model_state, observed, step_rng, axis_name=axis_name
    )
    if axis_name is not None:
      grads = jax.lax.pmean(grads, axis_name)
      parts = jax.lax.psum(parts, axis_name)
    new, good = old.accept(
      old.update(grads, model_state, tx, ema_decay),
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


def make_eval_step(task: tasks.Task) -> Callable[..., PyTree]:
  """Adds one batch's metrics; for `parallel.Parallel.compile`."""

  def eval_step(tree: PyTree, batch: PyTree, *, axis_name: str | None):
    _, (parts, _) = task.loss_fn(
      tree['params'],
      tree['model_state'],
      batch,
      jax.random.key(0),  # evaluation draws nothing
      train=False,
      axis_name=axis_name,
    )
    if axis_name is not None:
      parts = jax.lax.psum(parts, axis_name)
    return metrics.merge(tree['metrics'], parts)

  return eval_step


def _zero_metrics(
  task: tasks.Task, train_state, batch, train: bool, skip: bool = False
):
  """The metrics before the first batch."""
  _, (parts, _) = jax.eval_shape(
    functools.partial(task.loss_fn, train=train, axis_name=None),
    train_state.params,
    train_state.model_state,
    batch,
    jax.random.key(0),
  )
  if train:
    parts = {'loss': metrics.Mean(*[jnp.zeros(())] * 2), **parts}
  if skip:
    parts['skipped_steps'] = metrics.Count(jnp.zeros((), jnp.int32))
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parts)


def _resolve(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> ml_collections.ConfigDict:
  """Turns epochs into steps: an epoch is `num_train // batch_size` steps."""
  for name in (
    'batch_size',
    'num_microbatches',
    'log_every_steps',
    'checkpoint_every_steps',
  ):
    if config[name] < 1:
      raise errors.UserError(f'config.{name} is {config[name]}; give 1 or more')
  config = ml_collections.ConfigDict(config.to_dict())
  epoch = max(1, facts['num_train'] // config.batch_size)
  if config.data_dir:  # later commands may run in another folder
    config.data_dir = os.path.abspath(os.path.expanduser(config.data_dir))
  config.num_train_steps = config.num_train_steps or math.ceil(
    config.num_epochs * epoch
  )
  config.eval_every_steps = config.eval_every_steps or epoch
  for name in ('num_train_steps', 'eval_every_steps'):
    if config[name] < 1:
      raise errors.UserError(
        f'config.{name} is {config[name]}; give a number of steps, or 0 to '
        'have it from the epochs'
      )
  return config


class _Trainer:
  """One phase's training: what `run` sets up once and the loop uses."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    folder: epath.Path,
    facts: dict[str, Any],
    sources: dict[str, Any],
  ):
    self.config = config
    self.folder = folder
    self.sources = sources
    self.task = tasks.make(config, facts)
    self.tx = optim.make(config.optim, config.num_train_steps)
    self.parallel = parallel.Parallel(config.parallel)
    self.parallel.check_batch_size(config.batch_size, config.num_microbatches)
    root = jax.random.key(config.seed)
    self.init_rng, self.step_rng = jax.random.split(root)
    self.augment = augment.Augment(**config.get('augment', {}))
    self._eval_step = self.parallel.compile(make_eval_step(self.task))

  def train_batches(self, start_step: int, **kwargs) -> Iterator[PyTree]:
    """Batches from a step on; by default this host's part of them."""
    kwargs = {
      'process_index': jax.process_index(),
      'process_count': jax.process_count(),
      'num_workers': self.config.num_workers,
    } | kwargs
    return pipeline.train_batches(
      self.sources['train'],
      batch_size=self.config.batch_size,
      seed=self.config.seed,
      keys=self.task.features,
      start_step=start_step,
      augment=self.augment,
      **kwargs,
    )

  def val_batches(self) -> Iterator[PyTree]:
    """This host's part of the validation split."""
    return pipeline.eval_batches(
      self.sources['val'],
      batch_size=self.config.batch_size,
      keys=self.task.features,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def compile_train_step(self) -> Callable[..., PyTree]:
    """One update, which reuses the tree that it is given."""
    return self.parallel.compile(
      make_train_step(
        self.task,
        self.tx,
        self.step_rng,
        self.config.params_ema_decay,
        self.config.optim.skip_nonfinite,
        self.config.num_microbatches,
      ),
      donate=True,
    )

  def start(self) -> PyTree:
    """The tree before the first step."""
    # Every host sees the whole stream here, so all start alike.
    whole = functools.partial(
      self.train_batches, 0, process_index=0, process_count=1, num_workers=0
    )
    params, model_state = self.task.init(self.init_rng, whole())
    train_state = state.TrainState.create(
      params, model_state, self.tx, ema=self.config.params_ema_decay > 0
    )
    zeros = _zero_metrics(
      self.task,
      train_state,
      next(whole()),
      train=True,
      skip=self.config.optim.skip_nonfinite,
    )
    return {'state': train_state, 'window': zeros, 'epoch': zeros}

  def evaluate(self, train_state: state.TrainState) -> dict[str, float]:
    """Metrics over the whole validation split."""
    weights = {
      'params': train_state.eval_params,
      'model_state': train_state.model_state,
    }
    sums = None
    for batch in self.val_batches():
      if sums is None:
        sums = self.parallel.put_tree(
          _zero_metrics(self.task, train_state, batch, train=False)
        )
      sums = self._eval_step(
        weights | {'metrics': sums}, self.parallel.put_batch(batch)
      )
    return metrics.compute(jax.device_get(sums), 'val/')


def _fetch(
  tree: PyTree, name: str, prefix: str, par: parallel.Parallel
) -> tuple[PyTree, dict[str, float]]:
  """Reads the sums `tree[name]` and starts them anew."""
  sums = jax.device_get(tree[name])
  zeros = par.put_tree(jax.tree.map(np.zeros_like, sums))
  return tree | {name: zeros}, metrics.compute(sums, prefix)


def _is_due(step: int, every: int, end: int) -> bool:
  return step % every == 0 or step == end


def _loop(
  trainer: _Trainer,
  start: int,
  restored: PyTree,
  saved: checkpoints.Checkpoints,
  requests: stopping.Requests,
  stack: contextlib.ExitStack,
  profile: bool,
):
  """Trains from step `start`, whose state is `restored`, to the end."""
  config, par = trainer.config, trainer.parallel
  tree = par.put_tree(restored['tree'])
  best = _best_so_far(float(restored['best']), saved)
  end = config.num_train_steps
  log = stack.enter_context(
    contextlib.closing(logs.open_log(trainer.folder, start))
  )
  trace = logs.Trace(
    trainer.folder / 'profile' if profile else None, start, end
  )
  stack.callback(trace.close)
  if start:
    logging.info('Resuming %s at step %d.', config.task, start)
  else:
    log.parameters(restored['tree']['state'].params)
  step_fn = trainer.compile_train_step()
  batches = trainer.train_batches(start)
  example = next(trainer.val_batches())
  bar = stack.enter_context(
    progress.bar(
      initial=start,
      total=end,
      desc=config.task,
      unit='step',
      disable=not hosts.is_primary(),
    )
  )
  if signal := requests.agreed(start):
    raise errors.StoppedError(signal)
  logged, since = start, time.time()
  for step in range(start + 1, end + 1):
    # Dispatch does not wait: the next batch is made and put on the devices
    # while this step runs.
    with trace.step(step, tree):
      tree = step_fn(tree, par.put_batch(next(batches)))
    bar.update()
    signal = requests.agreed(step)
    logs_now = _is_due(step, config.log_every_steps, end)
    evaluates = _is_due(step, config.eval_every_steps, end)
    saves = bool(signal) or _is_due(step, config.checkpoint_every_steps, end)
    if logs_now or evaluates or saves:
      _check_finite(tree['state'], saved, trainer.folder)
    if logs_now:
      tree, row = _fetch(tree, 'window', 'step/', par)
      _check_not_all_skipped(row, step, saved, trainer.folder)
      row['step/steps_per_second'] = (step - logged) / (time.time() - since)
      log.scalars(step, row)
      bar.set_postfix(loss=f'{row["step/loss"]:.4g}')
    if evaluates:
      tree, row = _fetch(tree, 'epoch', 'train/', par)
      row |= trainer.evaluate(tree['state'])
      log.scalars(step, row)
      log.images(step, _summary_images(trainer.task, tree['state'], example))
      best = _keep_best(trainer, step, tree['state'], row, best, saved)
    if saves:
      log.flush()
      saved.save(step, {'tree': tree, 'best': np.float32(best)})
    if signal and step < end:
      raise errors.StoppedError(signal)
    if step % config.log_every_steps == 0:
      # Validation and saving at log steps are not counted as time of steps.
      logged, since = step, time.time()


def _best_so_far(best: float, saved: checkpoints.Checkpoints) -> float:
  """Infinity if the weights are lost: the next validation makes new ones."""
  return best if math.isinf(best) or saved.best_is_whole() else math.inf


def _keep_best(
  trainer: _Trainer,
  step: int,
  train_state: state.TrainState,
  row: dict[str, float],
  best: float,
  saved: checkpoints.Checkpoints,
) -> float:
  """Saves the weights if they are the best so far; returns the best value."""
  score = row[f'val/{trainer.task.best_metric}']
  if not score < best:
    return best
  weights = {
    'params': train_state.eval_params,
    'model_state': train_state.model_state,
  }
  saved.save_best(step, weights)
  return score


def _summary_images(task, train_state, example):
  # Host arrays: what is on the devices of other hosts can't be used alone.
  weights = train_state.eval_params, train_state.model_state
  return task.summary_images(*jax.device_get(weights), example)


def _check_finite(
  train_state: state.TrainState,
  saved: checkpoints.Checkpoints,
  folder: epath.Path,
):
  """Raises UserError if the state was frozen; what is saved is from before."""
  step, what = jax.device_get(train_state.failure)
  if step:
    raise errors.UserError(
      f'{state.FAILURES[what - 1]} became infinite or NaN at step {step}; '
      + _what_to_do(saved, folder)
    )


def _check_not_all_skipped(
  row: dict[str, float],
  step: int,
  saved: checkpoints.Checkpoints,
  folder: epath.Path,
):
  """Raises UserError if a log window has no step that was not skipped."""
  if math.isnan(row['step/loss']):  # The mean of none; others are finite.
    raise errors.UserError(
      'the loss or a gradient was infinite or NaN in all '
      f'{row["step/skipped_steps"]:.0f} steps up to step {step}; '
      + _what_to_do(saved, folder)
    )


def _what_to_do(saved: checkpoints.Checkpoints, folder: epath.Path) -> str:
  latest = saved.latest_step()
  kept = f'step {latest} in {folder}' if latest else f'none yet in {folder}'
  return (
    f'the last good checkpoint is kept ({kept}); lower '
    'config.optim.learning_rate or set config.optim.max_grad_norm, in another '
    '--workdir'
  )


def run(
  config: ml_collections.ConfigDict,
  workdir: epath.PathLike,
  *,
  profile: bool = False,
):
  """Trains one phase in `workdir`, or goes on where it stopped.

  Args:
    config: of configs/vqvae.py, configs/prior.py or configs/classifier.py.
    workdir: the run's folder; this phase's part is `workdir/<config.task>`.
    profile: whether to write a trace of a few steps to the phase's folder.

  Raises:
    UserError: a mistake in the config, the data or the workdir.
  """
  workdir = epath.Path(workdir).expanduser()
  dataset, data_dir = encode.resolve_dataset(config, workdir)
  facts = prepared.describe(dataset, data_dir)
  config = _resolve(config, facts)
  folder = workdirs.phase_dir(workdir, config.task)
  sources = {
    split: prepared.open_split(dataset, data_dir, split)
    for split in ('train', 'val')
  }
  with contextlib.ExitStack() as stack:
    requests = stack.enter_context(stopping.Requests())
    # Wrong configs are found before anything is written.
    trainer = _Trainer(config, folder, facts, sources)
    workdirs.check_config(folder, config, facts)
    # Also on resume: it gives the structure that the checkpoint fills.
    tree = trainer.start()
    if hosts.is_primary():
      stack.enter_context(workdirs.locked(workdir))
      workdirs.save_config(folder, config, facts)
    hosts.wait_for_all('the config is written')
    saved = checkpoints.Checkpoints(folder)
    stack.enter_context(contextlib.closing(saved))
    start, restored = saved.restore({'tree': tree, 'best': np.float32(np.inf)})
    if start >= config.num_train_steps:
      logging.info('%s is already trained.', folder)
      return
    _loop(trainer, start, restored, saved, requests, stack, profile)
