"""What all image datasets share: features, splits, preparation, reading."""

import abc
import dataclasses
import importlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from etils import epath
from PIL import Image

from dermvq_jax import errors, progress
from dermvq_jax.data import images, splits

# HAM10000's diagnoses in alphabetical order (Tschandl et al. 2018, Table 2).
CLASS_NAMES = ('akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc')


@dataclasses.dataclass(kw_only=True)
class ImageConfig(tfds.core.BuilderConfig):
  """One prepared size of a dataset.

  Attributes:
    size: images are stored as `[size, size, 3]`.
  """

  size: int


SIZES = [
  ImageConfig(name='64', size=64),
  ImageConfig(name='128', size=128),
  ImageConfig(name='256', size=256),
  ImageConfig(name='smoke', size=16),
]


@dataclasses.dataclass(frozen=True)
class Record:
  """One image before it is read.

  Attributes:
    id: unique name of the image.
    label: class name.
    group: lesion or patient; a group is never divided between splits.
    source: what the dataset's `read_image` needs to find the pixels: the file
      unless the dataset has its own.
    extra: values of the dataset's `extra_features`.
    split: 'train', 'val' or 'test' where it is given, for example published;
      None: it is assigned here.
  """

  id: str
  label: str
  group: str
  source: Any
  extra: dict[str, Any] = dataclasses.field(default_factory=dict)
  split: str | None = None


class LocalInfo(tfds.core.DatasetInfo):
  """Description of a dataset that TFDS does not publish."""

  def initialize_from_bucket(self) -> None:
    """Does not look for it; that would leave a folder in /tmp each time."""


class ImageBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base of the datasets with `image`, `label`, `id` and `group`.

  A dataset is a module of `dermvq_jax.data` whose class `Builder` derives from
  this one, with `name` (the module's), `VERSION`, `BUILDER_CONFIGS` and the
  method below. Splits and statistics are made here.

  Attributes:
    class_names: of the labels; None: those of the records, in alphabetical
      order.
    extra_features: that examples have beside the four.
  """

  class_names: Sequence[str] | None = CLASS_NAMES
  extra_features: dict[str, Any] = {}
  _progress: tqdm.tqdm | None = None

  @abc.abstractmethod
  def read_records(self, manual_dir: epath.Path | None) -> list[Record]:
    """Returns all records; checks the source and raises UserError."""

  def read_image(self, record: Record) -> np.ndarray:
    """Returns the central square, uint8 `[size, size, 3]`.

    Raises:
      UserError: the file is not a readable image, or it is far too large.
    """
    return images.read_square(record.source, self.builder_config.size)

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.size
    return LocalInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(
            shape=(size, size, 3), encoding_format='png'
          ),
          'label': tfds.features.ClassLabel(names=self.class_names),
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
    if self.class_names is None:
      self.info.features['label'].names = sorted({r.label for r in records})
    free = [record for record in records if record.split is None]
    chosen = iter(
      splits.assign([r.group for r in free], [r.label for r in free])
    )
    assigned = [record.split or next(chosen) for record in records]
    empty = set(splits.SPLITS) - set(assigned)
    if empty:
      raise errors.UserError(
        f'{len({r.group for r in records})} lesions or patients are too few, '
        f'the splits {", ".join(sorted(empty))} would be empty; bring at least '
        '10 of a class'
      )
    self._progress = progress.bar(
      desc=self.name, total=len(records), unit='image'
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
    self._progress.set_description(f'{self.name} {split}')
    for record in records:
      image = self.read_image(record)
      self._progress.update()
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
    if self._progress.n == self._progress.total:
      self._progress.close()
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
  module_name = f'dermvq_jax.data.datasets.{name}'
  try:
    cls = importlib.import_module(module_name).Builder
  except (ModuleNotFoundError, AttributeError) as e:
    if isinstance(e, ModuleNotFoundError) and e.name != module_name:
      raise
    raise errors.UserError(
      f'there is no dataset {name!r}; dermvq prepare --help lists them'
    ) from None
  if not issubclass(cls, ImageBuilder):
    raise errors.UserError(f'the dataset {name!r} is not prepared from images')
  known = list(cls.builder_configs)
  if config not in known:
    raise errors.UserError(
      f'dataset {name!r} has no config {config!r}; choose one of: '
      + ', '.join(f'{name}/{c}' for c in known)
    )
  return cls(config=config, data_dir=epath.Path(data_dir).expanduser())


def check_manual_dir(
  cls: type[tfds.core.DatasetBuilder], manual_dir: epath.PathLike | None
) -> pathlib.Path:
  """Returns the folder of a dataset's source.

  Raises:
    UserError: it was not given, does not exist, or is empty.
  """
  if manual_dir is None:
    # The first paragraph is what to do, the others are details.
    paragraph = cls.MANUAL_DOWNLOAD_INSTRUCTIONS.strip().split('\n\n')[0]
    raise errors.UserError(
      f'{cls.name} needs files that you bring: '
      f'{errors.one_line(paragraph).rstrip(".")}; then give that folder as '
      '--manual_dir=FOLDER (README.md tells more)'
    )
  folder = pathlib.Path(manual_dir).expanduser()
  if not folder.is_dir():
    raise errors.UserError(
      f'there is no folder {folder}; give the one that holds {cls.name} as '
      '--manual_dir=FOLDER'
    )
  if not any(folder.iterdir()):
    raise errors.UserError(
      f'the folder {folder} is empty; put the files of {cls.name} there or '
      'give another --manual_dir=FOLDER'
    )
  return folder
