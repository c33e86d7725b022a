"""Priors on one VQ-VAE's codes, at equal time and at equal size.

```
python -m experiments.prior_study --vqvae=RUN --workdir=STUDY
python -m experiments.prior_study --vqvae=RUN --workdir=STUDY2 --minutes=6 \
  --priors gated_pixelcnn gated_pixelcnn,prior.dropout_rate=0,batch_size=32
python -m experiments.prior_study --workdir=STUDY --table
```

RUN is a run whose images are encoded. Without --priors the four priors compete,
with about a million parameters each (configs/prior.py). A prior can be followed
by changes of its config. Each trains once, at a constant learning rate. This
training answers both questions: the validation bits per code after 2,000 steps
(equal size and steps), and the best bits per code within --minutes (equal
time).

The first command starts by measuring the time of a training step and of
sampling for all priors, in turn; run it on an idle machine. Each prior then
trains for as many steps as fit into the minutes at that speed, so other work on
the machine no longer matters. If the study was interrupted, run the command
again: it resumes.
"""

import functools
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from dermvq_jax.data import prepared
from dermvq_jax.models import build
from dermvq_jax.models.priors import randomness, sampler
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop
from dermvq_jax.training import trainer as trainer_lib
from experiments import common

# About equally large.
PRIORS = (
  'gated_pixelcnn,prior.features=64',
  'pixelcnn',
  'rnn',
  'transformer',
)
EQUAL_STEPS = 2000
EVAL_EVERY = 250
_ROUNDS, _STEPS_A_ROUND = 5, 6
_SAMPLES = 16
_SPEEDS = 'speeds.json'


def prior_config(prior: str, *overrides: str):
  """Returns the config of a prior in this study.

  Args:
    prior: its name, and changes after it: 'rnn,prior.num_layers=3'.
    *overrides: 'field=value' each.
  """
  name, *changes = prior.split(',')
  return common.load_config(
    f'prior:{name}',
    'optim.schedule=constant',
    f'eval_every_steps={EVAL_EVERY}',
    *changes,
    *overrides,
  )


class _Contender:
  """One prior, ready to be timed."""

  def __init__(self, prior: str, codes: prepared.Dataset):
    config = trainer_lib.resolve(
      prior_config(prior, f'num_train_steps={EQUAL_STEPS}'), codes.facts
    )
    trainer = trainer_lib.Trainer(
      config, codes.facts, {'train': codes.split('train')}
    )
    self._step = trainer.compile_train_step()
    self._tree = trainer.parallel.put_tree(trainer.start())
    self._batch = trainer.parallel.put_batch(next(trainer.train_batches()))
    self._model = build.prior(config, codes.facts)
    self._grid = tuple(codes.facts['grid'])
    labels = np.arange(_SAMPLES) % len(codes.facts['class_names'])
    self._labels = labels.astype(np.int32)
    self._seconds = {'step_seconds': [], 'sample_seconds': []}

  def measure(self, keep: bool):
    """Times some steps and one batch of samples."""
    start = time.perf_counter()
    for _ in range(_STEPS_A_ROUND):
      self._tree = self._step(self._tree, self._batch)
    jax.block_until_ready(self._tree)
    step_seconds = (time.perf_counter() - start) / _STEPS_A_ROUND
    variables = {'params': self._tree['state'].params}
    conditions = {'label': self._labels}
    keys = randomness.image_keys(0, self._labels)
    start = time.perf_counter()
    sampler.sample_codes(
      self._model, variables, conditions, keys, self._grid
    ).block_until_ready()
    if keep:
      self._seconds['step_seconds'].append(step_seconds)
      self._seconds['sample_seconds'].append(time.perf_counter() - start)

  def result(self) -> dict[str, float]:
    """Returns the medians, and the number of parameters."""
    medians = {k: statistics.median(v) for k, v in self._seconds.items()}
    leaves = jax.tree.leaves(self._tree['state'].params)
    return medians | {'num_params': sum(x.size for x in leaves)}


def _measure(
  priors: Sequence[str], codes: prepared.Dataset, minutes: float
) -> dict[str, dict[str, float]]:
  """Measures the speeds of all priors; with the minutes that each has."""
  contenders = {prior: _Contender(prior, codes) for prior in priors}
  for n in range(1 + _ROUNDS):
    for prior, contender in contenders.items():
      contender.measure(keep=n > 0)  # The first round compiles.
      logging.info('Measured %s, round %d of %d.', prior, n, _ROUNDS)
  return {
    prior: {**c.result(), 'minutes': minutes} for prior, c in contenders.items()
  }


def num_train_steps(speed: dict[str, float]) -> int:
  """Steps in its minutes, up to the last validation; at least 2,000."""
  seconds = speed['minutes'] * 60
  validations = int(seconds / speed['step_seconds'] / EVAL_EVERY)
  return max(EQUAL_STEPS, validations * EVAL_EVERY)


def _train(
  vqvae: run_lib.Run, codes: prepared.Dataset, folder: epath.Path, steps: int
):
  """Trains one prior, or resumes; its workdir links to the VQ-VAE."""
  folder.mkdir(parents=True, exist_ok=True)
  if not (folder / 'vqvae').exists():
    os.symlink(vqvae.vqvae.folder.resolve(), folder / 'vqvae')
  config = prior_config(
    folder.name, f'num_train_steps={steps}', f'dataset={codes.name}'
  )
  loop.train(config, run_lib.Run(folder, codes.data_dir))


def table(workdir: epath.Path) -> str:
  """Returns the results so far as a Markdown table."""
  speeds = common.read_json(workdir / _SPEEDS)
  [minutes] = {speed['minutes'] for speed in speeds.values()}
  header = [
    'prior',
    'parameters',
    f'val bits per code, {EQUAL_STEPS:,} steps',
    f'best within {minutes:g} minutes',
    'at step',
    's per 1,000 images trained',
    f's for {_SAMPLES} samples',
  ]
  return common.table(
    header, [_row(workdir, prior, speed) for prior, speed in speeds.items()]
  )


def _row(workdir: epath.Path, prior: str, speed: dict[str, float]) -> list[Any]:
  bits = {
    row['step']: row['val/bits_per_code']
    for row in run_lib.Run(workdir / prior).prior.metrics()
    if 'val/bits_per_code' in row
  }
  in_time = {
    step: value
    for step, value in bits.items()
    if step * speed['step_seconds'] <= speed['minutes'] * 60
  }
  best = min(in_time, key=in_time.get, default=None)
  equal = bits.get(EQUAL_STEPS)
  batch_size = prior_config(prior).batch_size
  return [
    prior,
    f'{speed["num_params"]:,}',
    'not yet' if equal is None else f'{equal:.3f}',
    'not yet' if best is None else f'{in_time[best]:.3f}',
    'not yet' if best is None else f'{best} of {max(in_time)}',
    f'{1000 / batch_size * speed["step_seconds"]:.1f}',
    f'{speed["sample_seconds"]:.3f}',
  ]


def main(argv: list[str] | None = None):
  """Measures, trains and prints the table."""
  parser = common.study_parser(__doc__, 'experiments.prior_study')
  parser.add_argument(
    '--vqvae', type=epath.Path, help='run with a VQ-VAE and its codes'
  )
  parser.add_argument(
    '--priors',
    nargs='+',
    default=PRIORS,
    metavar='PRIOR',
    help='their names, each with changes of its config after it: '
    'rnn,prior.num_layers=3 (default: the four, as they are)',
  )
  parser.add_argument(
    '--minutes',
    type=float,
    default=20,
    help='for the training of each (default: %(default)g)',
  )
  parser.add_argument(
    '--table', action='store_true', help='train nothing, print the table'
  )
  args = parser.parse_args(argv)
  if not args.table:
    if args.vqvae is None:
      parser.error('give --vqvae=RUN, a run with a VQ-VAE and its codes')
    common.setup()
    with common.usage_errors(parser):
      run = run_lib.Run(args.vqvae)
      codes = run.dataset(prior_config(args.priors[0]))
      measure = functools.partial(_measure, args.priors, codes, args.minutes)
      common.run_missing(args.workdir, {_SPEEDS: measure})
      speeds = common.read_json(args.workdir / _SPEEDS)
      asked = {prior: args.minutes for prior in args.priors}
      if asked != {k: v['minutes'] for k, v in speeds.items()}:
        parser.error(
          f'{args.workdir} has a study of other --priors or --minutes; give '
          'another --workdir'
        )
      for prior in common.announced(list(speeds)):
        steps = num_train_steps(speeds[prior])
        _train(run, codes, args.workdir / prior, steps)
  elif not (args.workdir / _SPEEDS).exists():
    parser.error('no speeds are measured yet; leave out --table')
  print(table(args.workdir))


if __name__ == '__main__':
  main()
