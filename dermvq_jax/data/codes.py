"""The dataset of codes that `dermvq encode` makes for the prior."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dermvq_jax.data.datasets import builder

# split -> examples with `codes`, `label`, `id` and `group`.
Examples = Callable[[str], Iterable[dict[str, Any]]]


@dataclasses.dataclass(kw_only=True)
class CodesConfig(tfds.core.BuilderConfig):
  """One VQ-VAE's codes; `name` is the digest, then `_x<copies>` if several.

  Attributes:
    codebook_size: number of codes, of all levels together.
    grid: height and width of the codes of one image, the levels adjacent.
    levels: number of levels, L; column j holds codes of level j % L.
    class_names: of the labels.
    images: the dataset that was encoded.
    copies: how often each training image is in it, augmented each time.
    examples: where the examples come from; needed only for writing.
  """

  codebook_size: int
  grid: tuple[int, int]
  levels: int = 1
  class_names: tuple[str, ...]
  images: str
  copies: int
  examples: Examples


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Codes of images: int32 grids with the images' labels, ids and groups."""

  name = 'codes'
  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    return builder.LocalInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          'codes': tfds.features.Tensor(shape=config.grid, dtype=np.int32),
          'label': tfds.features.ClassLabel(names=list(config.class_names)),
          'id': tfds.features.Text(),
          'group': tfds.features.Text(),
        }
      ),
      metadata=tfds.core.MetadataDict(
        codebook_size=config.codebook_size,
        grid=list(config.grid),
        levels=config.levels,
        images=config.images,
        copies=config.copies,
        vqvae_digest=config.name.partition('_')[0],
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {s: self._generate_examples(s) for s in ('train', 'val', 'test')}

  def _generate_examples(self, split: str):
    yield from enumerate(self.builder_config.examples(split))
