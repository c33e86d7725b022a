"""Parts that the studies share: flags, configs, queues that resume, tables.

The benchmarks measure the memory of processes that import this module, so it
imports JAX and the like only when they are needed.
"""

import argparse
import contextlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import config_files, errors, files
from dermvq_jax.training import host_memory

# The dataset of each size of a study.
DATASETS = {'full': 'ham10000/64', 'smoke': 'synthetic_dermoscopy/smoke'}


def parser(doc: str, prog: str | None = None) -> argparse.ArgumentParser:
  """Returns a parser whose --help starts with a module's docstring.

  Args:
    doc: the docstring.
    prog: the command; by default the name of the file.
  """
  return argparse.ArgumentParser(
    prog=prog,
    description=doc,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )


def study_parser(doc: str, prog: str) -> argparse.ArgumentParser:
  """Returns a parser with the flag that all studies have, --workdir."""
  made = parser(doc, f'python -m {prog}')
  made.add_argument(
    '--workdir',
    type=epath.Path,
    required=True,
    help='folder of the study; an interrupted study resumes from it',
  )
  return made


def add_data_flags(made: argparse.ArgumentParser):
  """Adds the flags that `prepare_data` reads."""
  made.add_argument(
    '--data_dir',
    default='',
    help='folder of prepared datasets (default: WORKDIR/data)',
  )
  made.add_argument(
    '--manual_dir',
    help="folder of the dataset's original files, if it is not prepared yet",
  )
  made.add_argument(
    '--size',
    choices=DATASETS,
    default='full',
    help='smoke: tiny models and few steps, for tests (default: full)',
  )
  made.add_argument(
    '--dataset',
    default='',
    help='default: '
    + ', '.join(
      f'{name} with --size={size}' for size, name in DATASETS.items()
    ),
  )


def prepare_data(args: argparse.Namespace) -> Any:
  """Prepares the dataset of a study, unless it is already prepared.

  Args:
    args: parsed with the flags of `study_parser` and `add_data_flags`.

  Returns:
    The `prepared.Dataset`.

  Raises:
    UserError: the original files are missing or malformed.
  """
  from dermvq_jax.data import prepare, prepared
  from dermvq_jax.runs import run as run_lib

  name = args.dataset or DATASETS[args.size]
  data_dir = run_lib.Run(args.workdir, args.data_dir).data_dir()
  prepare.run(name, data_dir, args.manual_dir)
  return prepared.Dataset(name, data_dir)


def load_config(
  name: str, *overrides: str, size: str = 'full'
) -> ml_collections.ConfigDict:
  """Loads a shipped config with overrides.

  Args:
    name: 'name' or 'name:argument' of the config.
    *overrides: 'field=value' each.
    size: 'smoke' takes the config's argument of that name.
  """
  if size == 'smoke':
    name = f'{name}+smoke' if ':' in name else f'{name}:smoke'
  return config_files.load(name, [f'--config.{o}' for o in overrides])


def setup():
  """Sets up the process as `dermvq` does: memory and log lines."""
  from dermvq_jax.runs import logs

  host_memory.keep()
  logs.setup_console()


@contextlib.contextmanager
def usage_errors(made: argparse.ArgumentParser) -> Iterator[None]:
  """Ends the program with one line if a UserError is raised."""
  try:
    yield
  except errors.UserError as e:
    made.error(str(e))


def write_json(path: epath.Path, content: Any):
  """Writes a JSON file; after a kill it is complete or still the old one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_text(path, json.dumps(content, indent=2) + '\n')


def read_json(path: epath.Path) -> Any:
  """Reads a JSON file."""
  return json.loads(path.read_text())


def announced(names: Sequence[str]) -> Iterator[str]:
  """Yields the names of jobs in order, and logs the study's progress."""
  for number, name in enumerate(names, 1):
    logging.info('\n== %d/%d %s', number, len(names), name)
    yield name


def run_missing(folder: epath.Path, jobs: Mapping[str, Callable[[], Any]]):
  """Runs the jobs whose results are missing, in their order.

  Args:
    folder: where the results are.
    jobs: the name of each result's JSON file in the folder, and the function
      that returns its content.
  """
  for number, (name, job) in enumerate(jobs.items(), 1):
    if not (folder / name).exists():
      logging.info('\n== %d/%d %s', number, len(jobs), _without_suffix(name))
      write_json(folder / name, job())


def _without_suffix(name: str) -> str:
  return str(pathlib.PurePosixPath(name).with_suffix(''))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Formats a Markdown table.

  Args:
    header: titles of the columns.
    rows: cells. Texts and whole numbers are shown as they are, other numbers
      with three digits, and NaN as an empty cell.
  """

  def cell(value: Any) -> str:
    if isinstance(value, float):
      return '' if np.isnan(value) else f'{value:#.3g}'.rstrip('.')
    return str(value)

  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join('| ' + ' | '.join(map(cell, row)) + ' |' for row in lines)
