"""Progress bars with the time left, the same for all long work."""

import sys

import tqdm

# A log file gets a line now and then, a terminal a bar that moves.
_LOG_INTERVAL_SECONDS = 15


def bar(iterable=None, **kwargs) -> tqdm.tqdm:
  """A tqdm bar on stderr; arguments are tqdm's."""
  interval = 0.1 if sys.stderr.isatty() else _LOG_INTERVAL_SECONDS
  return tqdm.tqdm(
    iterable,
    mininterval=interval,
    dynamic_ncols=True,
    file=sys.stderr,
    **kwargs,
  )
