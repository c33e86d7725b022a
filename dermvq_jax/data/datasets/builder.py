"""What all datasets of images share: the base class and how to make one."""

import abc
import collections
import contextlib
import dataclasses
import importlib
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from etils import epath

from dermvq_jax import errors, progress
from dermvq_jax.data import beam, images, reading, splits
from dermvq_jax.data import conditions as conditions_lib
from dermvq_jax.data.datasets import description, leaving_out, statistics

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
  """One image before its pixels are read.

  Attributes:
    id: unique name of the image.
    label: class name.
    group: lesion or patient; a group is never divided between splits.
    source: what `read_image` needs to find the pixels: the file, unless the
      dataset has its own `read_image`.
    conditions: for each name in the dataset's `conditions` the name of its
      value; a missing or empty name means that the value is not known.
    extra_fields: values of the dataset's `extra_fields`.
    split: 'train', 'val' or 'test' if the split is given, for example a
      published one; None if the base class should assign it.
  """

  id: str
  label: str
  group: str
  source: Any
  conditions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  extra_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  split: str | None = None


class ImageBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base class of all datasets of images.

  To add a dataset, write one module in this folder. Its name is the name of the
  dataset. It has a class `Builder` that derives from this one and has

  - a docstring: what the images are, whom to cite, the licence, and what
    `group` is. It becomes the description of the dataset;
  - `name`: the name of the module;
  - `VERSION`: to be raised when the prepared images, splits or fields change;
  - `BUILDER_CONFIGS`: usually `SIZES`;
  - `MANUAL_DOWNLOAD_INSTRUCTIONS`: which files the user has to download. The
    first paragraph is shown as an error message if they are missing. Leave it
    out if the dataset needs no files;
  - `read_records`: lists the images. It must check the files and raise
    `errors.UserError` if something is wrong; `archives` helps to find files and
    to read tables.

  Set `class_names`, `conditions` or `extra_fields`, and write your own
  `read_image`, only if the defaults below do not fit. This class reads and
  resizes the images, assigns the splits and computes the statistics. A row in
  `tests/data/datasets/test_datasets.py` then tests all this on a made-up
  archive.

  Attributes:
    class_names: names of the labels; None: the labels of the records, in
      alphabetical order.
    conditions: what models can be conditioned on besides the label: for each
      condition the names of its values. `read_records` may set the latter.
    extra_fields: TFDS features of further fields that are stored but that no
      model reads.
    columns: names of the columns of the user's table, by the names that the
      dataset gives them; empty if it takes none.
    contents: `images`, numbers by class and split, `conditions`, numbers by
      condition, value and split, and `num_groups`; set when the dataset is
      written.
    leave_out: ids or files of images that are left out; set it after the
      builder is made.
    left_out: the ids of the images that were left out, after preparation.
    max_workers: upper limit of the processes that read files; None: the cores.
    beam_options: Beam's `PipelineOptions` if Beam reads the files, else None.
  """

  class_names: Sequence[str] | None = CLASS_NAMES
  conditions: Mapping[str, Sequence[str]] = {}
  extra_fields: Mapping[str, Any] = {}
  columns: Mapping[str, str] = {}
  contents: Mapping[str, Any] = {}
  leave_out: Sequence[str] = ()
  left_out: Sequence[str] = ()
  max_workers: int | None = None
  beam_options: Any = None
  _beam_splits: Mapping[str, beam.Split] = {}
  _identities: Mapping[str, Iterator[list[Any]]] = {}
  _progress: tqdm.tqdm
  _squares: Iterator[reading.Square | errors.UserError]

  def __init__(self, *, columns: Mapping[str, str] | None = None, **kwargs):
    """Makes a builder; `columns` are names in the table by ours."""
    if columns:
      self.columns = {**type(self).columns, **columns}
    self._resources = contextlib.ExitStack()
    super().__init__(**kwargs)

  @abc.abstractmethod
  def read_records(self, folder: pathlib.Path | None) -> list[Record]:
    """Returns all images of the dataset, in a fixed order.

    Args:
      folder: what the user gave as --manual_dir, which exists and is not empty;
        None for a dataset that needs no files.

    Raises:
      UserError: files are missing or malformed.
    """

  def read_image(self, record: Record) -> np.ndarray:
    """Returns the central square of an image, uint8 `[size, size, 3]`.

    Files are read in several processes if this method is not overridden.

    Raises:
      UserError: the file is not a readable image, or it is far too large.
    """
    return images.read_square(record.source, self.builder_config.size)

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.size
    return description.LocalInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(
            shape=(size, size, 3), encoding_format='png'
          ),
          **description.shared_features(self.class_names, self.conditions),
          **self.extra_fields,
        }
      ),
      # `train_variance` and the fingerprint of each split are added while the
      # splits are written.
      metadata=tfds.core.MetadataDict(
        conditions=_as_lists(self.conditions),
        fingerprint={},
        untrained_classes=[],
      ),
    )

  def _split_generators(self, dl_manager):
    folder = None
    if self.MANUAL_DOWNLOAD_INSTRUCTIONS is not None:
      folder = pathlib.Path(dl_manager.manual_dir)
    records = self.read_records(folder)
    for record in records:
      self._condition_values(record)  # Raises before anything is written.
    # They may have been read with the records, as the classes may.
    self.info.metadata['conditions'] = _as_lists(self.conditions)
    if self.class_names is None:
      self.info.features['label'].names = sorted({r.label for r in records})
    free = [record for record in records if record.split is None]
    chosen = iter(
      splits.assign([r.group for r in free], [r.label for r in free])
    )
    assigned = [record.split or next(chosen) for record in records]
    # Afterwards: the other images stay in their splits.
    records, assigned = self._without_left_out(records, assigned)
    empty = set(splits.SPLITS) - set(assigned)
    if empty:
      raise errors.UserError(
        f'{len({r.group for r in records})} lesions or patients are too few: '
        f'the splits {", ".join(sorted(empty))} would be empty; add images '
        'until a class has at least 10 lesions or patients'
      )
    self.contents = {
      'images': {
        name: collections.Counter(
          split for r, split in zip(records, assigned) if r.label == name
        )
        for name in self.info.features['label'].names
      },
      'conditions': conditions_lib.count(
        zip([r.conditions for r in records], assigned), self.conditions
      ),
      'num_groups': len({r.group for r in records}),
    }
    self._note_untrained(
      {r.label for r, split in zip(records, assigned) if split == 'train'}
    )
    parts = {
      split: [r for r, s in zip(records, assigned) if s == split]
      for split in splits.SPLITS
    }
    if self.beam_options is not None:
      return self._read_with_beam(parts)
    self._start_reading([r for part in parts.values() for r in part])
    return {s: self._generate_examples(part, s) for s, part in parts.items()}

  def _read_with_beam(self, parts: Mapping[str, Sequence[Record]]):
    """Returns what TFDS lets Beam do for each split.

    Raises:
      UserError: the images of the dataset are not files.
    """
    if type(self).read_image is not ImageBuilder.read_image:
      raise errors.UserError(
        f'Apache Beam reads image files, which {self.name} does not have; '
        'leave out --beam_options'
      )
    self._beam_splits = {s: beam.Split(self.data_path, s) for s in parts}
    self._identities = {s: map(_identity, part) for s, part in parts.items()}
    size = self.builder_config.size
    return {
      s: self._beam_splits[s].examples(
        ((r.source, self._fields(r)) for r in part), size
      )
      for s, part in parts.items()
    }

  def _download_and_prepare(self, dl_manager, download_config) -> None:
    """Writes all splits; TFDS calls it."""
    failure = None
    try:
      super()._download_and_prepare(dl_manager, download_config)
    except Exception as e:
      if not self._beam_splits:
        raise
      failure = beam.failure(e)
    unusable = [m for s in self._beam_splits.values() for m in s.close()]
    if unusable:
      raise reading.unusable(unusable)
    if failure is not None:
      raise failure
    for split in self._beam_splits:
      statistics.of_written(self.info, split, self._identities[split])

  def _start_reading(self, records: Sequence[Record]) -> None:
    """Prepares to read all images, in this order; `close` ends it."""
    if type(self).read_image is ImageBuilder.read_image:
      workers = reading.num_workers(len(records), self.max_workers)
      files = [record.source for record in records]
      squares = reading.read(files, self.builder_config.size, workers)
    else:
      squares = (reading.square(self.read_image(r)) for r in records)
    bar = self._resources.enter_context(
      progress.bar(desc=self.name, total=len(records), unit='image')
    )

    def counted():
      with contextlib.closing(squares):
        for square in squares:
          bar.update()
          yield square

    self._progress = bar
    self._squares = self._resources.enter_context(contextlib.closing(counted()))

  def close(self) -> None:
    """Ends what the preparation started."""
    self._resources.close()

  def _without_left_out(
    self, records: list[Record], assigned: list[str]
  ) -> tuple[list[Record], list[str]]:
    """Drops the records to be left out; counts and stores them.

    Raises:
      UserError: none of the names to leave out is an image of the dataset.
    """
    if not self.leave_out:
      return records, assigned
    is_named = leaving_out.finder(self.leave_out)
    dropped = [is_named(record.id, record.source) for record in records]
    self.left_out = [r.id for r, drop in zip(records, dropped) if drop]
    if not self.left_out:
      raise errors.UserError(
        f'none of the {len(self.leave_out)} images to leave out is in '
        f'{self.name}, for example {errors.printable(self.leave_out[0])}; give '
        'a table of its own images'
      )
    self.info.metadata['num_left_out'] = len(self.left_out)
    kept = [i for i, drop in enumerate(dropped) if not drop]
    return [records[i] for i in kept], [assigned[i] for i in kept]

  def _note_untrained(self, trained: set[str]) -> None:
    """Stores, and says, which classes have no training images."""
    names = self.info.features['label'].names
    untrained = [name for name in names if name not in trained]
    self.info.metadata['untrained_classes'] = untrained
    if untrained:
      print(
        f'{self.name}: there are no training images of '
        f'{", ".join(untrained)}; models will not know how they look',
        file=sys.stderr,
      )

  def _generate_examples(
    self, records: Sequence[Record], split: str
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    self._progress.set_description(f'{self.name} {split}')
    summary = statistics.Statistics(split)
    for record in records:
      square = reading.take(self._squares)
      summary.add(_identity(record), square.pixels)
      yield record.id, {'image': square.png, **self._fields(record)}
    summary.store(self.info.metadata)

  def _fields(self, record: Record) -> dict[str, Any]:
    """Returns what is stored of a record beside its image."""
    return {
      'label': record.label,
      'id': record.id,
      'group': record.group,
      **self._condition_values(record),
      **record.extra_fields,
    }

  def _condition_values(self, record: Record) -> dict[str, int]:
    """Returns the number of each condition's value, or its null value.

    Raises:
      UserError: the dataset has no such condition or no such value.
    """
    return conditions_lib.of_record(
      record.id, record.conditions, self.conditions, self.name
    )


def _as_lists(conditions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
  return {name: list(values) for name, values in conditions.items()}


def _identity(record: Record) -> list[Any]:
  """Returns what the fingerprint of a split says of a record but its pixels."""
  known = sorted((k, name) for k, name in record.conditions.items() if name)
  return [record.id, record.label, record.group, known]


def make(
  dataset: str,
  data_dir: epath.PathLike,
  columns: Mapping[str, str] | None = None,
) -> tfds.core.DatasetBuilder:
  """Returns the builder of `dataset`, whether it is prepared or not.

  Args:
    dataset: 'name/config', for example 'ham10000/64': the class `Builder` of
      the module `dermvq_jax.data.datasets.<name>` with that config.
    data_dir: where prepared datasets are.
    columns: names of columns of the user's table, for a dataset that takes
      them: the names in the table by those in `Builder.columns`.

  Raises:
    UserError: there is no such dataset or config, or it takes no columns.
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
  known = list(cls.builder_configs)
  if config not in known:
    raise errors.UserError(
      f'dataset {name!r} has no config {config!r}; choose one of: '
      + ', '.join(f'{name}/{c}' for c in known)
    )
  for column in sorted((columns or {}).keys() - cls.columns.keys()):
    flag = 'condition_columns' if column == 'condition' else f'{column}_column'
    raise errors.UserError(
      f'{name} takes no --{flag}: its columns have fixed names'
    )
  return cls(
    config=config,
    data_dir=epath.Path(data_dir).expanduser(),
    **({'columns': columns} if columns else {}),
  )
