"""How something was made: JSON values that people read and no code needs."""

import datetime
import os
import shlex
import sys
from importlib import metadata
from typing import Any

from dermvq_jax import __version__


def describe(*packages: str) -> dict[str, Any]:
  """Describes how this process was started.

  Args:
    *packages: names of packages whose versions matter, besides this one.

  Returns:
    `command`, `date` (UTC), `versions`.
  """
  module = getattr(sys.modules['__main__'], '__spec__', None)
  start = [os.path.basename(sys.argv[0])]
  if module is not None:
    start = ['python', '-m', module.name.removesuffix('.__main__')]
  now = datetime.datetime.now(datetime.UTC)
  return {
    'command': shlex.join([*start, *sys.argv[1:]]),
    'date': now.strftime('%Y-%m-%d %H:%M UTC'),
    'versions': {
      'dermvq_jax': __version__,
      **{name: metadata.version(name) for name in packages},
    },
  }
