r"""The console: what is printed never stops a command, and is never obeyed.

Standard output and standard error may end before a command does: a pipe is
closed (`dermvq check | head -1`), the disk with the log is full, the terminal
is gone. The command goes on and keeps its exit code. Names of classes and files
may hold codes that a terminal obeys; they are printed as escapes like \x1b.
"""

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from dermvq_jax import errors

# What tqdm writes to move between its bars.
_MOVES = re.compile('[\r\n]*(\x1b\\[A)*')
_LAYOUT = '\r\n\t'


class _Nowhere(io.TextIOBase):
  """A stream that drops what is written."""

  def write(self, text: str) -> int:
    return len(text)


class _Steady:
  """A stream for text that raises nothing.

  Attributes:
    failure: the first error, or None.
  """

  def __init__(self, stream: Any):
    self._stream = stream
    self.failure: OSError | ValueError | None = None

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def _attempt(self, action: Callable[[], Any]):
    try:
      action()
    except (OSError, ValueError) as e:  # ValueError: it was closed.
      self.failure = self.failure or e

  def write(self, text: str) -> int:
    """Writes text; a later call may succeed after one has failed."""
    if not _MOVES.fullmatch(text):
      text = errors.printable(text, keep=_LAYOUT)
    encoding = getattr(self._stream, 'encoding', None) or 'utf-8'
    shown = text.encode(encoding, 'backslashreplace').decode(encoding)
    self._attempt(lambda: self._stream.write(shown))
    return len(text)

  def flush(self):
    """Writes what is buffered, if that is possible."""
    self._attempt(self._stream.flush)

  def finish(self):
    """Flushes; what can't be written is dropped.

    Otherwise Python would try again at exit, and change the exit code.
    """
    try:
      self._stream.flush()
    except (OSError, ValueError) as e:
      self.failure = self.failure or e
      with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        self._stream.flush()


def _open_missing():
  """Opens descriptors 0 to 2 if they are closed (`>&-`).

  Otherwise the next file that is opened would get such a number, and whatever
  a library prints would go into that file.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
      os.set_inheritable(number, True)


@contextlib.contextmanager
def steady() -> Iterator[None]:
  """In this context `sys.stdout` and `sys.stderr` raise nothing.

  At the end it says on standard error if the output is incomplete, except
  after a pipe was closed: its reader had enough.
  """
  _open_missing()
  before = sys.stdout, sys.stderr
  # Python has None for a stream whose descriptor was closed.
  out, err = (_Steady(_Nowhere() if s is None else s) for s in before)
  sys.stdout, sys.stderr = out, err
  try:
    yield
  finally:
    sys.stdout, sys.stderr = before
    out.finish()
    failure = out.failure
    if failure and getattr(failure, 'errno', None) != errno.EPIPE:
      why = getattr(failure, 'strerror', None) or failure
      err.write(f'dermvq: the output is incomplete: {why}\n')
    err.finish()
