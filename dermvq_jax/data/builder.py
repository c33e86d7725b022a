"""What all image datasets share: features, splits, preparation, reading."""

import abc
import contextlib
import dataclasses
import fcntl
import importlib
import os
import pathlib
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from etils import epath
from PIL import Image

from dermvq_jax import errors, progress
from dermvq_jax.data import prepared, splits

# HAM10000's diagnoses in alphabetical order (Tschandl et al. 2018, Table 2).
CLASS_NAMES = ('akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc')

# Dermoscopic cameras reach 24 million pixels; far more is a mistake or an
# attack, and decoding it would fill the memory.
MAX_PIXELS = 50_000_000
_IMAGE_FORMATS = ('JPEG', 'PNG')
# A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is fast, as long
# as that leaves this many times the pixels (a side) for the proper filter.
_DRAFT_MARGIN = 2

# Names that TFDS gives to what it is still writing, and to a note of its own.
_INCOMPLETE = 'incomplete.'
_CONFIG_NOTE = '.config'


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


class _LocalInfo(tfds.core.DatasetInfo):
  """Description of a dataset that TFDS does not publish."""

  def initialize_from_bucket(self) -> None:
    """Does not look for it; that would leave a folder in /tmp each time."""


class ImageBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base of the datasets with `image`, `label`, `id` and `group`.

  A dataset is a module of `dermvq_jax.data` whose class `Builder` derives from
  this one, with `name` (the module's), `VERSION`, `BUILDER_CONFIGS` and the
  two methods below. Splits and statistics are made here.
  """

  class_names: Sequence[str] = CLASS_NAMES
  extra_features: dict[str, Any] = {}
  _progress: tqdm.tqdm | None = None

  @abc.abstractmethod
  def read_records(self, manual_dir: epath.Path | None) -> list[Record]:
    """Returns all records; checks the source and raises UserError."""

  @abc.abstractmethod
  def read_image(self, record: Record) -> np.ndarray:
    """Returns the image, uint8 `[size, size, 3]`; raises UserError."""

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.size
    return _LocalInfo(
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


def prepare(
  dataset: str,
  data_dir: epath.PathLike,
  manual_dir: epath.PathLike | None = None,
  overwrite: bool = False,
) -> tfds.core.DatasetBuilder:
  """Prepares `dataset` to ArrayRecord files, unless that was done before.

  Nothing is downloaded. While it runs, the files are in a folder
  `incomplete.*` beside their place; it is renamed at the end, and removed if
  anything fails, or by the next run if this one is killed.

  Args:
    dataset: 'name/config', see `make`.
    data_dir: a local folder for prepared datasets.
    manual_dir: folder of the source, for datasets that need one.
    overwrite: prepares again; what was there comes back if that fails.

  Returns:
    The prepared builder.

  Raises:
    UserError: the source is missing or bad, or `data_dir` can't be written.
  """
  return prepare_made(lambda: make(dataset, data_dir), manual_dir, overwrite)


def prepare_made(
  make_builder: Callable[[], tfds.core.DatasetBuilder],
  manual_dir: epath.PathLike | None = None,
  overwrite: bool = False,
) -> tfds.core.DatasetBuilder:
  """`prepare` for builders that `make` can't make by name.

  Args:
    make_builder: returns a new builder each time, always for the same data.
    manual_dir: see `prepare`.
    overwrite: see `prepare`.
  """
  builder = make_builder()
  name, path = _full_name(builder), pathlib.Path(builder.data_path)
  if _is_prepared(builder) and not overwrite:
    _say(f'{name} is already prepared in {path}')
    return builder
  if _needs_manual_dir(builder):
    manual_dir = check_manual_dir(type(builder), manual_dir)
  data_dir = pathlib.Path(builder.data_path.parents[2])
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    with _locked(data_dir):
      builder = make_builder()
      # Another process may have prepared it while this one waited.
      if overwrite or not _is_prepared(builder):
        with _replacing(path):
          builder = make_builder()
          _write(builder, manual_dir)
  except (OSError, RuntimeError) as e:
    failure = _system_failure(e)
    if failure is None:
      raise
    raise errors.UserError(
      f'cannot prepare {name} in {data_dir}: {failure}; make room and check '
      'permissions there, or choose another --data_dir'
    ) from e
  return builder


def open_split(dataset: str, data_dir: epath.PathLike, split: str):
  """Returns a split as a sequence of examples, a TFDS data source.

  Args:
    dataset: 'name/config', see `make`.
    data_dir: where it was prepared.
    split: 'train', 'val' or 'test'.

  Returns:
    A sequence, for example for `grain.MapDataset.source`; its items are
    dictionaries with `image` uint8 `[size, size, 3]`, `label` int, `id` and
    `group` bytes, and the dataset's extra features.

  Raises:
    UserError: the dataset is not prepared, or it has no such split.
  """
  builder = make(dataset, data_dir)
  if not _is_prepared(builder):
    manual = ' --manual_dir=FOLDER' if _needs_manual_dir(builder) else ''
    raise errors.UserError(
      f'{dataset} is not prepared in {data_dir}; run: dermvq prepare '
      f'--dataset={dataset} --data_dir={data_dir}{manual}'
    )
  return prepared.open_split(dataset, data_dir, split)


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
      f'{cls.name} has to be downloaded by hand: '
      f'{_one_line(paragraph).rstrip(".")}; then give that folder as '
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


def read_square_image(
  source: pathlib.Path | zipfile.Path, size: int
) -> np.ndarray:
  """Reads the central square of an image file.

  Args:
    source: a JPEG or PNG file.
    size: pixels a side.

  Returns:
    uint8 `[size, size, 3]`.

  Raises:
    UserError: not a readable image, or one of more than `MAX_PIXELS`.
  """
  try:
    with warnings.catch_warnings(), source.open('rb') as file:
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      with Image.open(file, formats=_IMAGE_FORMATS) as image:
        # Only the header has been read so far.
        if image.width * image.height > MAX_PIXELS:
          raise Image.DecompressionBombError(f'{image.width}x{image.height}')
        return crop_and_resize(image, size)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
    raise errors.UserError(
      f'the image {source} has more than {MAX_PIXELS:,} pixels '
      f'({_one_line(e)}); replace it with the published one or scale it down'
    ) from None
  # Pillow and zipfile raise all of these for damaged files.
  except (
    OSError,
    EOFError,
    RuntimeError,
    SyntaxError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
  ) as e:
    raise errors.UserError(
      f'the image {source} is unreadable ({_one_line(e)}); copy or download '
      'it again'
    ) from e


def crop_and_resize(image: Image.Image, size: int) -> np.ndarray:
  """Returns the central square at `size`, uint8 `[size, size, 3]`."""
  # Decodes a JPEG at a fraction of its size where that is enough.
  image.draft(None, (_DRAFT_MARGIN * size, _DRAFT_MARGIN * size))
  width, height = image.size
  side = min(width, height)
  left, top = (width - side) / 2, (height - side) / 2
  square = image.convert('RGB').resize(
    (size, size),
    Image.Resampling.LANCZOS,
    box=(left, top, left + side, top + side),
  )
  return np.asarray(square)


def _write(
  builder: tfds.core.DatasetBuilder, manual_dir: epath.PathLike | None
) -> None:
  """Lets TFDS prepare, without its own bars and `downloads` folder."""
  tfds.disable_progress_bar()
  config = tfds.download.DownloadConfig(
    manual_dir=manual_dir, try_download_gcs=False
  )
  try:
    with (
      tempfile.TemporaryDirectory() as unused_downloads,
      # TFDS prints about downloads, of which there are none.
      open(os.devnull, 'w') as devnull,
      contextlib.redirect_stdout(devnull),
    ):
      builder.download_and_prepare(
        download_dir=unused_downloads,
        download_config=config,
        file_format='array_record',
      )
  finally:
    bar = getattr(builder, '_progress', None)
    if bar is not None:
      bar.close()


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """Waits until no other process prepares data in `folder`."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      _say(f'waiting for another process that prepares data in {folder}')
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
      pass  # Some network file systems have no locks.
    yield
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[None]:
  """Puts `path` aside; brings it back, and removes all traces, on failure."""
  aside = path.with_name(f'{_INCOMPLETE}replaced_{path.name}')
  _remove_incomplete(path)
  if path.exists():
    path.rename(aside)
  try:
    yield
  except BaseException:
    if aside.exists():
      aside.rename(path)
    raise
  finally:
    _remove_incomplete(path)


def _remove_incomplete(path: pathlib.Path) -> None:
  """Removes what unfinished preparations of `path` left behind."""
  for folder in path.parent.glob(f'{_INCOMPLETE}*_{path.name}'):
    shutil.rmtree(folder)
  # <data_dir>/<name>/<config>, then <data_dir>/<name>, where TFDS notes the
  # default config before anything else.
  for folder in (path.parent, path.parent.parent):
    if {p.name for p in folder.glob('*')} <= {_CONFIG_NOTE}:
      shutil.rmtree(folder, ignore_errors=True)


def _system_failure(error: Exception) -> str | None:
  """Returns what the operating system refused, None for other errors."""
  if isinstance(error, OSError):
    return _one_line(error)
  # ArrayRecord's way to say so.
  found = re.search(r'(open|write|close)\(\) failed: [^;]+', str(error))
  return found and _one_line(found[0])


def _full_name(builder: tfds.core.DatasetBuilder) -> str:
  return f'{builder.name}/{builder.builder_config.name}'


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  # TFDS would log a warning where there is no folder.
  return builder.data_path.exists() and builder.is_prepared()


def _needs_manual_dir(builder: tfds.core.DatasetBuilder) -> bool:
  return builder.MANUAL_DOWNLOAD_INSTRUCTIONS is not None


def _one_line(text: Any) -> str:
  return ' '.join(str(text).split())


def _say(text: str) -> None:
  print(text, file=sys.stderr)
