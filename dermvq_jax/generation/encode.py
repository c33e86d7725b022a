"""Between the phases: every image's codes, as a dataset.

The dataset's name is a digest of what made it, so a retrained VQ-VAE never
meets old codes.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, progress
from dermvq_jax.data import augment, codes, pipeline, prepare, prepared
from dermvq_jax.runs import checkpoints, workdirs
from dermvq_jax.training import tasks

PyTree = Any
_BATCH_SIZE = 64
# Copies of an image differ by this; colours would change what is modelled.
_COPIES_AUGMENT = augment.Augment(flips=True)


def digest(weights: PyTree, images: str) -> str:
  """Names the codes: 16 hex digits of encoder, quantizer and image dataset.

  Args:
    weights: of the VQ-VAE, from `checkpoints.load_best`.
    images: the dataset that is encoded.
  """
  parts = tasks.encoding_weights(weights)
  sha = hashlib.sha256(images.encode())
  for name, leaf in sorted(
    flax.traverse_util.flatten_dict(parts, sep='/').items()
  ):
    leaf = np.asarray(leaf)
    sha.update(f'{name}{leaf.shape}{leaf.dtype}'.encode())
    sha.update(leaf.tobytes())
  return sha.hexdigest()[:16]


def codes_name(vqvae_digest: str, copies: int = 1) -> str:
  """The dataset's name: 'codes/<digest>' or 'codes/<digest>_x<copies>'."""
  return f'codes/{vqvae_digest}' + (f'_x{copies}' if copies > 1 else '')


def resolve_dataset(
  config: ml_collections.ConfigDict,
  workdir: epath.PathLike,
  data_dir: str = '',
) -> tuple[str, epath.Path]:
  """The dataset a config means, and where it is prepared.

  A prior's are the codes of the VQ-VAE in `workdir`, in the same place as its
  images unless the config names another, or `data_dir` is given; a classifier's
  are those images.

  Raises:
    UserError: of a prior, there is no trained VQ-VAE, or the config names
      other codes than its; of a classifier, there is no VQ-VAE.
  """
  if config.task == 'vqvae' or (config.task != 'prior' and config.dataset):
    data_dir = data_dir or config.data_dir
    return config.dataset, workdirs.data_dir(workdir, data_dir)
  folder = workdirs.phase_dir(workdir, 'vqvae')
  vqvae_config, facts = workdirs.load_config(folder)
  if config.task != 'prior':
    data_dir = data_dir or config.data_dir or vqvae_config.data_dir
    return facts['dataset'], workdirs.data_dir(workdir, data_dir)
  weights = checkpoints.load_best(folder)
  name = codes_name(digest(weights, facts['dataset']), config.copies)
  if config.dataset not in ('codes', name):
    raise errors.UserError(
      f'config.dataset={config.dataset} is not {name}, the codes of the VQ-VAE '
      f"in {folder}; leave it at 'codes'"
    )
  data_dir = data_dir or config.data_dir or vqvae_config.data_dir
  return name, workdirs.data_dir(workdir, data_dir)


def make_encoder(
  config: ml_collections.ConfigDict, weights: PyTree
) -> Callable[[np.ndarray], np.ndarray]:
  """A frozen encoder: uint8 `[B, H, W, 3]` to int32 `[B, h, w]`."""
  model = tasks.vqvae_model(config)
  variables = {'params': weights['params'], **weights['model_state']}

  @jax.jit
  def apply(variables, images):
    return model.apply(variables, tasks.to_unit(images), method='encode')

  return functools.partial(apply, jax.device_put(variables))


def _encode_split(
  encoder, source, augmentation, seed, description
) -> Iterator[dict[str, Any]]:
  """Yields the examples of one split, in order."""
  batches = pipeline.eval_batches(
    source,
    batch_size=min(_BATCH_SIZE, len(source)),
    keys=('image', 'label', 'id', 'group'),
    augment=augmentation,
    seed=seed,
  )
  with progress.bar(total=len(source), desc=description, unit='image') as bar:
    for batch in batches:
      grids = np.asarray(encoder(batch['image']))
      for i in np.flatnonzero(batch['mask']):
        yield {
          'codes': grids[i],
          'label': int(batch['label'][i]),
          'id': batch['id'][i],
          'group': batch['group'][i],
        }
      bar.update(int(batch['mask'].sum()))


def run(workdir: epath.PathLike, data_dir: str = '', copies: int = 1) -> str:
  """Writes the codes of all splits; returns the dataset's name.

  Args:
    workdir: with a trained VQ-VAE.
    data_dir: where its images are prepared and the codes go; by default where
      the VQ-VAE was trained from.
    copies: how often each training image is encoded: once as it is, then with
      random flips and quarter turns.

  Raises:
    UserError: no trained VQ-VAE, or its images are not in `data_dir`.
  """
  if copies < 1:
    raise errors.UserError(f'--copies is {copies}; it must be 1 or more')
  folder = workdirs.phase_dir(workdir, 'vqvae')
  config, facts = workdirs.load_config(folder)
  weights = checkpoints.load_best(folder)
  images = facts['dataset']
  data_dir = workdirs.data_dir(workdir, data_dir or config.data_dir)
  encoder = make_encoder(config, weights)
  quantizer = tasks.vqvae_model(config).quantizer
  name = codes_name(digest(weights, images), copies)

  def examples(split: str) -> Iterator[dict[str, Any]]:
    source = prepared.open_split(images, data_dir, split)
    for copy in range(copies if split == 'train' else 1):
      yield from _encode_split(
        encoder,
        source,
        _COPIES_AUGMENT if copy else None,
        copy,
        f'encode {split}' + (f' {copy + 1}/{copies}' if copies > 1 else ''),
      )

  grid = facts['image_size'] // config.model.downsampling
  prepared.open_split(images, data_dir, 'train')  # a clear error before work
  prepare.write(
    lambda: codes.Builder(
      data_dir=data_dir,
      config=codes.CodesConfig(
        name=name.partition('/')[2],
        codebook_size=quantizer.num_codes,
        grid=(grid, grid * quantizer.num_levels),
        levels=quantizer.num_levels,
        class_names=tuple(facts['class_names']),
        images=images,
        copies=copies,
        examples=examples,
      ),
    )
  )
  logging.info('Codes: %s in %s', name, data_dir)
  return name
