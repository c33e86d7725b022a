"""Prepares datasets: either all files of a dataset appear, or none."""

import contextlib
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds
from etils import epath

from dermvq_jax import errors, files
from dermvq_jax.data.datasets import builder as builder_lib

# TFDS' names for a folder that it is still writing, and for a note that it
# writes.
_INCOMPLETE = 'incomplete.'
_CONFIG_NOTE = '.config'


def run(
  dataset: str,
  data_dir: epath.PathLike,
  manual_dir: epath.PathLike | None = None,
  overwrite: bool = False,
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

  Returns:
    The prepared builder.

  Raises:
    UserError: the user's files are missing or malformed, or `data_dir` is not
      local or can't be written.
  """
  if '://' in str(data_dir):
    raise errors.UserError(
      f'datasets cannot be stored in {data_dir}; give a local folder as '
      '--data_dir'
    )
  return write(
    lambda: builder_lib.make(dataset, data_dir), manual_dir, overwrite
  )


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
    _say(f'{name} is already prepared in {path}')
    return builder
  if builder.MANUAL_DOWNLOAD_INSTRUCTIONS is not None:
    manual_dir = _check_manual_dir(builder, manual_dir)
  data_dir = pathlib.Path(builder.data_path.parents[2])
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    with _locked(data_dir):
      _bring_back(path)
      builder = make_builder()
      # Another process may have prepared it while this one waited.
      if overwrite or not _is_prepared(builder):
        with _replacing(path):
          builder = make_builder()
          _write(builder, manual_dir)
        files.sync(path.parent)
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


def _write(
  builder: tfds.core.DatasetBuilder, manual_dir: epath.PathLike | None
) -> None:
  """Lets TFDS prepare, without its progress bars and `downloads` folder."""
  tfds.disable_progress_bar()
  config = tfds.download.DownloadConfig(
    manual_dir=manual_dir, try_download_gcs=False
  )
  try:
    with (
      tempfile.TemporaryDirectory() as unused_downloads,
      # TFDS prints messages about downloads, although there are none.
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
    paragraph = builder.MANUAL_DOWNLOAD_INSTRUCTIONS.strip().split('\n\n')[0]
    raise errors.UserError(
      f'{builder.name} needs files that you provide. '
      f'{errors.one_line(paragraph).rstrip(".")}. Then run the same command '
      'with --manual_dir=FOLDER (details: README.md)'
    )
  folder = pathlib.Path(manual_dir).expanduser()
  if not folder.is_dir():
    raise errors.UserError(
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
