"""The only training loop, including validation; it knows no model."""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, progress
from dermvq_jax.runs import checkpoints, hosts, logs
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import (
  messages,
  metrics,
  parallel,
  pretrained,
  state,
  stopping,
)
from dermvq_jax.training import (
  trainer as trainer_lib,
)

PyTree = Any


def _fetch(
  tree: PyTree, name: str, prefix: str, par: parallel.Parallel
) -> tuple[PyTree, dict[str, float]]:
  """Reads the sums `tree[name]` and sets them to zero."""
  sums = jax.device_get(tree[name])
  zeros = par.put_tree(jax.tree.map(np.zeros_like, sums))
  return tree | {name: zeros}, metrics.compute(sums, prefix)


def _say(text: str):
  """Says something once, for all hosts."""
  if text and hosts.is_primary():
    logging.info('%s', text)


class _Pace:
  """How long steps take, without compiling, validating and saving."""

  def __init__(self, start: int, end: int):
    """Starts the clock before step `start + 1` of `end`."""
    self._first, self._end, self._is_told = start + 1, end, False
    self.restart(start)

  def restart(self, step: int):
    """Leaves out the time since `steps_per_second(step)`."""
    self._step, self._since = step, time.time()

  def steps_per_second(self, step: int) -> float:
    """Since the last restart."""
    return (step - self._step) / (time.time() - self._since)

  def time_left(self, step: int, steps_per_second: float) -> str:
    """Says once how long the rest takes; before and after that ''."""
    if self._is_told or step == self._first:
      return ''
    self._is_told = True
    return messages.time_left(step, self._end, 1 / steps_per_second)


def _is_due(step: int, every: int, end: int) -> bool:
  return step % every == 0 or step == end


class _Best(NamedTuple):
  """The best validation so far.

  Attributes:
    value: of the task's `best_metric`; infinity if there is none.
    step: its step; 0 if there is none.
  """

  value: float = math.inf
  step: int = 0

  def has_stalled(self, config: ml_collections.ConfigDict, step: int) -> bool:
    """Whether the training waited as long as `patience` allows for a better."""
    waited = step - self.step
    return 0 < config.patience * config.eval_every_steps <= waited

  def has_ended(self, config: ml_collections.ConfigDict, step: int) -> bool:
    """Whether the training ends after this step."""
    return step >= config.num_train_steps or self.has_stalled(config, step)


def _loop(
  trainer: trainer_lib.Trainer,
  start: int,
  tree: PyTree,
  best: _Best,
  saved: checkpoints.Checkpoints,
  requests: stopping.Requests,
  log: logs.Log | logs.NoLog,
  trace: logs.Trace,
  stack: contextlib.ExitStack,
):
  """Trains to the end.

  Args:
    trainer: what is trained.
    start: the step that training resumes from; 0: a new training.
    tree: the state and the metrics after that step.
    best: the validation of the weights in best/.
    saved: where checkpoints go.
    requests: the signals that ask to stop.
    log: where metrics go.
    trace: records where the time of a few steps goes.
    stack: closes everything that is opened here.
  """
  config, par, folder = trainer.config, trainer.parallel, saved.folder
  tree = par.put_tree(tree)
  end = config.num_train_steps
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
  pace = _Pace(start, end)
  for step in range(start + 1, end + 1):
    logs_now = trainer.is_logged(step)
    old = trainer.copy(tree['state'].params) if logs_now else None
    # Dispatch does not wait: the next batch is made and put on the devices
    # while this step runs.
    with trace.step(step, tree):
      tree = step_fn(tree, par.put_batch(next(batches)))
    bar.update()
    signal = requests.agreed(step)
    evaluates = _is_due(step, config.eval_every_steps, end)
    saves = bool(signal) or _is_due(step, config.checkpoint_every_steps, end)
    if logs_now or evaluates or saves:
      _check_finite(tree['state'], saved, folder)
    if logs_now:
      tree, row = _fetch(tree, 'window', 'step/', par)
      _check_not_all_skipped(row, step, saved, folder)
      row['step/steps_per_second'] = speed = pace.steps_per_second(step)
      measured = {
        **trainer.learning_rates(step),
        **trainer.parameter_norms(old, tree['state'].params),
      }
      row |= {f'step/{name}': value for name, value in measured.items()}
      log.scalars(step, row)
      bar.set_postfix(loss=f'{row["step/loss"]:.4g}', refresh=False)
      _say(pace.time_left(step, speed))
    if evaluates:
      tree, best = _validate(trainer, step, tree, best, example, saved, log)
    has_ended = evaluates and best.has_ended(config, step)
    if saves or has_ended:
      log.flush()
      saved.save(step, {'tree': tree, 'best': np.float32(best.value)})
    if has_ended:
      _say(messages.stalled(step, config))
      return
    if signal:
      raise errors.StoppedError(signal)
    if step == start + 1 or step % config.log_every_steps == 0:
      jax.block_until_ready(tree)  # of the first step, which compiles
      pace.restart(step)


def _validate(
  trainer: trainer_lib.Trainer,
  step: int,
  tree: PyTree,
  best: _Best,
  example: PyTree,
  saved: checkpoints.Checkpoints,
  log: logs.Log | logs.NoLog,
) -> tuple[PyTree, _Best]:
  """Validates, and saves the weights if they are the best so far.

  Returns:
    `tree` with new sums of metrics, and the best validation so far.
  """
  tree, row = _fetch(tree, 'epoch', 'train/', trainer.parallel)
  train_state = tree['state']
  row |= trainer.evaluate(train_state)
  log.scalars(step, row)
  log.images(step, _summary_images(trainer.task, train_state, example))
  _say(messages.evaluation(trainer.task, step, row, best.value))
  value = row[f'val/{trainer.task.best_metric}']
  if value < best.value:
    saved.save_best(step, trainer.kept_weights(train_state))
    best = _Best(value, step)
  return tree, best


def _restore_best(
  trainer: trainer_lib.Trainer,
  start: int,
  value: np.float32,
  rows: Sequence[Mapping[str, float]],
  saved: checkpoints.Checkpoints,
  like: PyTree,
) -> _Best:
  """Returns the best validation up to a checkpoint; see `repair_best`.

  Args:
    trainer: what is trained.
    start: the checkpoint's step.
    value: the best value in it.
    rows: the metrics.
    saved: where checkpoints are.
    like: gives the structure of a checkpoint.
  """
  key = f'val/{trainer.task.best_metric}'
  steps = [r['step'] for r in rows if np.float32(r.get(key, 'nan')) == value]
  best = _Best(float(value), min([start, *steps]))
  value = saved.repair_best(
    value,
    steps,
    like,
    lambda tree: trainer.kept_weights(tree['tree']['state']),
    best.has_ended(trainer.config, start),
  )
  return best._replace(value=float(value))


def _summary_images(task, train_state, example):
  # Copied to the host: one process cannot compute alone with arrays that are
  # spread over hosts.
  weights = train_state.eval_params, train_state.model_state
  return task.summary_images(*jax.device_get(weights), example)


def _check_finite(
  train_state: state.TrainState,
  saved: checkpoints.Checkpoints,
  folder: epath.Path,
):
  """Raises UserError if a step was not finite.

  Checkpoints are older than that step.
  """
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
  """Raises UserError if all steps of a log window were skipped."""
  if 'step/loss' not in row:  # Means without values are left out.
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


def train(
  config: ml_collections.ConfigDict,
  run: run_lib.Run,
  *,
  profile: bool = False,
  verbose: bool = False,
):
  """Trains one phase of a run, or resumes where it stopped.

  Args:
    config: from configs/vqvae.py, configs/prior.py or configs/classifier.py.
    run: the run; `config.task` names the phase.
    profile: whether to write a trace of a few steps to the phase's folder.
    verbose: whether to show all metrics, as they are in metrics.jsonl.

  Raises:
    UserError: a mistake in the config, the data or the workdir.
    StoppedError: a signal asked the training to stop; the state is saved.
  """
  run.phase(config.task).check_trainable()
  source = pretrained.source(config)
  if source:
    config = pretrained.resolve(config, source, run)
  dataset = pretrained.dataset(config, source, run)
  facts = dataset.facts
  given, config = config, trainer_lib.resolve(config, facts)
  hosts.check_same(run_lib.what_hosts_share(config, facts))
  sources = {split: dataset.split(split) for split in ('train', 'val')}
  with contextlib.ExitStack() as stack:
    requests = stack.enter_context(stopping.Requests())
    start_from = pretrained.start(config, source) if source else None
    # Wrong configs are found before anything is written.
    trainer = trainer_lib.Trainer(config, facts, sources, start_from)
    phase = run.phase(config.task)
    phase.check(config, facts)
    structure = trainer.structure()
    if hosts.is_primary():
      stack.enter_context(run.locked())
      phase.start(config, facts)
      pretrained.copy_vqvae(config.task, source, run)
    hosts.wait_for_all('the config is written')
    saved = checkpoints.Checkpoints(phase.folder)
    stack.enter_context(contextlib.closing(saved))
    like = {'tree': structure, 'best': np.float32(0)}
    start, restored = saved.restore(like)
    best = _Best()
    if start:
      value, rows = restored['best'], phase.metrics()
      best = _restore_best(trainer, start, value, rows, saved, like)
    if best.has_ended(config, start):
      logging.info('%s is already trained.', phase.folder)
    else:
      tree = restored['tree'] if start else trainer.start()
      if start:
        end = config.num_train_steps
        logging.info('Resuming %s at step %d of %d.', config.task, start, end)
      else:
        kept = trainer.task.kept(tree['state'].params)
        _say(messages.plan(given, config, facts, kept))
      log = logs.open_log(phase.folder, start, is_verbose=verbose)
      stack.enter_context(contextlib.closing(log))
      traces = phase.folder / 'profile' if profile else None
      trace = logs.Trace(traces, start, config.num_train_steps)
      stack.callback(trace.close)
      _loop(trainer, start, tree, best, saved, requests, log, trace, stack)
      if hosts.is_primary():
        _say(messages.outcome(trainer.task, phase.folder, phase.metrics()))
    if hosts.is_primary():
      pretrained.copy_prior(config.task, source, run)
