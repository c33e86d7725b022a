"""Reads all files of a run and reports which are damaged."""

from collections.abc import Iterator

import numpy as np

from dermvq_jax import errors, progress
from dermvq_jax.data import prepared, splits
from dermvq_jax.runs import checkpoints
from dermvq_jax.runs import run as run_lib

# The name of a part, the problem with it ('': none), and a remark.
_Finding = tuple[str, str, str]


def _check_phase(phase: run_lib.Phase) -> Iterator[_Finding]:
  """Checks a phase's config, metrics and checkpoints."""
  file = f'{phase.name}/config.json'
  try:
    _ = phase.config
    yield file, '', ''
  except run_lib.EarlierVersionError:
    raise  # It is not damaged.
  except errors.UserError as e:
    yield file, str(e), ''
  file = f'{phase.name}/metrics.jsonl'
  try:
    rows = phase.metrics()
    last = f', the last of step {rows[-1]["step"]}' if rows else ''
    yield file, '', f'{len(rows)} rows{last}'
  except errors.UserError as e:
    yield file, str(e), ''
  for kind, step, problem in checkpoints.verify(phase.folder):
    yield f'{phase.name}/{kind}/{step}', problem, ''


def _check_dataset(
  dataset: prepared.Dataset, num_codes: int | None
) -> Iterator[_Finding]:
  """Reads every record; codes must be below `num_codes`."""
  facts = dataset.facts
  for split in splits.SPLITS:
    name = f'{dataset.name} {split}'
    try:
      source = dataset.split(split)
      for i in progress.bar(range(len(source)), desc=name, unit='record'):
        record = source[i]
        if num_codes and not np.all(
          (record['codes'] >= 0) & (record['codes'] < num_codes)
        ):
          raise errors.UserError(f'record {i} has codes outside the codebook')
      yield name, '', f'{facts[f"num_{split}"]} records'
    except errors.UserError as e:
      yield name, str(e), ''


def _check_data_of(
  run: run_lib.Run, phase: run_lib.Phase, seen: set[str]
) -> Iterator[_Finding]:
  """Checks the dataset that a phase was trained on, if not `seen` yet."""
  try:
    if phase is run.prior:
      run.check_codes()
      dataset = run.codes
    else:
      dataset = run.dataset(phase.config)
    if dataset.name not in seen:  # A classifier's images are the VQ-VAE's.
      seen.add(dataset.name)
      yield from _check_dataset(dataset, phase.facts.get('codebook_size'))
  except errors.UserError as e:
    yield f'dataset of {phase.name}', str(e), ''


def check(run: run_lib.Run) -> bool:
  """Checks a run and prints a line for each of its parts.

  Configs and metrics must be readable. Checkpoints and best weights must be as
  they were saved (`runs.checkpoints`). Every record of the images and codes
  that the phases were trained on must be readable.

  Args:
    run: a run in any state.

  Returns:
    Whether no damage was found.

  Raises:
    UserError: there is no run, or an earlier version made it.
  """
  if not run.phases:
    raise errors.UserError(
      f'{run.workdir} holds no run; give another --workdir'
    )
  damaged, seen = 0, set()
  for phase in run.phases:
    for findings in (_check_phase(phase), _check_data_of(run, phase, seen)):
      for name, problem, remark in findings:
        damaged += bool(problem)
        print(
          f'{name}: '
          + (f'DAMAGED: {problem}' if problem else 'ok')
          + (f', {remark}' if remark else '')
        )
  print(f'{damaged} damaged' if damaged else 'No damage found.')
  return not damaged
