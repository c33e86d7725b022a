"""Continues the training of another run; its codes stay what they are.

Either that of its decoder: encoder and codebook stay, so its prior remains
right. Or that of its prior, on the same codes.
"""

import dataclasses
import os
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, files
from dermvq_jax.data import pipeline, prepared
from dermvq_jax.models import build, chunks, digests
from dermvq_jax.models.priors import randomness, sampler
from dermvq_jax.runs import hosts, starts
from dermvq_jax.runs import phase as phase_lib
from dermvq_jax.runs import run as run_lib

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Start:
  """What a decoder or a prior is trained on from.

  Attributes:
    weights: of the VQ-VAE, of which all but the decoder's stay; or of the
      prior.
    drawn_codes: codes int32 `[N, h, w*L]` that the prior draws, whose images
      the discriminator sees; None: none.
    label_shares: how often a prior's training sees each label, float
      `[num_classes]`; None for a decoder.
  """

  weights: PyTree
  drawn_codes: np.ndarray | None = None
  label_shares: np.ndarray | None = None


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
  if config.task == 'prior':
    _check_prior(run, target)
    kept = _kept_of_prior(config, run, target)
  else:
    kept = _kept_of_vqvae(config, run, target)
  return ml_collections.ConfigDict(
    config.to_dict() | {'start_from': workdir} | kept
  )


def _seen_from(target: run_lib.Run, data_dir: epath.PathLike) -> str:
  """A folder of datasets as in a config; '' is the target's own one.

  It is absolute: later commands may run in another folder.
  """
  is_own = os.path.abspath(data_dir) == os.path.abspath(target.workdir / 'data')
  return '' if is_own else os.path.abspath(data_dir)


def _fields_of_start(
  config: ml_collections.ConfigDict, old: ml_collections.ConfigDict
) -> dict[str, Any]:
  values = old.to_dict()
  return {name: values[name] for name in starts.FIELDS[config.task]}


def _kept_of_vqvae(
  config: ml_collections.ConfigDict, run: run_lib.Run, target: run_lib.Run
) -> dict[str, Any]:
  kept = run.vqvae
  values = {
    'data_dir': _seen_from(target, run.data_dir()),
    'start_digest': digests.of_tree(kept.weights),
    **_fields_of_start(config, kept.config),
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


def _check_prior(run: run_lib.Run, target: run_lib.Run):
  """Raises UserError unless the prior of a run can be trained on here."""
  run.vqvae.check_trainable()
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


def _kept_of_prior(
  config: ml_collections.ConfigDict, run: run_lib.Run, target: run_lib.Run
) -> dict[str, Any]:
  kept = run.prior
  return {
    'start_digest': digests.of_tree(kept.weights),
    **_fields_of_start(config, kept.config),
    'data_dir': _seen_from(target, run.codes.data_dir),
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
    shares = _label_shares(config, run)
    return Start(run.prior.weights, label_shares=shares)
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


def _label_shares(
  config: ml_collections.ConfigDict, run: run_lib.Run
) -> np.ndarray:
  labels = dataset(config, run, run).labels('train')
  labels = labels[pipeline.balance(labels, config.get('class_balance', 0))]
  num_classes = len(run.prior.facts['class_names'])
  # A null label comes after the classes.
  counts = np.bincount(labels, minlength=num_classes)[:num_classes]
  return counts / len(labels)


def copy_prior(task: str, start: run_lib.Run | None, run: run_lib.Run):
  """Copies the prior of the run whose VQ-VAE was trained on.

  Nothing is copied if there is no such run or prior, or the target has one.
  """
  is_due = start and task == 'vqvae' and not run.prior.started
  if not (is_due and start.prior.has_weights):
    return
  files.refuse_links(start.prior.folder)
  with files.new_folder(run.prior.folder) as folder:
    _copy(start.prior.folder, folder)
  logging.info('Copied the prior of %s, which fits.', start.workdir)


def copy_vqvae(task: str, start: run_lib.Run | None, run: run_lib.Run):
  """Copies the VQ-VAE of the run whose prior is trained on.

  Nothing is copied if there is no such run, or the target has a VQ-VAE.
  """
  if not start or task != 'prior' or run.vqvae.started:
    return
  old = start.vqvae
  files.refuse_links(old.folder)
  config = ml_collections.ConfigDict(old.config.to_dict())
  config.data_dir = _seen_from(run, start.data_dir())
  with files.new_folder(run.vqvae.folder) as folder:
    _copy(old.folder, folder)
    phase_lib.Phase(old.name, folder).start(config, old.facts)
  logging.info('Copied the VQ-VAE of %s.', start.workdir)


def _copy(source: epath.Path, folder: epath.Path):
  """Copies what is in a folder; both can be in buckets."""
  for path in source.iterdir():
    target = folder / path.name
    if path.is_dir():
      target.mkdir(exist_ok=True)
      _copy(path, target)
    else:
      target.write_bytes(path.read_bytes())
