"""Reads image files in several processes; the results come in order.

A worker is a Python process of its own that is asked through a pipe. Unlike the
processes of `multiprocessing` it never runs the user's script again, and it
ends when its pipe is closed, even if this process is killed.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import io
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.data import images

# Starting a worker takes as long as reading this many images.
_MIN_IMAGES = 100
# The process that writes the records keeps up with about this many.
_MAX_WORKERS = 8
# A worker reads so many images at once: to wake it takes a while.
_BATCH = 8
# Batches that are read ahead, for each worker.
_AHEAD = 2
_BUFFER_BYTES = 1 << 20
# In this process images are read one at a time: filters of warnings are global.
_here = threading.Lock()

File = pathlib.Path | zipfile.Path


@dataclasses.dataclass(frozen=True)
class Square:
  """The central square of an image.

  Attributes:
    pixels: uint8 `[size, size, 3]`.
    png: the same as a PNG file.
  """

  pixels: np.ndarray
  png: bytes


def square(pixels: np.ndarray) -> Square:
  """Makes a square from its pixels, uint8 `[size, size, 3]`."""
  png = io.BytesIO()
  Image.fromarray(pixels).save(png, 'PNG')
  return Square(pixels, png.getvalue())


def num_workers(num_images: int, at_most: int | None = None) -> int:
  """Returns how many processes are worth their start; 1 means this one.

  Args:
    num_images: the number of images to read.
    at_most: an upper limit; None: the number of cores.
  """
  if at_most is None:
    at_most = min(_num_cores(), _MAX_WORKERS)
  return max(1, min(at_most, num_images // _MIN_IMAGES))


def _num_cores() -> int:
  if hasattr(os, 'sched_getaffinity'):  # not on Macs
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def read(
  files: Sequence[File], size: int, workers: int
) -> Iterator[Square | errors.UserError]:
  """Reads the central squares of image files, in order.

  Args:
    files: the image files.
    size: the side in pixels.
    workers: number of processes; 1 reads in this process.

  Yields:
    For each file its square, or why it cannot be used. At most a few images are
    in memory.
  """
  if workers == 1:
    yield from (read_here(file, size) for file in files)
    return
  free: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
  started = []
  for _ in range(workers):
    try:
      started.append(_Worker())
      free.put(started[-1])
    except OSError:  # No memory is left for it, for example.
      free.put(None)

  def read_some(some: Sequence[File]) -> list[Square | errors.UserError]:
    worker = free.get()
    try:
      if worker is not None:
        return worker.read(some, size)
    except (OSError, EOFError, ValueError):  # It was killed, for example.
      worker = None
    finally:
      free.put(worker)
    return [read_here(file, size) for file in some]

  pool = concurrent.futures.ThreadPoolExecutor(workers)
  try:
    batches = (files[i : i + _BATCH] for i in range(0, len(files), _BATCH))
    for squares in _in_order(pool, read_some, batches, _AHEAD * workers):
      yield from squares
  finally:
    pool.shutdown(cancel_futures=True)
    for worker in started:
      worker.close()


def take(squares: Iterator[Square | errors.UserError]) -> Square:
  """Returns the next square.

  Raises:
    UserError: it cannot be used. The other files that cannot be used are named
      too, in as many lines.
  """
  result = next(squares)
  if isinstance(result, Square):
    return result
  others = [str(other) for other in squares if not isinstance(other, Square)]
  raise unusable([str(result), *others])


def unusable(reasons: Sequence[str]) -> errors.UserError:
  """Returns the error for files that cannot be used; prints all but one.

  Args:
    reasons: why, for each of the files; at least one.
  """
  first, *others = reasons
  if not others:
    return errors.UserError(first)
  print(*map(errors.printable, others), sep='\n', file=sys.stderr)
  return errors.UserError(
    f'{first}; {len(others)} more cannot be used either, see above'
  )


def place(file: File) -> list[str | None]:
  """Returns where a file is, as JSON values: its path, and that in a zip."""
  in_zip = isinstance(file, zipfile.Path)
  path = os.path.abspath(file.root.filename if in_zip else file)
  return [path, file.at if in_zip else None]


def at(where: Sequence[str | None]) -> File:
  """Returns the file whose `place` is given."""
  path, member = where
  if member is None:
    return pathlib.Path(path)
  return zipfile.Path(_open_zip(path), member)


def _in_order(
  pool: concurrent.futures.Executor, function, items: Iterable, ahead: int
) -> Iterator:
  """Yields the results of `function`, of which `ahead` are computed ahead."""
  pending = collections.deque()
  for item in items:
    pending.append(pool.submit(function, item))
    if len(pending) > ahead:
      yield pending.popleft().result()
  while pending:
    yield pending.popleft().result()


def read_here(file: File, size: int) -> Square | errors.UserError:
  """Reads the central square of a file in this process; see `read`."""
  try:
    with _here:
      pixels = images.read_square(file, size)
  except errors.UserError as e:
    return e
  return square(pixels)


class _Worker:
  """A process that reads images."""

  def __init__(self):
    # It finds this package and its dependencies where this process does.
    code = (
      f'import sys; sys.path[:] = {sys.path!r}; '
      f'from {__name__} import serve; serve()'
    )
    self._process = subprocess.Popen(
      [sys.executable, '-c', code],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )

  def read(
    self, files: Sequence[File], size: int
  ) -> list[Square | errors.UserError]:
    """Reads the central squares of images.

    Raises:
      OSError, EOFError, ValueError: the process is gone.
    """
    request = json.dumps({'size': size, 'places': list(map(place, files))})
    self._process.stdin.write(request.encode() + b'\n')
    self._process.stdin.flush()
    return [self._answer(size) for _ in files]

  def _answer(self, size: int) -> Square | errors.UserError:
    answer = json.loads(self._process.stdout.readline())
    if 'error' in answer:
      return errors.UserError(answer['error'])
    pixels = np.frombuffer(self._receive(size * size * 3), np.uint8)
    png = self._receive(answer['png'])
    return Square(pixels.reshape(size, size, 3), png)

  def _receive(self, count: int) -> bytes:
    data = self._process.stdout.read(count)
    if len(data) < count:
      raise EOFError(f'{len(data)} of {count} bytes')
    return data

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()


def serve() -> None:
  """Answers requests from the standard input until it is closed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # The other process decides.
  answers = os.fdopen(os.dup(1), 'wb', _BUFFER_BYTES)
  os.dup2(2, 1)  # Nothing else gets between the answers.
  for line in sys.stdin.buffer:
    request = json.loads(line)
    for where in request['places']:
      result = read_here(at(where), request['size'])
      if isinstance(result, Square):
        answers.write(json.dumps({'png': len(result.png)}).encode() + b'\n')
        answers.write(result.pixels.tobytes() + result.png)
      else:
        answers.write(json.dumps({'error': str(result)}).encode() + b'\n')
    answers.flush()


@functools.lru_cache(maxsize=4)
def _open_zip(path: str) -> zipfile.ZipFile:
  return zipfile.ZipFile(path)
