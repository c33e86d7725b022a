"""One phase of a run: what it was started with, and what it has learned."""

import functools
import json
from typing import Any

import jax
import ml_collections
from etils import epath

from dermvq_jax import errors, files, provenance
from dermvq_jax.data import facts as facts_lib
from dermvq_jax.runs import exported, logs, ranges, shapes

PyTree = Any
PHASES = ('vqvae', 'prior', 'classifier')
_FILE = 'config.json'
# The version of config.json and of the weights. dermvq_jax 0.1.0 writes version
# 1, in which the parameters of the priors have other names.
_FORMAT = 2
# They name folders of this machine. No result depends on them: facts and
# digests name what is in them.
PATHS = ('data_dir', 'start_from', 'perceptual_weights')
# These may change between two starts of the same run.
_FREE = {'parallel', 'num_workers', 'patience', *PATHS}
_FREE_SUFFIX = '_every_steps'


def made_by() -> dict[str, Any]:
  """Returns `provenance.describe()` of this process, and its `devices`."""
  return provenance.describe('jax', 'flax') | {
    'devices': f'{jax.device_count()} {jax.devices()[0].device_kind}'
  }


def _checkpoints():
  """The module of checkpoints. It imports orbax, which an export needs not."""
  from dermvq_jax.runs import checkpoints

  return checkpoints


class EarlierVersionError(errors.UserError):
  """An earlier version made the run, which this one can not read."""


class Phase:
  """One phase of a run: its config, the facts of its data, its weights.

  Values stay in memory from when they are read until `start`, so what another
  process changes afterwards is not seen.

  Attributes:
    name: one of `PHASES`.
    folder: the phase's folder.
  """

  def __init__(self, name: str, folder: epath.Path):
    self.name = name
    self.folder = folder

  @property
  def started(self) -> bool:
    """Whether the phase was started."""
    return (self.folder / _FILE).exists()

  @property
  def is_exported(self) -> bool:
    """Whether this is a phase of an export: see `export`."""
    return exported.is_there(self.folder)

  @functools.cached_property
  def _stored(self) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      UserError: the phase was not started, the file is damaged, or an earlier
        version of this package wrote it.
    """
    path = self.folder / _FILE
    if not self.started:
      raise errors.MissingError(
        f'{self.folder} holds no run; run dermvq train --config={self.name} '
        f'--workdir={self.folder.parent} first'
      )
    if self.is_exported:
      exported.check_file(path)
    try:
      stored = json.loads(path.read_text())
      content = {k: dict(stored[k]) for k in ('config', 'facts', 'made_by')}
      version = dict(content['made_by']['versions'])['dermvq_jax']
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
      raise self._damaged() from None
    if stored.get('format', 1) != _FORMAT:
      raise EarlierVersionError(
        f'{self.folder} was made by dermvq_jax {version}, whose runs this '
        'version cannot read; use that version, or train again in another '
        '--workdir'
      )
    if self.name == 'prior':  # Earlier commits kept no weak prior.
      content['config'].setdefault('weak_share', 0.0)
    try:
      ranges.check_stored(content['config'], self.name)
      facts_lib.check(content['facts'])
    except errors.UserError as e:
      raise self._damaged(str(e)) from None
    return content

  def _damaged(self, reason: str = '') -> errors.UserError:
    return errors.UserError(
      f'{self.folder / _FILE} is damaged, or dermvq did not write it'
      + (f' ({reason})' if reason else '')
      + '; restore it, or start again with another --workdir'
    )

  @functools.cached_property
  def config(self) -> ml_collections.ConfigDict:
    """The config that the phase was started with; `UserError` if none."""
    return ml_collections.ConfigDict(self._stored['config'])

  @property
  def facts(self) -> dict[str, Any]:
    """The facts of the dataset it is trained on; `UserError` if none."""
    return self._stored['facts']

  @property
  def made_by(self) -> dict[str, Any]:
    """`made_by()` of the phase's first start; `UserError` if none."""
    return self._stored['made_by']

  @property
  def has_weights(self) -> bool:
    """Whether there are weights in `best/`, or exported ones."""
    return self.is_exported or _checkpoints().has_best(self.folder)

  @functools.cached_property
  def weights(self) -> PyTree:
    """The weights in `best/`, or the exported ones.

    They are `{'params': ..., 'model_state': ...}`.

    Raises:
      UserError: there are none, they are damaged, or they are of other shapes
        than the config says.
    """
    like = self.shapes if self.started or self.is_exported else None
    if self.is_exported:
      return exported.load(self.folder, like)
    return _checkpoints().load_best(self.folder, like)

  @functools.cached_property
  def shapes(self) -> PyTree:
    """`weights` with shapes for arrays, as they follow from config.json.

    Raises:
      UserError: the phase was not started, or no model can be made from these
        values.
    """
    config, facts = self.config, self.facts
    try:
      return shapes.of_weights(self.name, config, facts)
    except errors.UserError as e:
      raise self._damaged(str(e)) from e

  @property
  def weights_id(self) -> str:
    """Identifies the weights; '' if there are none. An export keeps it."""
    if self.is_exported:
      return exported.read_id(self.folder)
    return _checkpoints().best_id(self.folder)

  def metrics(self) -> list[dict[str, Any]]:
    """Reads all rows of metrics.jsonl; none if there is no such file.

    Raises:
      UserError: a row is damaged.
    """
    return logs.read(self.folder)

  def check_trainable(self):
    """Raises UserError if this is a phase of an export."""
    if self.is_exported:
      raise errors.UserError(
        f'{self.folder} is an export, which cannot be trained on; use the run '
        'that it was made from, or another --workdir'
      )

  def start(self, config: ml_collections.ConfigDict, facts: dict[str, Any]):
    """Runs `check`, then stores what the phase is started with."""
    self.check_trainable()
    files.refuse_links(self.folder)
    self.check(config, facts)
    first = self.made_by if self.started else made_by()
    files.make_folder(self.folder)
    text = _as_text(config.to_dict(), facts, first)
    files.write_text(self.folder / _FILE, text)
    for name in ('_stored', 'config', 'shapes', 'weights'):
      self.__dict__.pop(name, None)

  def export(self, folder: epath.Path):
    """Writes config and weights to a new folder, for use without a training.

    The config has no paths, and not the commands that made it.

    Raises:
      UserError: there are no weights, or they are damaged.
    """
    weights, weights_id = self.weights, self.weights_id
    folder.mkdir(parents=True)
    config = self.config.to_dict()
    config |= {name: '' for name in PATHS if name in config}
    said = {k: v for k, v in self.made_by.items() if k != 'command'}
    (folder / _FILE).write_text(_as_text(config, self.facts, said))
    exported.save(folder, weights, weights_id)

  def check(self, config: ml_collections.ConfigDict, facts: dict[str, Any]):
    """Checks that a phase is resumed with the values that it was started with.

    Raises:
      UserError: it was started with another value of something that changes
        the result, or it has checkpoints and nothing says of what.
    """
    if not self.started:
      saved = self.folder / 'checkpoints'
      if saved.is_dir() and any(saved.iterdir()):
        raise errors.UserError(
          f'{self.folder} has checkpoints but no {_FILE}, which says what they '
          f'are of; restore it, or move {self.folder} away'
        )
      return
    old, new = _flatten(self.config.to_dict()), _flatten(config.to_dict())
    free = {k for k in old | new if k in _FREE or k.endswith(_FREE_SUFFIX)}
    optimisers = ranges.optimisers(config)
    is_constant = {x.schedule for x in optimisers.values()} == {'constant'}
    if is_constant and not config.get('weak_share'):
      # The steps so far do not depend on how many will follow.
      free |= {'num_train_steps', 'min_train_steps', 'num_epochs'}
    differing = [
      f'config.{k} was {old.get(k)!r}, now it is {new.get(k)!r}'
      for k in sorted((old | new).keys() - free)
      if old.get(k) != new.get(k)
    ]
    old, new = _flatten(self.facts), _flatten(facts)
    differing += [
      f'{k} of the data was {old.get(k)!r}, now it is {new.get(k)!r}'
      for k in sorted(old | new)
      if old.get(k) != new.get(k)
    ]
    if differing:
      raise errors.UserError(
        f'{self.folder} was started differently: {"; ".join(differing)}. Use '
        'another --workdir, or the old values to resume'
      )


def _as_text(
  config: dict[str, Any], facts: dict[str, Any], made_by: dict[str, Any]
) -> str:
  """The content of config.json."""
  stored = {
    'format': _FORMAT,
    'config': config,
    'facts': facts,
    'made_by': made_by,
  }
  return json.dumps(stored, indent=2) + '\n'


def _flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat.update(_flatten(value, f'{prefix}{key}.'))
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat
