"""Reads all files of a run and reports which are damaged or missing."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np

from dermvq_jax import errors, files, progress
from dermvq_jax.data import prepared, splits
from dermvq_jax.runs import checkpoints, logs
from dermvq_jax.runs import phase as phase_lib
from dermvq_jax.runs import run as run_lib

# The name of a part, the problem with it ('': none), and a remark.
_Finding = tuple[str, str, str]
_MAX_REASON = 200  # characters
_MISSING = 'it is missing; restore it from a copy of the run'
_TRAIN = 'run the same dermvq train again, or restore it from a copy of the run'
# What decides which files a phase must have.
_FIELDS = ('num_train_steps', 'log_every_steps', 'checkpoint_every_steps')


def _reason(error: Exception) -> str:
  """One line about an exception; libraries raise many kinds."""
  if isinstance(error, errors.UserError):
    return str(error)
  text = f'{type(error).__name__}: {errors.one_line(error)}'
  return f'unreadable ({text[:_MAX_REASON]})'


def _is_there(phase: phase_lib.Phase) -> bool:
  """Whether anything of a phase is there, perhaps without its config."""
  parts = (phase.folder / name for name in ('checkpoints', 'best'))
  return (
    phase.started
    or phase.is_exported
    or logs.exists(phase.folder)
    or any(part.is_dir() for part in parts)
  )


def _read_config(phase: phase_lib.Phase) -> ml_collections.ConfigDict:
  """Returns a phase's config; raises UserError if it is no config."""
  if not phase.started:
    raise errors.UserError(_MISSING)
  for name in _FIELDS:
    value = phase.config.get(name)
    if type(value) is not int or value < 1:
      raise errors.UserError(f'{name} is {value!r}; restore it from a copy')
  return phase.config


def _problem_of_rows(
  phase: phase_lib.Phase,
  config: ml_collections.ConfigDict | None,
  rows: list[dict[str, Any]],
  latest: int,
) -> str:
  """Says whether rows are missing, given the step of the latest checkpoint."""
  if not logs.exists(phase.folder):
    # The file is made before the first checkpoint.
    return _MISSING if latest else ''
  steps = [0, *(row['step'] for row in rows)]
  if config is None or steps[-1] >= latest:
    return ''
  # How often rows are written may change when a training is resumed.
  gap = max(b - a for a, b in itertools.pairwise([*steps, steps[-1]]))
  allowed = 2 * max(gap, config.log_every_steps)
  # The last step has a row in any case.
  if latest < config.num_train_steps and latest - steps[-1] < allowed:
    return ''
  return (
    f'rows after step {steps[-1]} are missing, as there is a checkpoint of '
    f'step {latest}; restore it from a copy of the run'
  )


def _missing_weights(
  phase: phase_lib.Phase,
  config: ml_collections.ConfigDict,
  rows: list[dict[str, Any]],
  steps: dict[str, list[int]],
) -> Iterator[_Finding]:
  """Names the checkpoints that must be there after these rows, but are not."""
  end, every = config.num_train_steps, config.checkpoint_every_steps
  last = rows[-1]['step'] if rows else 0
  latest = max(steps['checkpoints'], default=0)
  if last >= end and last not in steps['checkpoints']:
    problem = f'missing, though the metrics go to this step; {_TRAIN}'
    yield f'{phase.name}/checkpoints/{last}', problem, ''
  # A save may be under way, but the one before it is complete.
  elif last > 2 * every and not latest:
    problem = f'missing, though the metrics go to step {last}; {_TRAIN}'
    yield f'{phase.name}/checkpoints', problem, ''
  validated = [row['step'] for row in rows if _is_validation(row)]
  # best/ is saved before the checkpoint is.
  is_due = validated and (validated[0] <= latest or last >= end)
  if not steps['best'] and (is_due or (not rows and latest >= end)):
    yield f'{phase.name}/best', f'missing, though it was saved; {_TRAIN}', ''


def _is_validation(row: dict[str, Any]) -> bool:
  values = [v for name, v in row.items() if name.startswith('val/')]
  return bool(values) and all(map(math.isfinite, values))


def _check_exported(phase: phase_lib.Phase) -> Iterator[_Finding]:
  """Checks a phase of an export, which has its config and weights only."""
  for part, read in (
    ('config.json', lambda: phase.config),
    ('weights.safetensors', lambda: phase.weights),
  ):
    try:
      read()
      yield f'{phase.name}/{part}', '', ''
    except errors.UserError as e:
      yield f'{phase.name}/{part}', str(e), ''


def _check_phase(phase: phase_lib.Phase) -> Iterator[_Finding]:
  """Checks a phase's config, metrics and checkpoints, and what is missing."""
  config = rows = shapes = None
  file = f'{phase.name}/config.json'
  try:
    config = _read_config(phase)
    shapes = phase.shapes
    yield file, '', ''
  except phase_lib.EarlierVersionError:
    raise  # It is not damaged.
  except Exception as e:
    yield file, _reason(e), ''
  found = list(checkpoints.verify(phase.folder, shapes))
  steps = {
    kind: [step for k, step, _ in found if k == kind]
    for kind in ('checkpoints', 'best')
  }
  file = f'{phase.name}/metrics.jsonl'
  try:
    rows = phase.metrics()
    latest = max(steps['checkpoints'] or steps['best'], default=0)
    problem = _problem_of_rows(phase, config, rows, latest)
    last = f', the last of step {rows[-1]["step"]}' if rows else ''
    yield file, problem, '' if problem else f'{len(rows)} rows{last}'
  except errors.UserError as e:
    yield file, str(e), ''
  for kind, step, problem in found:
    yield f'{phase.name}/{kind}/{step}', problem, ''
  if config is not None and rows is not None:
    yield from _missing_weights(phase, config, rows, steps)


def _check_dataset(
  dataset: prepared.Dataset, num_codes: int | None
) -> Iterator[_Finding]:
  """Reads every record; codes must be below `num_codes`."""
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
      yield name, '', f'{len(source)} records'
    except Exception as e:
      yield name, _reason(e), ''


def _check_data_of(
  run: run_lib.Run, phase: phase_lib.Phase, seen: set[str]
) -> Iterator[_Finding]:
  """Checks the dataset that a phase was trained on, if not `seen` yet."""
  name = f'dataset of {phase.name}'
  try:
    if phase is run.prior:
      run.check_codes()
      dataset = run.codes
    else:
      dataset = run.dataset(phase.config)
    facts = dataset.facts
  except Exception as e:
    yield name, _reason(e), ''
    return
  try:
    phase.check(phase.config, facts)
  except errors.UserError as e:
    yield name, str(e), ''
  if dataset.name not in seen:  # A classifier's images are the VQ-VAE's.
    seen.add(dataset.name)
    yield from _check_dataset(dataset, phase.facts.get('codebook_size'))


def _check_report(run: run_lib.Run) -> Iterator[_Finding]:
  """Checks what the other files of a report are made from."""
  folder = run.report_dir
  names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
  for name in sorted(names):
    is_result = re.fullmatch(r'evaluate_(\w+)\.json', name)
    is_nearest = re.fullmatch(r'nearest_(\w+)\.npz', name)
    is_arrays = is_nearest or re.fullmatch(r'outliers(_\w+)?\.npz', name)
    if is_result or is_nearest:
      split = (is_result or is_nearest)[1]
      again = f'remove it, or run dermvq evaluate --split={split} again'
    elif is_arrays:
      again = 'remove it; dermvq score makes it again'
    else:
      continue
    try:
      problem = ''
      if is_arrays:
        files.read_arrays(folder / name)
      else:
        content, arrays = json.loads((folder / name).read_text()), []
        if content['memorisation'] is not None and not run.is_exported:
          arrays = [f'nearest_{split}.npz']
        missing = [p for p in content['weights'] if not _is_there(run.phase(p))]
        missing += [file for file in arrays if file not in names]
        if missing:
          problem = f'what belongs to it is missing: {", ".join(missing)}'
    except Exception as e:
      problem = _reason(e)
    yield f'{folder.name}/{name}', problem and f'{problem}; {again}', ''


def check(run: run_lib.Run) -> bool:
  """Checks a run and prints a line for each of its parts.

  Configs, metrics and evaluations must be readable. Checkpoints and best
  weights must be as they were saved (`runs.checkpoints`). Every record of the
  images and codes that the phases were trained on must be readable. What must
  be there follows from the configs, the metrics and the steps. An export has no
  checkpoints and no data.

  Args:
    run: a run in any state.

  Returns:
    Whether no damage was found.

  Raises:
    UserError: there is no run, or an earlier version made it.
  """
  phases = [run.phase(name) for name in phase_lib.PHASES]
  phases = [phase for phase in phases if _is_there(phase)]
  if not phases:
    raise errors.MissingError(
      f'{run.workdir} holds no run; give another --workdir'
    )
  damaged, seen = 0, set()
  parts = []
  for phase in phases:
    if phase.is_exported:  # Its data are elsewhere.
      parts.append(_check_exported(phase))
      continue
    parts.append(_check_phase(phase))
    if phase.started:
      parts.append(_check_data_of(run, phase, seen))
  for findings in (*parts, _check_report(run)):
    for name, problem, remark in findings:
      damaged += bool(problem)
      print(
        f'{name}: '
        + (f'DAMAGED: {problem}' if problem else 'ok')
        + (f', {remark}' if remark else '')
      )
  print(f'{damaged} damaged' if damaged else 'No damage found.')
  return not damaged
