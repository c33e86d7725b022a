"""Trains on from another run: its encoder and codebook stay as they are.

So its codes stay what they are too, and a prior over them remains right.
"""

import dataclasses
import os
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, files
from dermvq_jax.models import build, chunks, digests
from dermvq_jax.models.priors import randomness, sampler
from dermvq_jax.runs import hosts
from dermvq_jax.runs import run as run_lib

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Start:
  """What a decoder is trained on from.

  Attributes:
    weights: of the VQ-VAE; all but the decoder's stay.
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
      'this config trains the decoder of another run on; give '
      '--config.start_from=RUN, the folder of that run'
    )
  return run_lib.Run(config.start_from, config.data_dir)


def resolve(
  config: ml_collections.ConfigDict, run: run_lib.Run, target: run_lib.Run
) -> ml_collections.ConfigDict:
  """Takes what must stay from the run that is trained on.

  Args:
    config: the config of a VQ-VAE.
    run: from `source`.
    target: the run of the training.

  Returns:
    A copy of the config, with the model, the quantizer and the dataset of that
    run, and digests of what is used of it.

  Raises:
    UserError: the run has no trained VQ-VAE, or no prior that could draw.
  """
  kept, workdir = run.vqvae, os.fspath(run.workdir)
  if not files.is_remote(workdir):  # later commands may run in another folder
    workdir = os.path.abspath(workdir)
  data_dir = run.data_dir()
  is_own = os.path.abspath(data_dir) == os.path.abspath(target.workdir / 'data')
  values = config.to_dict() | {
    'start_digest': digests.of_tree(kept.weights),
    'model': kept.config.model.to_dict(),
    'quantizer': kept.config.quantizer.to_dict(),
    'dataset': kept.config.dataset,
    'data_dir': '' if is_own else str(data_dir),
    'start_from': workdir,
  }
  if config.discriminator.num_samples:
    if not run.prior.has_weights:
      raise errors.UserError(
        f'{workdir} has no trained prior, whose samples the discriminator '
        'would see; train it first, or give --config.discriminator.'
        'num_samples=0'
      )
    run.check_codes()
    values['prior_digest'] = digests.of_tree(run.prior.weights)
  return ml_collections.ConfigDict(values)


def start(config: ml_collections.ConfigDict, run: run_lib.Run) -> Start:
  """Reads what is trained on from, and draws the codes.

  Their classes have the frequencies of the training images.

  Args:
    config: from `resolve`.
    run: from `source`.

  Raises:
    UserError: the codes of the prior's training, which have the classes, are
      not found.
  """
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


def copy_prior(start: run_lib.Run, run: run_lib.Run):
  """Copies the prior of the run that was trained on, unless there is one."""
  if run.prior.started or not start.prior.has_weights:
    return
  files.refuse_links(start.prior.folder)
  with files.new_folder(run.prior.folder) as folder:
    _copy(start.prior.folder, folder)
  logging.info('Copied the prior of %s, which fits.', start.workdir)


def _copy(source: epath.Path, folder: epath.Path):
  """Copies what is in a folder; both can be in buckets."""
  for path in source.iterdir():
    target = folder / path.name
    if path.is_dir():
      target.mkdir(exist_ok=True)
      _copy(path, target)
    else:
      target.write_bytes(path.read_bytes())
