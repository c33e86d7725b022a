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
from dermvq_jax.runs import hosts
from dermvq_jax.runs import run as run_lib

_BATCH_SIZE = 64


def _encode_split(
  encode: Callable[[np.ndarray], Any],
  source: Any,
  fields: tuple[str, ...],
  copy: int,
  description: str,
) -> Iterator[dict[str, Any]]:
  """Yields the records of one split, in order.

  Args:
    encode: uint8 images to codes.
    source: the split's images.
    fields: further fields that are copied from the record of the image.
    copy: number of the symmetry that is applied to the images first.
    description: text of the progress bar.
  """
  batches = pipeline.eval_batches(
    source,
    batch_size=min(_BATCH_SIZE, len(source)),
    keys=('image', *fields),
  )
  with progress.bar(total=len(source), desc=description, unit='image') as bar:
    for batch in batches:
      grids = np.asarray(encode(augment.symmetry(batch['image'], copy)))
      for i in np.flatnonzero(batch['mask']):
        yield {'codes': grids[i], **{name: batch[name][i] for name in fields}}
      bar.update(int(batch['mask'].sum()))


def encode(run: run_lib.Run, copies: int = augment.NUM_SYMMETRIES) -> str:
  """Writes the codes of all splits of a run's images.

  Of several hosts each has all codes afterwards, because it reads them from its
  own disk; a disk that they share gets them once.

  Args:
    run: a run with a trained VQ-VAE.
    copies: how often each training image is encoded, up to 8: unchanged, then
      turned and mirrored, each time in another way (`augment.symmetry`). A
      lesion has no up, so the prior learns from each of them.

  Returns:
    The name of the dataset of codes.

  Raises:
    UserError: there is no trained VQ-VAE, its images are not prepared, or the
      codes cannot be written, or hosts have different images or weights.
  """
  if not 1 <= copies <= augment.NUM_SYMMETRIES:
    raise errors.UserError(
      f'--copies is {copies}; give 1 to {augment.NUM_SYMMETRIES}, the number '
      'of symmetries of a square'
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
  name = f'codes/{dataset.name}'
  hosts.check_same({'weights or images': [name, dataset.images_fingerprint]})
  # Of hosts that share the folder, one writes it and the others wait.
  prepare.write(lambda: codes.Builder(data_dir=folder, config=dataset))
  hosts.wait_for_all('codes are written')
  if not hosts.is_primary():
    return name
  turned = (
    f', each training image in {copies} flips and turns' if copies > 1 else ''
  )
  said = 'Each image is a grid of %dx%d codes%s. They are %s in %s'
  logging.info(said, *dataset.grid, turned, name, folder)
  if conditions:
    logging.info(
      'They know %s beside the label; the prior learns one if it is told to, '
      'for example with --config.conditions.%s=0.3.',
      ', '.join(conditions),
      next(iter(conditions)),
    )
  return name
