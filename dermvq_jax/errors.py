"""Exceptions that are no bugs, and their texts."""


class UserError(Exception):
  """A mistake the user can mend; its text is one line: what and what to do.

  The command line prints it without a traceback and exits with code 2.
  """


class StoppedError(Exception):
  """A training was asked to stop; it saved its state first.

  Attributes:
    signal: that asked for it.
  """

  def __init__(self, signal: int):
    super().__init__(signal)
    self.signal = signal


def one_line(error: object) -> str:
  """The text of an exception without its line breaks."""
  return ' '.join(str(error).split())
