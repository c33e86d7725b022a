"""The dataset of codes that `dermvq encode` makes for the prior."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dermvq_jax.data import splits
from dermvq_jax.data.datasets import description

# split -> examples with `codes`, `label`, `id`, `group` and the conditions.
Examples = Callable[[str], Iterable[dict[str, Any]]]


@dataclasses.dataclass(kw_only=True)
class CodesConfig(tfds.core.BuilderConfig):
  """The codes that one VQ-VAE makes of one dataset of images.

  `name` is the digest of the VQ-VAE, followed by `_x<copies>` if there are
  several copies.

  Attributes:
    codebook_size: number of codes, of all levels together.
    grid: height and width of the codes of one image; the levels of a position
      are adjacent in a row.
    num_levels: number of levels, L; column j holds codes of level j % L.
    class_names: names of the labels.
    conditions: names of the values of each further condition, by its name; as
      in `builder.ImageBuilder`.
    images: the dataset that was encoded.
    images_fingerprint: `fingerprint` of its facts.
    copies: how often each training image is encoded, each time with other
      augmentations.
    examples: returns the examples of a split; a condition's value is its
      number, or the number of values if it is not known.
  """

  codebook_size: int
  grid: tuple[int, int]
  num_levels: int = 1
  class_names: Sequence[str]
  conditions: Mapping[str, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )
  images: str
  images_fingerprint: Mapping[str, str] = dataclasses.field(
    default_factory=dict
  )
  copies: int
  examples: Examples


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Codes of images, with the images' labels, conditions, ids and groups."""

  name = 'codes'
  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    return description.LocalInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          'codes': tfds.features.Tensor(shape=config.grid, dtype=np.int32),
          **description.shared_features(config.class_names, config.conditions),
        }
      ),
      metadata=tfds.core.MetadataDict(
        codebook_size=config.codebook_size,
        grid=list(config.grid),
        num_levels=config.num_levels,
        conditions={k: list(names) for k, names in config.conditions.items()},
        images=config.images,
        images_fingerprint=dict(config.images_fingerprint),
        copies=config.copies,
        vqvae_digest=config.name.partition('_')[0],
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {s: self._generate_examples(s) for s in splits.SPLITS}

  def _generate_examples(self, split: str):
    yield from enumerate(self.builder_config.examples(split))
