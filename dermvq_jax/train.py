"""The only training loop, its validation loop included; it knows no model."""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from etils import epath

from dermvq_jax import (
  checkpoints,
  encode,
  errors,
  logs,
  metrics,
  optim,
  parallel,
  progress,
  state,
  tasks,
  workdirs,
)
from dermvq_jax.data import augment, pipeline, prepared

PyTree = Any


def make_train_step(
  task: tasks.Task,
  tx: optax.GradientTransformation,
  rng: jax.Array,
  ema_decay: float,
) -> Callable[..., PyTree]:
  """One update, as a function for `parallel.Parallel.compile`.

  The tree it maps holds `state` (TrainState) and two sums of metrics: `window`
  since the last log step and `epoch` since the last validation. The step's
  randomness is a function of its number, so nothing random is stored.
  """

  def train_step(tree: PyTree, batch: PyTree, *, axis_name: str | None):
    old = tree['state']
    grad_fn = jax.value_and_grad(task.loss_fn, has_aux=True)
    (loss, (parts, model_state)), grads = grad_fn(
      old.params,
      old.model_state,
      batch,
      jax.random.fold_in(rng, old.step),
      train=True,
      axis_name=axis_name,
    )
    parts = {'loss': metrics.Mean.of(loss[None]), **parts}
    if axis_name is not None:
      grads = jax.lax.pmean(grads, axis_name)
      parts = jax.lax.psum(parts, axis_name)
    return {
      'state': old.update(grads, model_state, tx, ema_decay),
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


def _zero_metrics(task: tasks.Task, train_state, batch, train: bool):
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
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parts)


def _resolve(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> ml_collections.ConfigDict:
  """Turns epochs into steps: an epoch is `num_train // batch_size` steps."""
  for name in ('batch_size', 'log_every_steps', 'checkpoint_every_steps'):
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
    self.parallel.check_batch_size(config.batch_size)
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
    zeros = _zero_metrics(self.task, train_state, next(whole()), train=True)
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


def _loop(
  trainer: _Trainer,
  tree: PyTree,
  saved: checkpoints.Checkpoints,
  stack: contextlib.ExitStack,
):
  """Trains from the latest checkpoint, or from `tree`, to the end."""
  config, par = trainer.config, trainer.parallel
  restorable = {'tree': tree, 'best': np.float32(np.inf)}
  start = saved.latest_step() or 0
  if start:
    restorable = saved.restore(restorable)
    logging.info('Resuming %s at step %d.', config.task, start)
  tree, best = par.put_tree(restorable['tree']), float(restorable['best'])
  end = config.num_train_steps
  log = stack.enter_context(contextlib.closing(logs.Log(trainer.folder, start)))
  if not start:
    log.parameters(restorable['tree']['state'].params)
  step_fn = par.compile(
    make_train_step(
      trainer.task, trainer.tx, trainer.step_rng, config.params_ema_decay
    ),
    donate=True,
  )
  batches = trainer.train_batches(start)
  example = next(trainer.val_batches())
  bar = stack.enter_context(
    progress.bar(initial=start, total=end, desc=config.task, unit='step')
  )
  logged, since = start, time.time()
  for step in range(start + 1, end + 1):
    tree = step_fn(tree, par.put_batch(next(batches)))
    bar.update()
    last = step == end
    if step % config.log_every_steps == 0 or last:
      tree, row = _fetch(tree, 'window', 'step/', par)
      _check_finite(row['step/loss'], step, trainer.folder)
      row['step/steps_per_second'] = (step - logged) / (time.time() - since)
      log.scalars(step, row)
      bar.set_postfix(loss=f'{row["step/loss"]:.4g}')
    if step % config.eval_every_steps == 0 or last:
      tree, row = _fetch(tree, 'epoch', 'train/', par)
      row |= trainer.evaluate(tree['state'])
      log.scalars(step, row)
      log.images(step, _summary_images(trainer.task, tree['state'], example))
      score = row[f'val/{trainer.task.best_metric}']
      if score < best:
        best = score
        saved.save_best(
          step,
          {
            'params': tree['state'].eval_params,
            'model_state': tree['state'].model_state,
          },
        )
    if step % config.checkpoint_every_steps == 0 or last:
      log.flush()
      host = jax.device_get(tree)
      _check_finite(host, step, trainer.folder)
      saved.save(step, {'tree': host, 'best': np.float32(best)})
    if step % config.log_every_steps == 0:
      # Validation and saving at log steps are not counted as time of steps.
      logged, since = step, time.time()


def _summary_images(task, train_state, example):
  return task.summary_images(
    train_state.eval_params, train_state.model_state, example
  )


def _check_finite(values: PyTree, step: int, folder: epath.Path):
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(values)):
    raise errors.UserError(
      f'the loss or a weight became infinite or NaN before step {step}; the '
      f'last good checkpoint is in {folder}; lower config.optim.learning_rate '
      'or set config.optim.max_grad_norm, in another --workdir'
    )


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike):
  """Trains one phase in `workdir`, or goes on where it stopped.

  Args:
    config: of configs/vqvae.py, configs/prior.py or configs/classifier.py.
    workdir: the run's folder; this phase's part is `workdir/<config.task>`.

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
  # Wrong configs are found before anything is written.
  trainer = _Trainer(config, folder, facts, sources)
  workdirs.check_config(folder, config, facts)
  # Also on resume: it gives the structure that the checkpoint fills.
  tree = trainer.start()
  workdirs.save_config(folder, config, facts)
  saved = checkpoints.Checkpoints(folder)
  try:
    if (saved.latest_step() or 0) >= config.num_train_steps:
      logging.info('%s is already trained.', folder)
      return
    with contextlib.ExitStack() as stack:
      _loop(trainer, tree, saved, stack)
  finally:
    saved.close()
