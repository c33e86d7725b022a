"""A run as an object: the only code that knows the layout of a workdir.

```
WORKDIR/vqvae/       config.json, metrics.jsonl, checkpoints/, best/
WORKDIR/prior/       the same
WORKDIR/classifier/  the same
WORKDIR/report/      index.html, its figures, results of evaluations
WORKDIR/data/        prepared datasets, unless they are elsewhere
```

The workdir may be in a bucket (gs://). Datasets are always on a local disk.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from etils import epath

from dermvq_jax import errors, files, provenance
from dermvq_jax.data import prepared
from dermvq_jax.models import build
from dermvq_jax.runs import checkpoints, logs

PyTree = Any
PHASES = ('vqvae', 'prior', 'classifier')
_FILE = 'config.json'
# The version of config.json and of the weights. dermvq_jax 0.1.0 writes version
# 1, in which the parameters of the priors have other names.
_FORMAT = 2
# These may change between two starts of the same run.
_FREE = {'parallel', 'num_workers', 'data_dir'}
_FREE_SUFFIX = '_every_steps'


def local_data_dir(folder: epath.PathLike) -> epath.Path:
  """Returns a folder of prepared datasets.

  Raises:
    UserError: it is not a local folder.
  """
  if files.is_remote(folder):
    raise errors.UserError(
      f'datasets cannot be read from {folder}; give a local folder as '
      '--config.data_dir (of dermvq train) or --data_dir'
    )
  return epath.Path(folder).expanduser()


def made_by() -> dict[str, Any]:
  """Returns `provenance.describe()` of this process, and its `devices`."""
  return provenance.describe('jax', 'flax') | {
    'devices': f'{jax.device_count()} {jax.devices()[0].device_kind}'
  }


def what_hosts_share(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> dict[str, Any]:
  """What must be the same on all hosts of a training, as JSON values."""
  own = ('data_dir', 'num_workers')  # Each host may have its own.
  shared = {k: v for k, v in config.to_dict().items() if k not in own}
  versions = made_by()['versions']
  return {'config': shared, 'data': facts, 'versions': versions}


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

  @functools.cached_property
  def _stored(self) -> dict[str, Any]:
    """The content of config.json.

    Raises:
      UserError: the phase was not started, the file is damaged, or an earlier
        version of this package wrote it.
    """
    path = self.folder / _FILE
    if not self.started:
      raise errors.UserError(
        f'{self.folder} holds no run; run dermvq train --config={self.name} '
        f'--workdir={self.folder.parent} first'
      )
    try:
      stored = json.loads(path.read_text())
      content = {k: dict(stored[k]) for k in ('config', 'facts', 'made_by')}
      version = dict(content['made_by']['versions'])['dermvq_jax']
    except (ValueError, KeyError, TypeError, AttributeError):
      raise errors.UserError(
        f'{path} is damaged, or dermvq did not write it; restore it, or start '
        'again with another --workdir'
      ) from None
    if stored.get('format', 1) != _FORMAT:
      raise EarlierVersionError(
        f'{self.folder} was made by dermvq_jax {version}, whose runs this '
        'version cannot read; use that version, or train again in another '
        '--workdir'
      )
    return content

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
    """Whether there are weights in `best/`."""
    return checkpoints.has_best(self.folder)

  @functools.cached_property
  def weights(self) -> PyTree:
    """The weights in `best/`: `{'params': ..., 'model_state': ...}`.

    Raises:
      UserError: there are none, or they are damaged.
    """
    return checkpoints.load_best(self.folder)

  @property
  def weights_id(self) -> str:
    """Identifies the weights in `best/`; '' if there are none."""
    return checkpoints.best_id(self.folder)

  def metrics(self) -> list[dict[str, Any]]:
    """Reads all rows of metrics.jsonl; none if there is no such file.

    Raises:
      UserError: a row is damaged.
    """
    return logs.read(self.folder)

  def start(self, config: ml_collections.ConfigDict, facts: dict[str, Any]):
    """Runs `check`, then stores what the phase is started with."""
    files.refuse_links(self.folder)
    self.check(config, facts)
    first = self.made_by if self.started else made_by()
    self.folder.mkdir(parents=True, exist_ok=True)
    stored = {
      'format': _FORMAT,
      'config': config.to_dict(),
      'facts': facts,
      'made_by': first,
    }
    files.write_text(self.folder / _FILE, json.dumps(stored, indent=2) + '\n')
    for name in ('_stored', 'config', 'weights'):
      self.__dict__.pop(name, None)

  def check(self, config: ml_collections.ConfigDict, facts: dict[str, Any]):
    """Checks that a phase is resumed with the values that it was started with.

    Raises:
      UserError: it was started with another value of something that changes
        the result.
    """
    if not self.started:
      return
    old, new = _flatten(self.config.to_dict()), _flatten(config.to_dict())
    free = {k for k in old | new if k in _FREE or k.endswith(_FREE_SUFFIX)}
    schedules = {
      field.schedule
      for name, field in config.items()
      if name == 'optim' or name.endswith('_optim')
    }
    if schedules == {'constant'}:
      # The steps so far do not depend on how many will follow.
      free |= {'num_train_steps', 'num_epochs'}
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


def _flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat.update(_flatten(value, f'{prefix}{key}.'))
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


class Run:
  """A run's folder, and the datasets that it was made from.

  Nothing is read before it is needed.

  Attributes:
    workdir: the run's folder, local or gs://.
    vqvae: the phase that trains the VQ-VAE.
    prior: the phase that trains the prior.
    classifier: the phase that trains the classifier.
  """

  def __init__(self, workdir: epath.PathLike, data_dir: epath.PathLike = ''):
    """Opens a run.

    Args:
      workdir: the run's folder; it need not exist.
      data_dir: the folder of its prepared datasets, if it is not the one that
        the run was trained from.
    """
    self.workdir = epath.Path(workdir).expanduser()
    self._data_dir = data_dir
    self.vqvae, self.prior, self.classifier = (
      Phase(name, self.workdir / name) for name in PHASES
    )

  def phase(self, name: str) -> Phase:
    """The phase named 'vqvae', 'prior' or 'classifier'."""
    return {p.name: p for p in (self.vqvae, self.prior, self.classifier)}[name]

  @property
  def phases(self) -> list[Phase]:
    """The phases that were started, in the order of training."""
    return [phase for name in PHASES if (phase := self.phase(name)).started]

  @property
  def report_dir(self) -> epath.Path:
    """The folder of the page and of evaluations."""
    return self.workdir / 'report'

  def data_dir(self, configured: str = '') -> epath.Path:
    """The folder of prepared datasets.

    Args:
      configured: `data_dir` of a config that is not stored yet.

    Returns:
      The folder given to this run; otherwise `configured`; otherwise the
      VQ-VAE's folder, if it was started; otherwise `data` in the workdir.

    Raises:
      UserError: it is not a local folder.
    """
    chosen = self._data_dir or configured
    if not chosen and self.vqvae.started:
      chosen = self.vqvae.config.data_dir
    return local_data_dir(chosen or self.workdir / 'data')

  @functools.cached_property
  def images(self) -> prepared.Dataset:
    """The images that the VQ-VAE is trained on.

    Raises:
      UserError: no VQ-VAE was started, or its images are not prepared, or they
        were prepared again with another content.
    """
    dataset = prepared.Dataset(self.vqvae.facts['dataset'], self.data_dir())
    before, now = (
      facts.get('fingerprint', {})
      for facts in (self.vqvae.facts, dataset.facts)
    )
    changed = [split for split in now if before.get(split) != now[split]]
    if changed:
      raise errors.UserError(
        f'{", ".join(changed)} of {dataset.name} in {dataset.data_dir} changed '
        f'since {self.vqvae.folder} was trained; prepare the same images '
        'again, or train again in another --workdir'
      )
    return dataset

  @functools.cached_property
  def codes(self) -> prepared.Dataset:
    """The codes that the prior is trained on.

    Raises:
      UserError: no prior was started.
    """
    name = self.prior.facts['dataset']
    return prepared.Dataset(name, self.data_dir(self.prior.config.data_dir))

  @property
  def vqvae_digest(self) -> str:
    """Names the VQ-VAE's codes; see `build.encoding_digest`.

    Raises:
      UserError: there is no trained VQ-VAE.
    """
    return build.encoding_digest(self.vqvae.weights, self.vqvae.facts)

  def check_codes(self):
    """Checks that the prior was trained on the codes of this VQ-VAE.

    Raises:
      UserError: it was trained on codes of another VQ-VAE, or never started.
    """
    if self.prior.facts['vqvae_digest'] != self.vqvae_digest:
      folder = self.prior.folder
      raise errors.UserError(
        f'the prior in {folder} was trained on the codes of another VQ-VAE; '
        f'move {folder} away, then run dermvq encode and train the prior again'
      )

  def dataset(self, config: ml_collections.ConfigDict) -> prepared.Dataset:
    """The dataset that a config names.

    A prior uses the codes of this run's VQ-VAE. A classifier whose config names
    no dataset uses the images of the VQ-VAE.

    Raises:
      UserError: the VQ-VAE that is needed was not trained, its codes are not
        prepared, or there are several datasets of its codes.
    """
    if config.task == 'prior':
      data_dir = self.data_dir(config.data_dir)
      return prepared.Dataset(self._codes_name(config, data_dir), data_dir)
    if config.task == 'vqvae' or config.dataset:
      chosen = self._data_dir or config.data_dir or self.workdir / 'data'
      return prepared.Dataset(config.dataset, local_data_dir(chosen))
    name = self.vqvae.facts['dataset']
    return prepared.Dataset(name, self.data_dir(config.data_dir))

  def _codes_name(
    self, config: ml_collections.ConfigDict, data_dir: epath.Path
  ) -> str:
    """The name of the prepared dataset of codes that a prior's config means."""
    prefix = f'codes/{self.vqvae_digest}'
    found = prepared.names_in(data_dir, prefix)
    if config.dataset == 'codes':
      if self.prior.started:
        # Even if it is missing: then the error names the copies that it has.
        started_with = self.prior.facts['dataset']
        if started_with.startswith(prefix):
          return started_with
      if not found:
        raise errors.UserError(
          f'the codes of the VQ-VAE in {self.vqvae.folder} are not prepared in '
          f'{data_dir}; run dermvq encode --workdir={self.workdir} '
          f'--data_dir={data_dir} first'
        )
      if len(found) > 1:
        raise errors.UserError(
          f'{data_dir} has several datasets of codes of this VQ-VAE; choose '
          'one: ' + ' or '.join(f'--config.dataset={name}' for name in found)
        )
      return found[0]
    if config.dataset not in found:
      raise errors.UserError(
        f'config.dataset={config.dataset} is not a dataset of codes of the '
        f"VQ-VAE in {self.vqvae.folder}; leave it at 'codes'"
        + (f', or give one of: {", ".join(found)}' if found else '')
      )
    return config.dataset

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps other trainings out of the workdir, if it is local.

    Raises:
      UserError: one is running there.
    """
    if files.is_remote(self.workdir):
      yield
      return

    def busy():
      raise errors.UserError(
        f'another dermvq train is running in {self.workdir}; wait until it '
        'ends, or use another --workdir'
      )

    self.workdir.mkdir(parents=True, exist_ok=True)
    with files.locked(self.workdir, busy):
      yield
