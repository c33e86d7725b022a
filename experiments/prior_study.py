"""The four priors on one VQ-VAE's codes, at equal time and at equal size.

```
python -m experiments.prior_study --vqvae=RUN --workdir=STUDY
python -m experiments.prior_study --workdir=STUDY --table
```

RUN is a run whose images are encoded. Each prior has about a million parameters
(configs/prior.py) and trains once, at a constant learning rate, so that one
training gives both readings: the validation bits per code after 2,000 steps
(equal size and steps), and the best ones within 20 minutes (equal time).

The first command measures each prior's step and its sampling, in turns; run it
on an idle machine. The trainings are then as many steps as fit into 20 minutes
at that speed, so that it does not matter what else runs meanwhile. Start it
again when it was stopped: it goes on where it was.
"""

import argparse
import json
import os
import statistics
import time

import jax
import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import config_files
from dermvq_jax.data import pipeline, prepared
from dermvq_jax.generation import encode
from dermvq_jax.models.priors import sampler
from dermvq_jax.runs import logs
from dermvq_jax.training import host_memory, loop, optim, parallel, state, tasks

_PRIORS = ('gated_pixelcnn', 'pixelcnn', 'rnn', 'transformer')
_MINUTES = 20
_EQUAL_STEPS = 2000
_EVAL_EVERY = 250
_ROUNDS, _STEPS_A_ROUND = 5, 6
_SAMPLES = 16
_SPEEDS = 'speeds.json'


def _config(prior: str, num_train_steps: int = 0):
  return config_files.load(
    f'prior:{prior}',
    [
      '--config.optim.schedule=constant',
      f'--config.eval_every_steps={_EVAL_EVERY}',
      f'--config.num_train_steps={num_train_steps}',
    ],
  )


class _Contender:
  """One prior, ready to be timed."""

  def __init__(self, prior: str, run: epath.Path):
    config = _config(prior, _EQUAL_STEPS)
    dataset, data_dir = encode.resolve_dataset(config, run)
    facts = prepared.describe(dataset, data_dir)
    source = prepared.open_split(dataset, data_dir, 'train')
    batches = pipeline.train_batches(
      source, batch_size=config.batch_size, seed=0, keys=('codes', 'label')
    )
    task = tasks.make(config, facts)
    tx = optim.make(config.optim, config.num_train_steps)
    params, model_state = task.init(jax.random.key(0), batches)

    def step(tree, batch, *, axis_name):
      grads, _ = jax.grad(task.loss_fn, has_aux=True)(
        tree.params,
        tree.model_state,
        batch,
        jax.random.fold_in(jax.random.key(0), tree.step),
        train=True,
        axis_name=axis_name,
      )
      return tree.update(grads, tree.model_state, tx, config.params_ema_decay)

    par = parallel.Parallel()
    self._step = par.compile(step, donate=True)
    self._state = par.put_tree(
      state.TrainState.create(params, model_state, tx, ema=True)
    )
    self._batch = par.put_batch(next(batches))
    self._grid = tuple(facts['grid'])
    self._model = tasks.prior_model(config, facts)
    self._num_params = sum(x.size for x in jax.tree.leaves(params))
    self._seconds = {'step_seconds': [], 'sample_seconds': []}

  def measure(self, keep: bool):
    """Times some steps and one batch of samples."""
    start = time.perf_counter()
    for _ in range(_STEPS_A_ROUND):
      self._state = self._step(self._state, self._batch)
    jax.block_until_ready(self._state)
    step_seconds = (time.perf_counter() - start) / _STEPS_A_ROUND
    labels = np.arange(_SAMPLES) % self._model.num_classes
    variables = {'params': self._state.params}
    keys = sampler.image_keys(0, labels)
    start = time.perf_counter()
    sampler.sample_codes(
      self._model, variables, labels, keys, self._grid
    ).block_until_ready()
    if keep:
      self._seconds['step_seconds'].append(step_seconds)
      self._seconds['sample_seconds'].append(time.perf_counter() - start)

  def result(self) -> dict[str, float]:
    """Medians, and the number of parameters."""
    medians = {k: statistics.median(v) for k, v in self._seconds.items()}
    return medians | {'num_params': self._num_params}


def _measure(run: epath.Path, path: epath.Path) -> dict[str, dict[str, float]]:
  """Speeds of all priors, measured once and kept in a file."""
  if path.exists():
    return json.loads(path.read_text())
  contenders = {prior: _Contender(prior, run) for prior in _PRIORS}
  for n in range(1 + _ROUNDS):
    for prior, contender in contenders.items():
      contender.measure(keep=n > 0)  # the first one compiles
      logging.info('Measured %s, round %d of %d.', prior, n, _ROUNDS)
  speeds = {prior: c.result() for prior, c in contenders.items()}
  path.write_text(json.dumps(speeds, indent=2))
  return speeds


def _num_train_steps(speed: dict[str, float]) -> int:
  """Steps in 20 minutes, in whole validations; at least those of equal size."""
  validations = int(_MINUTES * 60 / speed['step_seconds'] / _EVAL_EVERY)
  return max(_EQUAL_STEPS, validations * _EVAL_EVERY)


def _train(run: epath.Path, workdir: epath.Path, prior: str, num_steps: int):
  """Trains one prior, or goes on; its workdir borrows the VQ-VAE."""
  folder = workdir / prior
  folder.mkdir(parents=True, exist_ok=True)
  if not (folder / 'vqvae').exists():
    os.symlink(run.resolve() / 'vqvae', folder / 'vqvae')
  loop.run(_config(prior, num_steps), folder)


def _table(workdir: epath.Path) -> str:
  """The results as they stand, in Markdown."""
  speeds = json.loads((workdir / _SPEEDS).read_text())
  lines = [
    '| prior | parameters | val bits per code, 2,000 steps | best within 20 '
    'minutes | at step | s per 1,000 images trained | s for 16 samples |',
    '|' + '---|' * 7,
  ]
  for prior, speed in speeds.items():
    rows = logs.read(workdir / prior / 'prior')
    bits = {
      row['step']: row['val/bits_per_code']
      for row in rows
      if 'val/bits_per_code' in row
    }
    in_time = {
      step: value
      for step, value in bits.items()
      if step * speed['step_seconds'] <= _MINUTES * 60
    }
    best = min(in_time, key=in_time.get, default=None)
    equal = bits.get(_EQUAL_STEPS)
    config = _config(prior)
    cells = [
      prior,
      f'{speed["num_params"]:,}',
      'not yet' if equal is None else f'{equal:.3f}',
      'not yet' if best is None else f'{in_time[best]:.3f}',
      'not yet' if best is None else f'{best} of {max(in_time)}',
      f'{1000 / config.batch_size * speed["step_seconds"]:.1f}',
      f'{speed["sample_seconds"]:.3f}',
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def main():
  """Measures, trains and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--vqvae', type=epath.Path, help='run with a VQ-VAE')
  parser.add_argument('--workdir', type=epath.Path, required=True)
  parser.add_argument('--table', action='store_true', help='only the table')
  args = parser.parse_args()
  if not args.table:
    if args.vqvae is None:
      parser.error('give --vqvae=RUN, a run with a VQ-VAE and its codes')
    host_memory.keep()
    logs.setup_console()
    args.workdir.mkdir(parents=True, exist_ok=True)
    speeds = _measure(args.vqvae, args.workdir / _SPEEDS)
    for prior, speed in speeds.items():
      _train(args.vqvae, args.workdir, prior, _num_train_steps(speed))
  print(_table(args.workdir))


if __name__ == '__main__':
  main()
