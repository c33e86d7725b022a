"""A phase's training as an object: everything but the loop and the files."""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags

from dermvq_jax import errors, files
from dermvq_jax.data import augment, pipeline
from dermvq_jax.data import facts as facts_lib
from dermvq_jax.models import digests, perceptual
from dermvq_jax.runs import ranges
from dermvq_jax.training import (
  metrics,
  optim,
  parallel,
  pretrained,
  state,
  tasks,
)
from dermvq_jax.training import step as step_lib

PyTree = Any
# Batches up to this size are made for any number of images, which repeat.
_ANY_BATCH = 2**12
# So many validations show a curve; more cost time, and best/ gains little.
_MAX_VALIDATIONS = 20
# A longer warm-up leaves too few steps to learn in.
_MAX_WARMUP_SHARE = 0.1


def resolve(
  config: ml_collections.ConfigDict, facts: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Decides how long a training is, from the number of images.

  An epoch is `num_images // batch_size` steps, also if each image has several
  copies of codes. Unless `num_train_steps` is given, it is `num_epochs` epochs,
  but at least `min_train_steps`. Unless `eval_every_steps` is given, it is the
  fewest epochs that make at most 20 validations. A warm-up takes at most a
  tenth of the steps; with a constant learning rate it stays, because such a
  training can be continued.

  Args:
    config: a phase's config.
    facts: the facts of its dataset.

  Returns:
    A copy in which all values are given.

  Raises:
    UserError: a number is out of its range, or the network of the loss cannot
      be read.
  """
  ranges.check_ranges(config)
  most = max(facts['num_train'], _ANY_BATCH)
  if config.batch_size > most:
    raise errors.UserError(
      f'config.batch_size is {config.batch_size}, but there are '
      f'{facts["num_train"]} training images; give at most {most}'
    )
  config = ml_collections.ConfigDict(config.to_dict())
  epoch = facts_lib.steps_per_epoch(facts, config.batch_size)
  config.data_dir = _absolute(config.data_dir)
  if config.get('perceptual_weights'):
    config.perceptual_weights = _absolute(config.perceptual_weights)
    network = perceptual.View(config.perceptual_weights).load()
    # The file may move: what is in it counts.
    config.perceptual_digest = digests.of_tree(
      {str(i): x for i, x in enumerate(jax.tree.leaves(network[1:]))}
    )
  config.num_train_steps = config.num_train_steps or max(
    math.ceil(config.num_epochs * epoch), config.min_train_steps
  )
  ranges.check_ranges(config)  # Many epochs may be too many steps.
  steps = config.num_train_steps
  config.eval_every_steps = config.eval_every_steps or epoch * math.ceil(
    steps / (epoch * _MAX_VALIDATIONS)
  )
  for optimizer in config.values():
    if _has_schedule(optimizer) and optimizer.schedule == 'cosine':
      longest = int(_MAX_WARMUP_SHARE * steps)
      optimizer.warmup_steps = min(optimizer.warmup_steps, longest)
  return config


def _absolute(path: str) -> str:
  """Makes a path mean the same in whatever folder later commands run."""
  if not path or files.is_remote(path):
    return path
  return os.path.abspath(os.path.expanduser(path))


def _has_schedule(field: Any) -> bool:
  return isinstance(field, ml_collections.ConfigDict) and 'schedule' in field


class Trainer:
  """The setup of a phase's training, and its steps.

  Attributes:
    config: the phase's config, from `resolve`.
    task: what is trained.
    optimizer: the optimizer of the task's parameters.
    parallel: how steps run on devices.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    facts: Mapping[str, Any],
    sources: Mapping[str, Sequence[dict[str, Any]]],
    start_from: pretrained.Start | None = None,
  ):
    """Sets up a training.

    Args:
      config: from `resolve`.
      facts: the facts of the dataset.
      sources: the splits 'train' and 'val' as sequences of records; 'val' is
        needed for `evaluate` only.
      start_from: what is trained on; None: a new training.

    Raises:
      UserError: the config is wrong, or does not fit the data or the devices.
    """
    self.config = config
    self.task = tasks.make(config, facts, start_from)
    self.optimizer = optim.make(config, self.task.optimizers)
    self.parallel = parallel.Parallel(config.parallel)
    self.parallel.check_batch_size(config.batch_size, config.num_microbatches)
    self._sources = sources
    root = jax.random.key(config.seed)
    self._init_rng, self._step_rng = jax.random.split(root)
    self._augment = augment.Augment(**config.get('augment', {}))
    self._indices = None
    if config.get('class_balance'):
      labels = np.array([record['label'] for record in sources['train']])
      self._indices = pipeline.balance(labels, config.class_balance)
    self._eval_step = self.parallel.compile(step_lib.make_eval_step(self.task))
    self.copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))
    self._norms = jax.jit(self._parameter_norms)

  def train_batches(self, start_step: int = 0, **kwargs) -> Iterator[PyTree]:
    """Batches starting at a step; by default this host's part of them."""
    kwargs = {
      'process_index': jax.process_index(),
      'process_count': jax.process_count(),
      'num_workers': self.config.num_workers,
    } | kwargs
    if kwargs['num_workers'] and not flags.FLAGS.is_parsed():
      # grain's worker processes read absl's flags, which a script or notebook
      # need not have parsed.
      flags.FLAGS.mark_as_parsed()
    return pipeline.train_batches(
      self._sources['train'],
      batch_size=self.config.batch_size,
      seed=self.config.seed,
      keys=self.task.keys,
      start_step=start_step,
      augment=self._augment,
      indices=self._indices,
      **kwargs,
    )

  def val_batches(self) -> Iterator[PyTree]:
    """This host's part of the validation split."""
    return pipeline.eval_batches(
      self._sources['val'],
      batch_size=self.config.batch_size,
      keys=self.task.keys,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def is_logged(self, step: int | jax.Array) -> bool | jax.Array:
    """Whether metrics are logged after this step."""
    every, end = self.config.log_every_steps, self.config.num_train_steps
    return (step % every == 0) | (step == end)

  def compile_train_step(self) -> Callable[..., PyTree]:
    """Compiles one update; it reuses the memory of the tree it is given."""
    train_step = step_lib.make_train_step(
      self.task,
      self.optimizer,
      self._step_rng,
      ema_decay=self.config.params_ema_decay,
      skip_nonfinite=self.config.optim.skip_nonfinite,
      num_microbatches=self.config.num_microbatches,
      is_logged=self.is_logged,
    )
    return self.parallel.compile(train_step, donate=True)

  def _whole_batches(self) -> Iterator[PyTree]:
    """The unsharded stream, the same on every host."""
    return self.train_batches(process_index=0, process_count=1, num_workers=0)

  def _start(
    self, rng: jax.Array, batches: Iterator[PyTree], example: PyTree
  ) -> PyTree:
    params, model_state = self.task.init(rng, batches)
    train_state = state.TrainState.create(
      params,
      model_state,
      self.optimizer.tx,
      ema=self.config.params_ema_decay > 0,
    )
    sums = step_lib.zero_sums(
      self.task,
      self.optimizer,
      train_state,
      example,
      skip_nonfinite=self.config.optim.skip_nonfinite,
    )
    return {'state': train_state, 'window': sums, 'epoch': sums}

  def start(self, rng: jax.Array | None = None) -> PyTree:
    """Returns the tree before the first step, the same on every host.

    Args:
      rng: random key of the initial values; by default one of `config.seed`.
    """
    rng = self._init_rng if rng is None else rng
    return self._start(rng, self._whole_batches(), next(self._whole_batches()))

  def structure(self) -> PyTree:
    """Returns `start()` with shapes for arrays; reads only one batch."""
    example = next(self._whole_batches())
    return jax.eval_shape(
      lambda: self._start(self._init_rng, itertools.repeat(example), example)
    )

  def _parameter_norms(self, old: PyTree, new: PyTree) -> dict[str, jax.Array]:
    updates = jax.tree.map(jnp.subtract, new, old)
    return {
      **step_lib.norms(self.optimizer, updates, 'update_norm'),
      **step_lib.norms(self.optimizer, new, 'param_norm'),
    }

  def parameter_norms(self, old: PyTree, new: PyTree) -> dict[str, float]:
    """Norms of the parameters, and of what a step added to them.

    They are measured outside of the step, where reading its result does not
    change how XLA rounds it.

    Args:
      old: `copy` of the parameters before the step.
      new: the parameters after it.
    """
    return {k: float(v) for k, v in self._norms(old, new).items()}

  def learning_rates(self, num_steps: int) -> dict[str, float]:
    """The learning rate of the last of `num_steps` updates, by sub-tree."""
    return {
      f'learning_rate/{name}' if name else 'learning_rate': float(
        schedule(num_steps - 1)
      )
      for name, schedule in self.optimizer.schedules.items()
    }

  def evaluate(self, train_state: state.TrainState) -> dict[str, float]:
    """Metrics over the whole validation split, with the prefix 'val/'."""
    weights = {
      'params': train_state.eval_params,
      'model_state': train_state.model_state,
    }
    sums = None
    for batch in self.val_batches():
      if sums is None:
        zeros = step_lib.zero_metrics(
          self.task, train_state, batch, train=False
        )
        sums = self.parallel.put_tree(zeros)
      sums = self._eval_step(
        weights | {'metrics': sums}, self.parallel.put_batch(batch)
      )
    return metrics.compute(jax.device_get(sums), 'val/')

  def kept_weights(self, train_state: state.TrainState) -> PyTree:
    """The weights that are used after training."""
    return {
      'params': self.task.kept(train_state.eval_params),
      'model_state': train_state.model_state,
    }
