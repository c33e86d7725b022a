"""Trains on from another run: its codes stay what they are.

Either its decoder is trained on: encoder and codebook stay, so its prior
remains right. Or its prior is trained on, on the same codes.
"""

import dataclasses
import os
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, files
from dermvq_jax.data import prepared
from dermvq_jax.models import build, chunks, digests
from dermvq_jax.models.priors import randomness, sampler
from dermvq_jax.runs import hosts
from dermvq_jax.runs import run as run_lib

PyTree = Any
_NAMES = {'vqvae': 'VQ-VAE', 'prior': 'prior'}


@dataclasses.dataclass(frozen=True)
class Start:
  """What a decoder or a prior is trained on from.

  Attributes:
    weights: of the VQ-VAE, of which all but the decoder's stay; or of the
      prior.
    drawn_codes: codes int32 `[N, h, w*L]` that the prior draws, whose images
      the discriminator sees; None: none.
  """

  weights: PyTree
  drawn_codes: np.ndarray | None = None


def source(config: ml_collections.ConfigDict) -> run_lib.Run | None:
  """Returns the run in `config.start_from`; None if nothing is given there.

  Raises:
    UserError: it is not given although this config needs it.
  """
  if 'start_from' not in config or config.start_from == '':
    return None
  if config.start_from is None:
    raise errors.UserError(
      'this config trains another run on; give --config.start_from=RUN, the '
      'folder of that run'
    )
  return run_lib.Run(config.start_from, config.data_dir)


def resolve(
  config: ml_collections.ConfigDict, run: run_lib.Run, target: run_lib.Run
) -> ml_collections.ConfigDict:
  """Takes what must stay from the run that is trained on.

  Args:
    config: the config of a VQ-VAE or a prior.
    run: from `source`.
    target: the run of the training.

  Returns:
    A copy of the config, with the model and the dataset of that run, and
    digests of what is used of it.

  Raises:
    UserError: the run has no trained VQ-VAE, or no prior that could draw or be
      trained on; or the target has another VQ-VAE than a prior needs.
  """
  workdir = os.fspath(run.workdir)
  if not files.is_remote(workdir):  # later commands may run in another folder
    workdir = os.path.abspath(workdir)
  data_dir = run.data_dir()
  is_own = os.path.abspath(data_dir) == os.path.abspath(target.workdir / 'data')
  kept = _kept_of_prior if config.task == 'prior' else _kept_of_vqvae
  return ml_collections.ConfigDict(
    config.to_dict()
    | {'data_dir': '' if is_own else str(data_dir), 'start_from': workdir}
    | kept(config, run, target)
  )


def _kept_of_vqvae(
  config: ml_collections.ConfigDict, run: run_lib.Run, target: run_lib.Run
) -> dict[str, Any]:
  del target  # Whatever it has is checked when its phase starts.
  kept = run.vqvae
  values = {
    'start_digest': digests.of_tree(kept.weights),
    'model': kept.config.model.to_dict(),
    'quantizer': kept.config.quantizer.to_dict(),
    'dataset': kept.config.dataset,
  }
  if config.discriminator.num_samples:
    if not run.prior.has_weights:
      raise errors.UserError(
        f'{run.workdir} has no trained prior, whose samples the discriminator '
        'would see; train it first, or give --config.discriminator.'
        'num_samples=0'
      )
    run.check_codes()
    values['prior_digest'] = digests.of_tree(run.prior.weights)
  return values


def _kept_of_prior(
  config: ml_collections.ConfigDict, run: run_lib.Run, target: run_lib.Run
) -> dict[str, Any]:
  del config
  if not run.prior.has_weights:
    raise errors.UserError(
      f'{run.workdir} has no trained prior to train on; train it first'
    )
  run.check_codes()
  if target.vqvae.started and target.vqvae_digest != run.vqvae_digest:
    raise errors.UserError(
      f'{target.workdir} has another VQ-VAE than {run.workdir}; use a new '
      '--workdir'
    )
  kept = run.prior
  return {
    'start_digest': digests.of_tree(kept.weights),
    'prior': kept.config.prior.to_dict(),
    'conditions': kept.config.conditions.to_dict(),
    'loss': kept.config.loss,
    'dataset': kept.facts['dataset'],
  }


def dataset(
  config: ml_collections.ConfigDict,
  run: run_lib.Run | None,
  target: run_lib.Run,
) -> prepared.Dataset:
  """Returns what is trained on.

  Args:
    config: from `resolve`, if there is a run that is trained on.
    run: from `source`.
    target: the run of the training. It has no VQ-VAE yet if the prior of
      another run is trained on.

  Raises:
    UserError: as `Run.dataset`.
  """
  owner = run if run and config.task == 'prior' else target
  return owner.dataset(config)


def start(config: ml_collections.ConfigDict, run: run_lib.Run) -> Start:
  """Reads what is trained on from, and draws the codes for a decoder.

  Their classes have the frequencies of the training images.

  Args:
    config: from `resolve`.
    run: from `source`.

  Raises:
    UserError: the codes of the prior's training, which have the classes, are
      not found.
  """
  if config.task == 'prior':
    return Start(run.prior.weights)
  weights, number = run.vqvae.weights, config.discriminator.num_samples
  if not number:
    return Start(weights)
  labels = run.codes.labels('train')
  labels = np.random.default_rng(config.seed).choice(labels, number)
  prior = build.prior(run.prior.config, run.prior.facts)
  logging.info('Drawing %d samples, which the discriminator sees.', number)
  codes = sampler.sample_in_batches(
    prior,
    build.variables(run.prior.weights),
    prior.null_conditions(number) | {'label': labels},
    randomness.image_keys(config.seed, labels),
    tuple(run.prior.facts['grid']),
    loss=run.prior.config.loss,
    chunk_size=chunks.size_for(number),
    show_progress=hosts.is_primary(),
  )
  return Start(weights, codes)


def copy_other(task: str, start: run_lib.Run, run: run_lib.Run):
  """Copies the phase that was not trained on, unless there is one.

  Args:
    task: the phase that was trained on, 'vqvae' or 'prior'.
    start: the run that it was trained on from.
    run: the run of the training.
  """
  name = 'prior' if task == 'vqvae' else 'vqvae'
  old, new = start.phase(name), run.phase(name)
  if new.started or not old.has_weights:
    return
  files.refuse_links(old.folder)
  with files.new_folder(new.folder) as folder:
    _copy(old.folder, folder)
  if name == 'vqvae':  # Its images are where they were.
    data_dir = run.phase(task).config.data_dir
    config = new.config.to_dict() | {'data_dir': data_dir}
    new.start(ml_collections.ConfigDict(config), old.facts)
  logging.info('Copied the %s of %s, which fits.', _NAMES[name], start.workdir)


def _copy(source: epath.Path, folder: epath.Path):
  """Copies what is in a folder; both can be in buckets."""
  for path in source.iterdir():
    target = folder / path.name
    if path.is_dir():
      target.mkdir(exist_ok=True)
      _copy(path, target)
    else:
      target.write_bytes(path.read_bytes())
