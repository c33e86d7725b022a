"""Exceptions that are not bugs, and their messages."""

import re

# Characters that a terminal obeys, or that change how the rest of a line looks:
# control characters, line separators, marks of direction, halves of surrogates.
_ACTIVE = re.compile(
  '[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069'
  '\ud800-\udfff]'
)


class UserError(ValueError):
  """A problem the user can fix.

  The message says what is wrong and how to fix it. The command line prints it
  without a traceback and exits with code 2. It is one line, whatever values of
  a stranger's file it quotes: see `printable`.
  """

  def __init__(self, message: str):
    super().__init__(printable(message))


class MissingError(UserError, FileNotFoundError):
  """A file, a run, its weights or a dataset is not there."""


class StoppedError(Exception):
  """A training was asked to stop and has saved its state.

  Attributes:
    signal: the number of the signal that asked it to stop.
  """

  def __init__(self, signal: int):
    super().__init__(signal)
    self.signal = signal


def one_line(error: object) -> str:
  """Returns the text of an exception without its line breaks."""
  return ' '.join(str(error).split())


def is_utf8(text: str) -> bool:
  """Whether text is UTF-8; the name of a file may have other bytes."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def printable(text: str, keep: str = '') -> str:
  r"""Returns text with escapes like \x1b for what a terminal would obey.

  Names of classes, ids and files may come from a stranger.

  Args:
    text: any text.
    keep: characters that stay as they are.
  """

  def escape(found: re.Match[str]) -> str:
    if found[0] in keep:
      return found[0]
    return found[0].encode('unicode_escape').decode()

  return _ACTIVE.sub(escape, text)
