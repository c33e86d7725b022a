"""A run as an object: the only code that knows the layout of a workdir.

```
WORKDIR/vqvae/       config.json, metrics.jsonl, checkpoints/, best/
WORKDIR/prior/       the same
WORKDIR/classifier/  the same
WORKDIR/report/      index.html, its figures, results of evaluations
WORKDIR/data/        prepared datasets, unless they are elsewhere; codes, if
                     the folder of the images cannot be written
```

An export (`dermvq export`) has in each phase only config.json and, in place of
best/, weights.safetensors. It is read as a run is.

The workdir may be in a bucket (gs://). Datasets are always on a local disk.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import ml_collections
from etils import epath

from dermvq_jax import errors, files
from dermvq_jax.data import prepared
from dermvq_jax.models import digests
from dermvq_jax.runs import hub
from dermvq_jax.runs import phase as phase_lib


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


def what_hosts_share(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> dict[str, Any]:
  """What must be the same on all hosts of a training, as JSON values."""
  # Each host may have its own.
  own = ('num_workers', *phase_lib.PATHS)
  shared = {k: v for k, v in config.to_dict().items() if k not in own}
  versions = phase_lib.made_by()['versions']
  return {'config': shared, 'data': facts, 'versions': versions}


DEMO = 'demo'
_DEMO_FOLDER = epath.Path(__file__).parent.parent / 'demo_model'


def find(workdir: epath.PathLike, data_dir: epath.PathLike = '') -> 'Run':
  """Opens a run or an export that is there already.

  Args:
    workdir: its folder. `DEMO` stands for the model that comes with this
      package, unless there is a folder of this name; hf://OWNER/NAME@REVISION
      for an export on the Hugging Face Hub, see `hub`.
    data_dir: as for `Run`.

  Raises:
    UserError: `DEMO` is given, and there is neither; or as `hub.download`.
  """
  if hub.is_address(workdir):
    return Run(hub.download(hub.parse(str(workdir))), data_dir)
  if str(workdir) != DEMO or os.path.isdir(DEMO):
    return Run(workdir, data_dir)
  if not _DEMO_FOLDER.is_dir():
    raise errors.UserError(
      'this installation comes without a demo model; train one, dermvq demo '
      '--workdir=runs/demo, and give runs/demo'
    )
  return Run(_DEMO_FOLDER, data_dir)


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
      phase_lib.Phase(name, self.workdir / name) for name in phase_lib.PHASES
    )

  def phase(self, name: str) -> phase_lib.Phase:
    """The phase named 'vqvae', 'prior' or 'classifier'; else `UserError`."""
    phases = {p.name: p for p in (self.vqvae, self.prior, self.classifier)}
    if name not in phases:
      raise errors.UserError(
        f'config.task is {errors.one_line(repr(name))}; it must be one of '
        + ', '.join(phases)
      )
    return phases[name]

  @property
  def phases(self) -> list[phase_lib.Phase]:
    """The phases that were started, in the order of training."""
    return [
      phase for name in phase_lib.PHASES if (phase := self.phase(name)).started
    ]

  @property
  def is_exported(self) -> bool:
    """Whether this is an export: see `export`."""
    return self.vqvae.is_exported

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

  def _own_data_dir(self) -> epath.Path | None:
    """`data` in the workdir; None for a bucket, where no data can be."""
    return None if files.is_remote(self.workdir) else self.workdir / 'data'

  def codes_dir(self) -> epath.Path:
    """The folder into which codes are written.

    Returns:
      That of the images; `data` in the workdir if the former cannot be written.

    Raises:
      UserError: neither can be written.
    """
    folders = (self.data_dir(), self._own_data_dir())
    for folder in folders:
      if folder is not None and files.is_writable(folder):
        return folder
    raise errors.UserError(
      f'codes cannot be written to {folders[0]}: no permission; make it '
      'writable, or copy it and give the copy as --data_dir'
    )

  def _codes_dirs(self, configured: str) -> list[epath.Path]:
    """Where codes can be, in this order."""
    folders = (self.data_dir(configured), self._own_data_dir())
    return [folder for folder in folders if folder is not None]

  @functools.cached_property
  def images(self) -> prepared.Dataset:
    """The images that the VQ-VAE is trained on.

    Raises:
      UserError: no VQ-VAE was started, or its images are not prepared, or they
        were prepared again with another content.
    """
    return self._images_in(self.data_dir())

  def _images_in(self, data_dir: epath.Path) -> prepared.Dataset:
    """The images that the VQ-VAE is trained on, in a folder of datasets.

    Raises:
      UserError: as `images`.
    """
    dataset = prepared.Dataset(self.vqvae.facts['dataset'], data_dir)
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
      UserError: no prior was started, or the images were prepared again with
        another content.
    """
    name = self.prior.facts['dataset']
    return self._find_codes(name, self._codes_dirs(self.prior.config.data_dir))

  def _find_codes(
    self, name: str, folders: list[epath.Path]
  ) -> prepared.Dataset:
    """The codes in the first folder that has them, otherwise in the first.

    Raises:
      UserError: their images are there, but were prepared again with another
        content. Codes that were made before have the old labels.
    """
    images = self.vqvae.facts['dataset']
    for folder in folders:
      if images in prepared.names_in(folder, images):
        self._images_in(folder)
    found = [d for d in folders if name in prepared.names_in(d, name)]
    return prepared.Dataset(name, (found or folders)[0])

  @property
  def vqvae_digest(self) -> str:
    """Names the VQ-VAE's codes; see `digests.of_encoding`.

    Raises:
      UserError: there is no trained VQ-VAE.
    """
    return digests.of_encoding(self.vqvae.weights, self.vqvae.facts)

  def check_codes(self):
    """Checks that the prior was trained on the codes of this VQ-VAE.

    Raises:
      UserError: it was trained on codes of another VQ-VAE, or never started, or
        its classes are not those of the VQ-VAE.
    """
    facts, folder = self.prior.facts, self.prior.folder
    if facts.get('vqvae_digest') != self.vqvae_digest:
      raise errors.UserError(
        f'the prior in {folder} was trained on the codes of another VQ-VAE; '
        f'move {folder} away, then run dermvq encode and train the prior again'
      )
    labels = facts.get('conditions', {}).get('label')
    for names in (facts.get('class_names'), labels):
      if names != self.vqvae.facts['class_names']:
        raise errors.UserError(
          f'the classes of the prior in {folder} are not those of the VQ-VAE '
          f'in {self.vqvae.folder}; restore config.json of both from a copy'
        )

  def dataset(self, config: ml_collections.ConfigDict) -> prepared.Dataset:
    """The dataset that a config names.

    A prior uses the codes of this run's VQ-VAE. A classifier whose config names
    no dataset uses the images of the VQ-VAE.

    Raises:
      UserError: the VQ-VAE that is needed was not trained, its codes are not
        prepared, there are several datasets of its codes, or its images were
        prepared again with another content.
    """
    if config.task == 'prior':
      folders = self._codes_dirs(config.data_dir)
      return self._find_codes(self._codes_name(config, folders), folders)
    if config.task == 'vqvae' or config.dataset:
      chosen = self._data_dir or config.data_dir or self.workdir / 'data'
      return prepared.Dataset(config.dataset, local_data_dir(chosen))
    return self._images_in(self.data_dir(config.data_dir))

  def _codes_name(
    self, config: ml_collections.ConfigDict, folders: list[epath.Path]
  ) -> str:
    """The name of the prepared dataset of codes that a prior's config means."""
    prefix = f'codes/{self.vqvae_digest}'
    names = {n for d in folders for n in prepared.names_in(d, prefix)}
    found, data_dir = sorted(names), folders[0]
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

  def export(self, folder: epath.PathLike) -> 'Run':
    """Writes what is needed to use the phases, see `Phase.export`.

    Returns:
      The export, which can be used like this run, but not trained on.

    Raises:
      UserError: a phase has no trained weights, or they are damaged.
    """
    exported = Run(folder)
    for phase in self.phases:
      phase.export(exported.phase(phase.name).folder)
    return exported

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

    files.make_folder(self.workdir)
    with files.locked(self.workdir, busy):
      yield
