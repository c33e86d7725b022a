"""Exceptions that are not bugs, and their messages."""


class UserError(Exception):
  """A problem the user can fix.

  The message says what is wrong and how to fix it, in one line. The command
  line prints it without a traceback and exits with code 2.
  """


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
