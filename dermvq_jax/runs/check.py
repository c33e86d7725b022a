"""Reads all files of a run and tells which are damaged."""

from collections.abc import Iterator

import numpy as np
from etils import epath

from dermvq_jax import errors, progress
from dermvq_jax.data import prepared
from dermvq_jax.generation import encode
from dermvq_jax.runs import checkpoints, logs, workdirs

_PHASES = ('vqvae', 'prior', 'classifier')
# What was looked at, what is wrong with it or '', and a remark.
_Finding = tuple[str, str, str]


def _check_phase(folder: epath.Path) -> Iterator[_Finding]:
  """A phase's config, metrics and checkpoints."""
  file = f'{folder.name}/config.json'
  try:
    workdirs.load_config(folder)
    yield file, '', ''
  except errors.UserError as e:
    yield file, str(e), ''
  file = f'{folder.name}/metrics.jsonl'
  try:
    rows = logs.read(folder)
    last = f', the last of step {rows[-1]["step"]}' if rows else ''
    yield file, '', f'{len(rows)} rows{last}'
  except errors.UserError as e:
    yield file, str(e), ''
  for kind, step, problem in checkpoints.verify(folder):
    yield f'{folder.name}/{kind}/{step}', problem, ''


def _check_dataset(
  dataset: str, data_dir: epath.Path, num_codes: int | None
) -> Iterator[_Finding]:
  """Reads every record; codes must be below `num_codes`."""
  facts = prepared.describe(dataset, data_dir)
  for split in ('train', 'val', 'test'):
    name = f'{dataset} {split}'
    try:
      source = prepared.open_split(dataset, data_dir, split)
      for i in progress.bar(range(len(source)), desc=name, unit='record'):
        record = source[i]
        if num_codes and not np.all(
          (record['codes'] >= 0) & (record['codes'] < num_codes)
        ):
          raise errors.UserError(f'record {i} has codes outside the codebook')
      yield name, '', f'{facts[f"num_{split}"]} records'
    except errors.UserError as e:
      yield name, str(e), ''


def _check_datasets(
  workdir: epath.Path, folder: epath.Path, data_dir: str, seen: set[str]
) -> Iterator[_Finding]:
  """The dataset that a phase was trained on, if not `seen` yet."""
  try:
    config, facts = workdirs.load_config(folder)
    dataset, found_in = encode.resolve_dataset(config, workdir, data_dir)
    if dataset not in seen:  # A classifier's images are the VQ-VAE's.
      seen.add(dataset)
      yield from _check_dataset(dataset, found_in, facts.get('codebook_size'))
  except errors.UserError as e:
    yield f'dataset of {folder.name}', str(e), ''


def run(workdir: epath.PathLike, data_dir: str = '') -> bool:
  """Checks a run and prints a line for each of its parts.

  Configs and metrics must be readable, checkpoints and best weights as they
  were saved (`dermvq_jax.checkpoints`), and every record of the images and
  codes that the phases were trained on readable.

  Args:
    workdir: a run, in any state.
    data_dir: where its datasets are, if not where the run found them.

  Returns:
    Whether all is whole.

  Raises:
    UserError: there is no run.
  """
  workdir = epath.Path(workdir).expanduser()
  folders = [workdirs.phase_dir(workdir, phase) for phase in _PHASES]
  folders = [folder for folder in folders if workdirs.exists(folder)]
  if not folders:
    raise errors.UserError(f'{workdir} holds no run; give another --workdir')
  damaged, seen = 0, set()
  for folder in folders:
    for check in (
      _check_phase(folder),
      _check_datasets(workdir, folder, data_dir, seen),
    ):
      for name, problem, remark in check:
        damaged += bool(problem)
        print(
          f'{name}: '
          + (f'DAMAGED: {problem}' if problem else 'ok')
          + (f', {remark}' if remark else '')
        )
  print(f'{damaged} damaged' if damaged else 'all is whole')
  return not damaged
