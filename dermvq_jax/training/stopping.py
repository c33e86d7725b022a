"""Signals that ask a training to stop after its step.

They are SIGTERM, Ctrl-C, and SIGHUP, which comes when a terminal is closed.
"""

import contextlib
import os
import signal
import threading
from typing import Self

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STDERR = 2
_TEXT = '\n{}: saving and stopping after this step.'
_AGAIN = ' Send it again to stop now.'


class Requests:
  """In its context the first signal is a request; the second acts as usual.

  Only a second SIGHUP is ignored: both the shell and the system send one when
  a terminal is closed.
  """

  def __init__(self):
    self._received: int | None = None
    self._before = {}

  def __enter__(self) -> Self:
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is threading.main_thread():
      # With several processes JAX has a handler of SIGTERM, which informs all
      # hosts.
      alone = jax.process_count() == 1
      for number in _SIGNALS if alone else [signal.SIGHUP]:
        before = signal.getsignal(number)
        # Shells ignore Ctrl-C for background jobs, nohup ignores SIGHUP.
        if before != signal.SIG_IGN:
          self._before[number] = before
          signal.signal(number, self._receive if alone else _pass_on)
    return self

  def __exit__(self, *unused_exception):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _receive(self, number: int, unused_frame):
    self._received = self._received or number
    closed = number == signal.SIGHUP
    again = signal.SIG_IGN if closed else self._before[number]
    signal.signal(number, again)
    text = _TEXT.format(name(number)) + ('' if closed else _AGAIN) + '\n'
    with contextlib.suppress(OSError):
      # Unlike print, this may interrupt another print.
      os.write(_STDERR, text.encode())

  def agreed(self, step: int) -> int | None:
    """Returns the signal to stop for after `step`; None to continue.

    All hosts get the same answer, even if only one received the signal.
    """
    if jax.process_count() == 1:
      return self._received
    stop = multihost_utils.reached_preemption_sync_point(step)
    return signal.SIGTERM if stop else None


def _pass_on(number: int, unused_frame):
  """Turns SIGHUP into SIGTERM, once."""
  signal.signal(number, signal.SIG_IGN)
  os.kill(os.getpid(), signal.SIGTERM)


def name(number: int) -> str:
  """'SIGTERM', for example."""
  return signal.Signals(number).name
