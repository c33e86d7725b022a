"""Encodes all images: the dataset of codes that the prior is trained on.

The dataset's name contains a digest of the VQ-VAE, so old codes are never used
with a retrained VQ-VAE.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

from dermvq_jax import errors, progress
from dermvq_jax.data import augment, codes, pipeline, prepare
from dermvq_jax.models import build
from dermvq_jax.runs import run as run_lib

_BATCH_SIZE = 64
# Far more than there are flips and turns.
_MAX_COPIES = 100
# How copies of an image differ. Colour changes would alter what is modelled.
_COPIES_AUGMENT = augment.Augment(flips=True)


def _encode_split(
  encode: Callable[[np.ndarray], Any],
  source: Any,
  fields: tuple[str, ...],
  augmentation: augment.Augment | None,
  seed: int,
  description: str,
) -> Iterator[dict[str, Any]]:
  """Yields the records of one split, in order.

  Args:
    encode: uint8 images to codes.
    source: the split's images.
    fields: further fields that are copied from the record of the image.
    augmentation: applied to the images first.
    seed: seed of the augmentation.
    description: text of the progress bar.
  """
  batches = pipeline.eval_batches(
    source,
    batch_size=min(_BATCH_SIZE, len(source)),
    keys=('image', *fields),
    augment=augmentation,
    seed=seed,
  )
  with progress.bar(total=len(source), desc=description, unit='image') as bar:
    for batch in batches:
      grids = np.asarray(encode(batch['image']))
      for i in np.flatnonzero(batch['mask']):
        yield {'codes': grids[i], **{name: batch[name][i] for name in fields}}
      bar.update(int(batch['mask'].sum()))


def encode(run: run_lib.Run, copies: int = 1) -> str:
  """Writes the codes of all splits of a run's images.

  Args:
    run: a run with a trained VQ-VAE.
    copies: how often each training image is encoded: once unchanged, then with
      random flips and quarter turns.

  Returns:
    The name of the dataset of codes.

  Raises:
    UserError: there is no trained VQ-VAE, its images are not prepared, or the
      codes cannot be written.
  """
  if not 1 <= copies <= _MAX_COPIES:
    raise errors.UserError(
      f'--copies is {copies}; give a number from 1 to {_MAX_COPIES}'
    )
  config, facts = run.vqvae.config, run.vqvae.facts
  codec = build.codec(config, run.vqvae.weights)
  images, folder = run.images, run.codes_dir()
  quantizer = codec.model.quantizer
  conditions = {
    name: values
    for name, values in images.facts['conditions'].items()
    if name != 'label'
  }

  def examples(split: str) -> Iterator[dict[str, Any]]:
    source = images.split(split)
    for copy in range(copies if split == 'train' else 1):
      yield from _encode_split(
        codec.encode,
        source,
        ('label', 'id', 'group', *conditions),
        _COPIES_AUGMENT if copy else None,
        copy,
        f'encode {split}' + (f' {copy + 1}/{copies}' if copies > 1 else ''),
      )

  grid = facts['image_size'] // config.model.downsampling
  dataset = codes.CodesConfig(
    name=run.vqvae_digest + (f'_x{copies}' if copies > 1 else ''),
    codebook_size=quantizer.num_codes,
    grid=(grid, grid * quantizer.num_levels),
    num_levels=quantizer.num_levels,
    class_names=tuple(facts['class_names']),
    conditions=conditions,
    images=images.name,
    images_fingerprint=images.facts['fingerprint'],
    copies=copies,
    examples=examples,
  )
  prepare.write(lambda: codes.Builder(data_dir=folder, config=dataset))
  name = f'codes/{dataset.name}'
  logging.info('Codes: %s in %s', name, folder)
  return name
