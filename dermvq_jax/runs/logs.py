"""The logs of a training: metrics.jsonl and TensorBoard events.

`metrics.jsonl` is the record: one JSON object per line, with its `step`. The
events are a view of it. CLU's writers need TensorFlow. Its import takes
seconds, so both are imported only when a log is opened.
"""

import contextlib
import json
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging as absl_logging
from etils import epath

from dermvq_jax import errors, files
from dermvq_jax.runs import hosts

_FILE = 'metrics.jsonl'
_PACKAGE = os.path.dirname(os.path.dirname(__file__))


class _TqdmHandler(logging.Handler):
  """Prints log lines above a progress bar instead of through it."""

  def emit(self, record: logging.LogRecord):
    """Prints one record."""
    tqdm.tqdm.write(self.format(record))


def setup_console():
  """Sends plain log lines to stdout, but not those of TensorFlow and orbax."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # TensorFlow announces oneDNN even at that level; only the event writer uses
  # TensorFlow.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  logger = absl_logging.get_absl_logger()
  logger.handlers = [_TqdmHandler()]
  logger.propagate = False
  absl_logging.set_verbosity(absl_logging.INFO)
  # orbax and grain log every step they take.
  logger.addFilter(lambda record: not _is_chatter(record))
  # After reading a damaged checkpoint orbax leaves failed tasks, which asyncio
  # would log.
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  # After a save has failed, threads of tensorstore report to orbax, which no
  # longer waits for them. Python prints what is raised in them.
  sys.unraisablehook = _print_unraisable


def _print_unraisable(found: Any):
  """Prints what nobody can catch, but no report to a closed event loop."""
  if str(found.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(found)


def _is_chatter(record: logging.LogRecord) -> bool:
  if f'{os.sep}orbax{os.sep}' in record.pathname:
    return True  # Its errors are raised as well.
  ours = record.pathname.startswith(_PACKAGE)
  return record.levelno < logging.ERROR and not ours


def exists(folder: epath.PathLike) -> bool:
  """Whether there is a metrics.jsonl in a phase's folder."""
  return (epath.Path(folder) / _FILE).exists()


def read(folder: epath.PathLike) -> list[dict[str, Any]]:
  """Reads all rows of a phase's metrics.jsonl; none if there is no file.

  Raises:
    UserError: a row is damaged.
  """
  path = epath.Path(folder) / _FILE
  if not path.exists():
    return []
  # A kill can leave the last line incomplete; the run resumes before it.
  lines = path.read_bytes().rpartition(b'\n')[0].splitlines()
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      row = None
    if not _is_row(row):
      raise errors.UserError(
        f'line {number} of {path} is damaged; restore the file from a copy, '
        'or delete that line'
      )
    rows.append(row)
  return rows


def _is_row(row: Any) -> bool:
  """Whether a JSON value is a row: numbers by name, with their step."""
  return (
    isinstance(row, dict)
    and all(type(value) in (int, float) for value in row.values())
    and type(row.get('step')) is int
    and row['step'] >= 0
  )


class _Files:
  """A folder for files that grow, or that libraries write.

  For a bucket they are written locally and copied: a bucket takes complete
  files only, and each library would need its own client.
  """

  def __init__(self, folder: epath.PathLike):
    """Opens the folder that the files are for."""
    self._bucket, self._sizes = None, {}
    self.path = pathlib.Path(folder)
    if files.is_remote(folder):
      self._bucket = epath.Path(folder)
      self._temporary = tempfile.TemporaryDirectory(prefix='dermvq_')
      self.path = pathlib.Path(self._temporary.name)

  def upload(self):
    """Copies the files that grew since the last time."""
    if self._bucket is None:
      return
    for file in sorted(p for p in self.path.rglob('*') if p.is_file()):
      size = file.stat().st_size
      if size != self._sizes.get(file):
        target = self._bucket / file.relative_to(self.path).as_posix()
        target.write_bytes(file.read_bytes())
        self._sizes[file] = size

  def close(self):
    """Uploads, and removes the local files if they are for a bucket."""
    self.upload()
    if self._bucket is not None:
      self._temporary.cleanup()


# Number of steps in a trace, and number of steps before it, which compile.
_TRACED_STEPS, _STEPS_BEFORE = 5, 10


class Trace:
  """Records where the time of a few steps goes, for TensorBoard and xprof."""

  def __init__(self, folder: epath.PathLike | None, start: int, end: int):
    """Traces a run from step `start` to `end`; not at all without a folder."""
    self._folder, self._files = folder, None
    self._first = start + 1 + min(_STEPS_BEFORE, (end - start) // 2)

  def step(self, step: int, tree: Any) -> jax.profiler.StepTraceAnnotation:
    """Names a step in the trace; enter the result before the step runs.

    Args:
      step: number of the step.
      tree: arrays of the step before; both ends of the trace wait for them.
    """
    if self._folder is not None and step == self._first:
      jax.block_until_ready(tree)
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # Otherwise every Python call is traced.
      files = _Files(self._folder)
      jax.profiler.start_trace(files.path, profiler_options=options)
      self._files = files
    elif self._files and step == self._first + _TRACED_STEPS:
      jax.block_until_ready(tree)
      self.close()
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def close(self):
    """Stops the trace and writes it."""
    if self._files:
      written, self._files = self._files, None
      jax.profiler.stop_trace()
      written.close()
      absl_logging.info(
        'The trace of up to %d steps, starting at step %d, is in %s.',
        _TRACED_STEPS,
        self._first,
        self._folder,
      )


def open_log(
  folder: epath.PathLike, step: int, *, is_verbose: bool = False
) -> 'Log | NoLog':
  """Opens the log of a run at `step`; one process writes for all.

  Args:
    folder: the phase's folder.
    step: the step that the run resumes from; later rows are dropped.
    is_verbose: whether rows are shown on the console as well.
  """
  return Log(folder, step, is_verbose) if hosts.is_primary() else NoLog()


class NoLog:
  """A log that writes nothing."""

  def scalars(self, step: int, values: dict[str, float]):
    """Does nothing."""

  def images(self, step: int, images: dict[str, np.ndarray]):
    """Does nothing."""

  def flush(self):
    """Does nothing."""

  def close(self):
    """Does nothing."""


class Log:
  """Writes a phase's metrics."""

  def __init__(self, folder: epath.Path, step: int, is_verbose: bool = False):
    """Opens the log; for the arguments see `open_log`."""
    from clu import metric_writers  # needs TensorFlow

    rows = [row for row in read(folder) if row['step'] <= step]
    self._folder, self._files = folder, _Files(folder)
    self._is_verbose = is_verbose
    path = epath.Path(self._files.path) / _FILE
    files.write_text(path, ''.join(json.dumps(row) + '\n' for row in rows))
    self._files.upload()
    self._file = path.open('a')
    with self._events():
      self._writer = metric_writers.SummaryWriter(os.fspath(self._files.path))

  @contextlib.contextmanager
  def _events(self) -> Iterator[None]:
    """Turns TensorFlow's exceptions, mostly a full disk, into one line."""
    try:
      yield
    except Exception as e:
      if not type(e).__module__.startswith('tensorflow'):
        raise
      raise errors.UserError(
        f'cannot write events to {self._folder} ({type(e).__name__}); make '
        'room and check permissions there'
      ) from e

  def scalars(self, step: int, values: dict[str, float]):
    """Writes one row."""
    if self._is_verbose:
      shown = (f'  {name} {value:.4g}' for name, value in values.items())
      absl_logging.info('%s', '\n'.join([f'step {step:,}:', *shown]))
    self._file.write(json.dumps({'step': step, **values}) + '\n')
    self._file.flush()
    with self._events():
      self._writer.write_scalars(step, values)

  def images(self, step: int, images: dict[str, np.ndarray]):
    """Writes pictures `[N, H, W, 3]` in [0, 1] to TensorBoard."""
    if images:
      with self._events():
        self._writer.write_images(step, images)

  def flush(self):
    """Makes sure that everything is on disk, or in the bucket."""
    self._file.flush()
    os.fsync(self._file.fileno())
    with self._events():
      self._writer.flush()
    self._files.upload()

  def close(self):
    """Flushes and closes."""
    self.flush()
    self._file.close()
    with self._events():
      self._writer.close()
    self._files.close()
