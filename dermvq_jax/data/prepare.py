"""Prepares datasets: either all files of a dataset appear, or none."""

import contextlib
import csv
import hashlib
import inspect
import io
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from dermvq_jax import errors, files, provenance
from dermvq_jax.data import beam, images, prepared, spill
from dermvq_jax.data.datasets import builder as builder_lib

# TFDS' names for a folder that it is still writing, and for a note that it
# writes.
_INCOMPLETE = 'incomplete.'
_CONFIG_NOTE = '.config'
_TABLE_SUFFIXES = ('.csv', '.tab', '.tsv', '.txt')
# A file beside the records: the ids of images that were left out.
_LEFT_OUT = 'left_out.txt'
_MAX_NAMED = 20


def run(
  dataset: str,
  data_dir: epath.PathLike,
  manual_dir: epath.PathLike | None = None,
  overwrite: bool = False,
  columns: Mapping[str, str] | None = None,
  leave_out: epath.PathLike | None = None,
  max_workers: int | None = None,
  beam_options: str | None = None,
) -> tfds.core.DatasetBuilder:
  """Writes `dataset` as ArrayRecord files, unless that was done before.

  Nothing is downloaded. The files are written into a folder `incomplete.*`,
  which is renamed at the end. It is removed if anything fails, or by the next
  run if this one is killed.

  Args:
    dataset: 'name/config', see `builder.make`.
    data_dir: a local folder for prepared datasets.
    manual_dir: folder with the user's files, for datasets that need them.
    overwrite: whether to prepare a prepared dataset again; if that fails, the
      old files are restored.
    columns: see `builder.make`.
    leave_out: a table of `dermvq score`; images with 'yes' in its column
      `flagged` are left out, counted, and listed in `left_out.txt` beside the
      records. The others stay in the splits that they would be in anyway.
    max_workers: upper limit of the processes that read files; None: one for
      each core. The records do not depend on it.
    beam_options: 'runner=NAME,OPTION=VALUE,...' lets Apache Beam read the
      files, on machines that share `manual_dir` and `data_dir`. The records do
      not depend on it.

  Returns:
    The prepared builder.

  Raises:
    UserError: the user's files are missing or malformed, or not those that the
      dataset was prepared from; `data_dir` is not local or can't be written;
      images are to be left out of a dataset that is already prepared; or Beam
      is not installed or fails.
  """
  if '://' in str(data_dir):
    raise errors.UserError(
      f'datasets cannot be stored in {data_dir}; give a local folder as '
      '--data_dir'
    )
  if max_workers is not None and max_workers < 1:
    raise errors.UserError(f'--max_workers is {max_workers}; give 1 or more')
  pipeline = None
  if beam_options is not None:
    if max_workers is not None:
      raise errors.UserError(
        '--max_workers is not for Apache Beam; give its runner an option in '
        '--beam_options, for example direct_num_workers=2'
      )
    pipeline = beam.options(beam_options)
    # Other machines are in other folders.
    data_dir = pathlib.Path(data_dir).expanduser().absolute()
  names = () if leave_out is None else _flagged(epath.Path(leave_out))

  def make_builder() -> tfds.core.DatasetBuilder:
    builder = builder_lib.make(dataset, data_dir, columns)
    builder.leave_out, builder.max_workers = names, max_workers
    builder.beam_options = pipeline
    return builder

  if names and not overwrite and _is_prepared(make_builder()):
    raise errors.UserError(
      f'{dataset} is already prepared in {data_dir}; to leave images out of '
      'it, prepare it again with --overwrite, or into another --data_dir'
    )
  return write(make_builder, manual_dir, overwrite)


def _flagged(table: epath.Path) -> list[str]:
  """The images that a table of `dermvq score` flags.

  Raises:
    UserError: there is no such table, or it flags no image.
  """
  try:
    rows = list(csv.DictReader(io.StringIO(table.read_text(), newline='')))
    names = [row['image'] for row in rows if row['flagged'] == 'yes']
  except (OSError, ValueError, KeyError, csv.Error) as e:
    raise errors.UserError(
      f'{table} is no table with the columns image and flagged '
      f'({errors.one_line(repr(e))}); give a scores.csv of dermvq score'
    ) from e
  if not names:
    raise errors.UserError(
      f'{table} flags no image; leave out --leave_out, or write yes in its '
      'column flagged'
    )
  return names


def write(
  make_builder: Callable[[], tfds.core.DatasetBuilder],
  manual_dir: epath.PathLike | None = None,
  overwrite: bool = False,
) -> tfds.core.DatasetBuilder:
  """Does the same as `run` for a builder that `builder.make` cannot make.

  Args:
    make_builder: returns a new builder each time, always for the same data.
    manual_dir: see `run`.
    overwrite: see `run`.
  """
  builder = make_builder()
  name, path = _full_name(builder), pathlib.Path(builder.data_path)
  if _is_prepared(builder) and not overwrite:
    _check_source(builder, manual_dir)
    _say(f'{name} is already prepared in {path}')
    return builder
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS is not None:
    manual_dir = _check_manual_dir(builder, manual_dir)
  data_dir = pathlib.Path(builder.data_path.parents[2])
  try:
    files.make_folder(data_dir)
    with _locked(data_dir):
      _bring_back(path)
      builder = make_builder()
      # Another process may have prepared it while this one waited.
      if overwrite or not _is_prepared(builder):
        with _replacing(path):
          builder = make_builder()
          _write(builder, manual_dir)
        # Last, because a failure here must not undo the rest.
        made_by = provenance.describe() | {
          'source': _source(builder, manual_dir),
          'contents': getattr(builder, 'contents', {}),
        }
        text = json.dumps(made_by, indent=2) + '\n'
        files.write_text(path / prepared.MADE_BY, text)
        _list_left_out(builder, path)
        for folder in (path, path.parents[1] / _CONFIG_NOTE):
          files.sync_tree(folder)
        for folder in path.parents[:3]:  # up to data_dir
          files.sync(folder)
  except (OSError, RuntimeError) as e:
    failure = _system_failure(e)
    if failure is None:
      raise
    # Codes are written where their images are.
    first = 'copy the images to' if builder.name == 'codes' else 'choose'
    raise errors.UserError(
      f'cannot prepare {name} in {data_dir}: {failure}; make room and check '
      f'permissions there, or {first} another --data_dir'
    ) from e
  return builder


def _list_left_out(builder: tfds.core.DatasetBuilder, path: pathlib.Path):
  """Writes and says which images were left out, if any were."""
  names = getattr(builder, 'left_out', ())
  if not names:
    return
  file = path / _LEFT_OUT
  file.write_text('\n'.join(map(errors.printable, names)) + '\n')
  shown = ', '.join(map(errors.printable, names[:_MAX_NAMED]))
  more = ', ...' if len(names) > _MAX_NAMED else ''
  _say(f'Left out {len(names)} images: {shown}{more}; all are in {file}')


def _write(
  builder: tfds.core.DatasetBuilder, manual_dir: epath.PathLike | None
) -> None:
  """Lets TFDS prepare, without its progress bars and `downloads` folder."""
  tfds.disable_progress_bar()
  config = tfds.download.DownloadConfig(
    manual_dir=manual_dir,
    try_download_gcs=False,
    beam_options=getattr(builder, 'beam_options', None),
  )
  try:
    with (
      tempfile.TemporaryDirectory() as unused_downloads,
      # TFDS prints messages about downloads, although there are none.
      open(os.devnull, 'w') as devnull,
      contextlib.redirect_stdout(devnull),
      spill.bounded_memory(),
    ):
      builder.download_and_prepare(
        download_dir=unused_downloads,
        download_config=config,
        file_format='array_record',
      )
  finally:
    close = getattr(builder, 'close', None)
    if close is not None:
      close()


def _source(
  builder: tfds.core.DatasetBuilder, manual_dir: epath.PathLike | None
) -> str:
  """Returns a digest of the user's files: names, sizes, contents of tables.

  It is '' for a dataset that needs no files.
  """
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS is None or manual_dir is None:
    return ''
  folder = pathlib.Path(manual_dir).expanduser()
  columns = getattr(builder, 'columns', {})
  digest = hashlib.sha256(json.dumps(dict(columns)).encode())
  for file in sorted(folder.rglob('*')):
    if file.is_file() and not images.is_junk(file.name):
      name = os.fsencode(file.relative_to(folder))
      digest.update(b'%s %d\n' % (name, file.stat().st_size))
      if file.suffix.lower() in _TABLE_SUFFIXES:
        digest.update(file.read_bytes())
  return digest.hexdigest()


def _made_by(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
  """Returns what is known of a dataset's preparation; often nothing."""
  try:
    said = json.loads((builder.data_path / prepared.MADE_BY).read_text())
  except (OSError, ValueError, RecursionError):
    return {}
  return said if isinstance(said, dict) else {}


def _check_source(
  builder: tfds.core.DatasetBuilder, manual_dir: epath.PathLike | None
) -> None:
  """Raises UserError if a dataset was prepared from other files."""
  if manual_dir is None or not pathlib.Path(manual_dir).expanduser().is_dir():
    return
  source = _made_by(builder).get('source')
  if source and source != _source(builder, manual_dir):
    raise errors.UserError(
      f'{_full_name(builder)} in {builder.data_path} was prepared from other '
      f'files, or other columns, than those of {manual_dir}; add --overwrite '
      'to prepare it again, or choose another --data_dir'
    )


def summary(builder: tfds.core.DatasetBuilder) -> str:
  """Returns tables of images by class, condition and split.

  The last line has the number of groups.
  """
  splits = {k: info.num_examples for k, info in builder.info.splits.items()}
  contents = _made_by(builder).get('contents') or {}
  try:
    rows = _rows(contents['images'], splits)
    groups = contents['num_groups']
    by_condition = {
      name: _rows(by_value, splits)
      for name, by_value in contents.get('conditions', {}).items()
    }
  except (AttributeError, KeyError, TypeError, ValueError):
    rows, groups, by_condition = [], None, {}
  rows = [('', *splits), *rows, ('images', *splits.values())]
  for name, more in by_condition.items():
    rows += [(f'by {name}', *[''] * len(splits)), *more]
  texts = [[errors.printable(str(cell)) for cell in row] for row in rows]
  widths = [max(map(len, column)) for column in zip(*texts)]
  lines = [
    '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
    for row in texts
  ]
  if groups is not None:
    lines.append(_about_groups(groups, sum(splits.values())))
  return '\n'.join(line.rstrip() for line in lines)


def _rows(
  counts: Mapping[str, Mapping[str, int]], splits: Iterable[str]
) -> list[tuple[Any, ...]]:
  """Returns the rows of a table of numbers by value and split."""
  return [
    (value or 'not known', *(by_split.get(split, 0) for split in splits))
    for value, by_split in counts.items()
  ]


def _about_groups(num_groups: int, num_images: int) -> str:
  if num_groups < num_images:
    return f'{num_groups} lesions or patients, each in one split only'
  return (
    'each image is a group of its own: if there are several images of a lesion '
    'or patient, they can be in several splits'
  )


def _locked(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
  """Locks `folder`; waits while another process prepares data in it."""
  return files.locked(
    folder,
    lambda: _say(f'waiting for another process that prepares data in {folder}'),
  )


def _aside(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'{_INCOMPLETE}replaced_{path.name}')


def _bring_back(path: pathlib.Path) -> None:
  """Restores `path` if a run was killed while it replaced it."""
  if _aside(path).exists() and not path.exists():
    _aside(path).rename(path)


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[None]:
  """Moves `path` aside; on failure, restores it and removes all traces."""
  aside = _aside(path)
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
  """Removes the remains of unfinished preparations of `path`."""
  for folder in path.parent.glob(f'{_INCOMPLETE}*_{path.name}'):
    shutil.rmtree(folder)
  # <data_dir>/<name>/<config>, then <data_dir>/<name>, into which TFDS writes a
  # note on the default config first.
  for folder in (path.parent, path.parent.parent):
    if {p.name for p in folder.glob('*')} <= {_CONFIG_NOTE}:
      shutil.rmtree(folder, ignore_errors=True)


def _system_failure(error: Exception) -> str | None:
  """Returns the operating system's message, or None for other errors."""
  if isinstance(error, OSError):
    return errors.one_line(error)
  # ArrayRecord reports it as a RuntimeError.
  found = re.search(r'(open|write|close)\(\) failed: [^;]+', str(error))
  return found and errors.one_line(found[0])


def _full_name(builder: tfds.core.DatasetBuilder) -> str:
  return f'{builder.name}/{builder.builder_config.name}'


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  # TFDS would log a warning where there is no folder.
  return builder.data_path.exists() and builder.is_prepared()


def _check_manual_dir(
  builder: tfds.core.DatasetBuilder, manual_dir: epath.PathLike | None
) -> pathlib.Path:
  """Returns the folder with the user's files.

  Raises:
    UserError: it was not given, does not exist, or is empty.
  """
  if manual_dir is None:
    # The first paragraph says what to do, the others are details.
    first, *details = inspect.cleandoc(
      builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    ).split('\n\n')
    print('\n\n'.join(details))
    raise errors.UserError(
      f'{builder.name} needs files that you provide. '
      f'{errors.one_line(first).rstrip(".")}. Then run the same command with '
      '--manual_dir=FOLDER'
    )
  folder = pathlib.Path(manual_dir).expanduser()
  if not folder.is_dir():
    raise errors.MissingError(
      f'there is no folder {folder}; give the one with the files of '
      f'{builder.name} as --manual_dir=FOLDER'
    )
  if not any(folder.iterdir()):
    raise errors.UserError(
      f'the folder {folder} is empty; put the files of {builder.name} there or '
      'give another --manual_dir=FOLDER'
    )
  return folder


def _say(text: str) -> None:
  print(text, file=sys.stderr)
