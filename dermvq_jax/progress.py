"""Progress bars with the time left, for all long work."""

import os
import sys

import tqdm

# A log file gets a line now and then, a terminal gets a moving bar.
_LOG_INTERVAL_SECONDS = 15
_LINE = (
  '{desc}: {n_fmt} of {total_fmt} {unit}s, {percentage:.0f}%, {elapsed} '
  'passed, {remaining} left{postfix}'
)


class _Lines(tqdm.tqdm):
  """Progress as lines, for a file: a bar would leave all its states there."""

  _shown = None

  def display(self, msg=None, pos=None):
    """Writes a line, unless it was the last one too, or work is short."""
    del msg, pos
    is_short = self.format_dict['elapsed'] < _LOG_INTERVAL_SECONDS
    if self.n != self._shown and not is_short:
      self._shown = self.n
      print(self, file=self.fp, flush=True)

  def refresh(self, nolock=False, lock_args=None):
    """Does nothing around a line of a log, where tqdm passes `nolock`."""
    if not nolock:
      self.display()

  def clear(self, nolock=False):
    """Does nothing: a line stays."""

  def close(self):
    """Writes the last line."""
    if not self.disable:
      self.display()
      self.disable = True


def bar(iterable=None, **kwargs) -> tqdm.tqdm:
  """Returns a tqdm bar on stderr; the arguments are those of tqdm."""
  # tqdm shows nothing in a terminal whose size is not known (0x0).
  is_terminal = sys.stderr.isatty() and all(
    os.get_terminal_size(sys.stderr.fileno())
  )
  return (tqdm.tqdm if is_terminal else _Lines)(
    iterable,
    mininterval=0.1 if is_terminal else _LOG_INTERVAL_SECONDS,
    bar_format=None if is_terminal else _LINE,
    dynamic_ncols=True,
    file=sys.stderr,
    **kwargs,
  )
