"""The folder of a run: where its parts are and what it was started with."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from etils import epath

from dermvq_jax import errors, provenance

_FILE = 'config.json'
# These may change between two starts of the same run.
_FREE = {'parallel', 'num_workers', 'data_dir'}
_FREE_SUFFIX = '_every_steps'


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in a bucket: no locks, no appending, no renaming."""
  return '://' in str(path)


def phase_dir(workdir: epath.PathLike, phase: str) -> epath.Path:
  """The folder of 'vqvae', 'prior' or 'classifier'."""
  return epath.Path(workdir).expanduser() / phase


def data_dir(workdir: epath.PathLike, chosen: str = '') -> epath.Path:
  """Where prepared datasets are: `chosen`, else `data` in the workdir.

  Raises:
    UserError: that is not a local folder.
  """
  path = epath.Path(chosen) if chosen else epath.Path(workdir) / 'data'
  if is_remote(path):
    raise errors.UserError(
      f'datasets can not be read from {path}; give a local folder as '
      '--config.data_dir (of dermvq train) or --data_dir'
    )
  return path.expanduser()


@contextlib.contextmanager
def locked(workdir: epath.PathLike) -> Iterator[None]:
  """Keeps other trainings out of `workdir`, as long as this process lives.

  Raises:
    UserError: one is running there.
  """
  workdir = epath.Path(workdir).expanduser()
  if is_remote(workdir):
    yield
    return
  workdir.mkdir(parents=True, exist_ok=True)
  descriptor = os.open(workdir, os.O_RDONLY)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise errors.UserError(
        f'another dermvq train is running in {workdir}; wait for its end, or '
        'use another --workdir'
      ) from None
    except OSError:
      pass  # Some network file systems have no locks.
    yield
  finally:
    os.close(descriptor)


def write_text(path: epath.Path, text: str):
  """Writes a file that is complete or, after a kill, still the old one."""
  if is_remote(path):  # An object appears when all of it is there.
    path.write_text(text)
    return
  partial = path.with_name(f'{path.name}.incomplete')
  partial.write_text(text)
  partial.replace(path)


def exists(folder: epath.PathLike) -> bool:
  """Whether a phase was started in `folder`."""
  return (epath.Path(folder) / _FILE).exists()


def load_config(
  folder: epath.PathLike,
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
  """Reads what a phase was started with.

  Returns:
    Its config and the facts of its dataset.

  Raises:
    UserError: nothing was started there, or its file is damaged.
  """
  stored = _load(folder)
  return ml_collections.ConfigDict(stored['config']), stored['facts']


def _load(folder: epath.PathLike) -> dict[str, Any]:
  folder = epath.Path(folder)
  if not exists(folder):
    raise errors.UserError(
      f'{folder} holds no run; run dermvq train --config={folder.name} '
      f'--workdir={folder.parent} first'
    )
  try:
    stored = json.loads((folder / _FILE).read_text())
    return {key: dict(stored[key]) for key in ('config', 'facts', 'made_by')}
  except (ValueError, KeyError, TypeError, AttributeError):
    raise errors.UserError(
      f'{folder / _FILE} is damaged, or dermvq did not write it; restore it, '
      'or start again with another --workdir'
    ) from None


def made_by() -> dict[str, Any]:
  """What `provenance.describe` says, and `devices`."""
  return provenance.describe('jax', 'flax') | {
    'devices': f'{jax.device_count()} {jax.devices()[0].device_kind}'
  }


def load_provenance(folder: epath.PathLike) -> dict[str, Any]:
  """What `made_by` said at the first start of a phase.

  Raises:
    UserError: nothing was started there, or its file is damaged.
  """
  return _load(folder)['made_by']


def save_config(
  folder: epath.PathLike,
  config: ml_collections.ConfigDict,
  facts: dict[str, Any],
):
  """Stores what a phase is started with, after `check_config`."""
  folder = epath.Path(folder)
  check_config(folder, config, facts)
  first = load_provenance(folder) if exists(folder) else made_by()
  folder.mkdir(parents=True, exist_ok=True)
  stored = {'config': config.to_dict(), 'facts': facts, 'made_by': first}
  write_text(folder / _FILE, json.dumps(stored, indent=2) + '\n')


def _flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat.update(_flatten(value, f'{prefix}{key}.'))
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


def check_config(
  folder: epath.PathLike,
  config: ml_collections.ConfigDict,
  facts: dict[str, Any],
):
  """Checks that a phase is continued as it was started, if it was.

  Raises:
    UserError: `folder` was started with another value of something that
      changes the result.
  """
  folder = epath.Path(folder)
  if not exists(folder):
    return
  old_config, old_facts = load_config(folder)
  old, new = _flatten(old_config.to_dict()), _flatten(config.to_dict())
  free = {k for k in old | new if k in _FREE or k.endswith(_FREE_SUFFIX)}
  if config.optim.schedule == 'constant':
    # The steps so far do not depend on how many will follow.
    free |= {'num_train_steps', 'num_epochs'}
  differing = [
    f'config.{k} was {old.get(k)!r}, is {new.get(k)!r}'
    for k in sorted((old | new).keys() - free)
    if old.get(k) != new.get(k)
  ]
  old, new = _flatten(old_facts), _flatten(facts)
  differing += [
    f'the data had {k} {old.get(k)!r}, have {new.get(k)!r}'
    for k in sorted(old | new)
    if old.get(k) != new.get(k)
  ]
  if differing:
    raise errors.UserError(
      f'{folder} was started differently: {"; ".join(differing)}. Use another '
      '--workdir, or the old values to go on'
    )
