"""Progress bars with the time left, for all long work."""

import sys

import tqdm

# A log file gets a line now and then, a terminal gets a moving bar.
_LOG_INTERVAL_SECONDS = 15


def bar(iterable=None, **kwargs) -> tqdm.tqdm:
  """Returns a tqdm bar on stderr; the arguments are those of tqdm."""
  interval = 0.1 if sys.stderr.isatty() else _LOG_INTERVAL_SECONDS
  return tqdm.tqdm(
    iterable,
    mininterval=interval,
    dynamic_ncols=True,
    file=sys.stderr,
    **kwargs,
  )
