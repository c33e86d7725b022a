"""What all image datasets share: features, splits, preparation, reading."""

import abc
import dataclasses
import importlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.data import splits

# HAM10000's diagnoses in alphabetical order (Tschandl et al. 2018, Table 2).
CLASS_NAMES = ('akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc')


@dataclasses.dataclass(kw_only=True)
class ImageConfig(tfds.core.BuilderConfig):
  """One prepared size of a dataset.

  Attributes:
    size: images are stored as `[size, size, 3]`.
  """

  size: int


@dataclasses.dataclass(frozen=True)
class Record:
  """One image before it is read.

  Attributes:
    id: unique name of the image.
    label: class name.
    group: lesion or patient; a group is never divided between splits.
    source: what the dataset's `read_image` needs to find the pixels.
    extra: values of the dataset's `extra_features`.
  """

  id: str
  label: str
  group: str
  source: Any
  extra: dict[str, Any] = dataclasses.field(default_factory=dict)


class ImageBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base of the datasets with `image`, `label`, `id` and `group`.

  A dataset is a module of `dermvq_jax.data` whose class `Builder` derives from
  this one, with `name` (the module's), `VERSION`, `BUILDER_CONFIGS` and the
  two methods below. Splits and statistics are made here.
  """

  class_names: Sequence[str] = CLASS_NAMES
  extra_features: dict[str, Any] = {}

  @abc.abstractmethod
  def read_records(self, manual_dir: epath.Path | None) -> list[Record]:
    """Returns all records; checks the source and raises UserError."""

  @abc.abstractmethod
  def read_image(self, record: Record) -> np.ndarray:
    """Returns the image, uint8 `[size, size, 3]`; raises UserError."""

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.size
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(
            shape=(size, size, 3), encoding_format='png'
          ),
          'label': tfds.features.ClassLabel(names=list(self.class_names)),
          'id': tfds.features.Text(),
          'group': tfds.features.Text(),
          **self.extra_features,
        }
      ),
      # Filled while the training split is written.
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager):
    manual_dir = dl_manager.manual_dir if self.needs_manual_dir() else None
    records = self.read_records(manual_dir)
    assigned = splits.assign(
      [record.group for record in records],
      [record.label for record in records],
    )
    return {
      split: self._generate_examples(
        [r for r, s in zip(records, assigned) if s == split], split
      )
      for split in splits.SPLITS
    }

  def _generate_examples(
    self, records: Sequence[Record], split: str
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    total, total_squares, count = 0.0, 0.0, 0
    for record in records:
      image = self.read_image(record)
      if split == 'train':
        pixels = image.astype(np.float64) / 255
        total += pixels.sum()
        total_squares += np.square(pixels).sum()
        count += pixels.size
      yield (
        record.id,
        {
          'image': Image.fromarray(image),
          'label': record.label,
          'id': record.id,
          'group': record.group,
          **record.extra,
        },
      )
    if split == 'train' and count:
      mean = total / count
      # Of all values in [0, 1]; the denominator of NMSE.
      self.info.metadata['train_variance'] = total_squares / count - mean**2

  @classmethod
  def needs_manual_dir(cls) -> bool:
    """Whether the user has to bring the source."""
    return cls.MANUAL_DOWNLOAD_INSTRUCTIONS is not None


def make(dataset: str, data_dir: epath.PathLike) -> tfds.core.DatasetBuilder:
  """Returns the builder of `dataset`, prepared or not.

  Args:
    dataset: 'name/config', for example 'ham10000/64': the class `Builder` of
      the module `dermvq_jax.data.<name>` with that config.
    data_dir: where prepared datasets are.

  Raises:
    UserError: no such dataset or config.
  """
  name, _, config = dataset.partition('/')
  if not re.fullmatch('[a-z0-9_]+', name):
    raise errors.UserError(f'dataset {dataset!r} is not of the form name/size')
  module_name = f'dermvq_jax.data.{name}'
  try:
    cls = importlib.import_module(module_name).Builder
  except (ModuleNotFoundError, AttributeError) as e:
    if isinstance(e, ModuleNotFoundError) and e.name != module_name:
      raise
    raise errors.UserError(
      f'there is no dataset {name!r}; dermvq prepare --help lists them'
    ) from None
  known = list(cls.builder_configs)
  if known and config not in known:
    raise errors.UserError(
      f'dataset {name!r} has no config {config!r}; choose one of: '
      + ', '.join(f'{name}/{c}' for c in known)
    )
  return cls(config=config, data_dir=epath.Path(data_dir).expanduser())
