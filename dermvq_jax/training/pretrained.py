"""Trains on from another run: its encoder and codebook stay as they are.

So its codes stay what they are too, and a prior over them remains right.
"""

import os
from typing import Any

import ml_collections
from absl import logging
from etils import epath

from dermvq_jax import errors, files
from dermvq_jax.models import build
from dermvq_jax.runs import run as run_lib

PyTree = Any


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
  return run_lib.Run(config.start_from)


def resolve(
  config: ml_collections.ConfigDict, start: run_lib.Run
) -> tuple[ml_collections.ConfigDict, PyTree]:
  """Takes what must stay from the run that is trained on.

  Args:
    config: the config of a VQ-VAE.
    start: from `source`.

  Returns:
    A copy of the config, with the model, the quantizer and the dataset of that
    run, and a digest of its encoder and codebook; and its weights.

  Raises:
    UserError: the run has no trained VQ-VAE.
  """
  vqvae = start.vqvae
  weights = vqvae.weights
  kept, workdir = vqvae.config, os.fspath(start.workdir)
  if not files.is_remote(workdir):  # later commands may run in another folder
    workdir = os.path.abspath(workdir)
  values = config.to_dict() | {
    'model': kept.model.to_dict(),
    'quantizer': kept.quantizer.to_dict(),
    'dataset': kept.dataset,
    'data_dir': str(start.data_dir(config.data_dir)),
    'start_from': workdir,
    'start_digest': build.encoding_digest(weights, vqvae.facts),
  }
  return ml_collections.ConfigDict(values), weights


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
