"""Signals that ask a training to stop after its step: SIGTERM and Ctrl-C."""

import contextlib
import os
import signal
import threading
from typing import Self

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STDERR = 2
_TEXT = (
  '\n{}: saving and stopping after this step. Send it again to stop now.\n'
)


class Requests:
  """In its context the first signal is a request; the second acts as usual."""

  def __init__(self):
    self._received: int | None = None
    self._before = {}

  def __enter__(self) -> Self:
    # Python allows signal handlers in the main thread only.
    if (
      threading.current_thread() is threading.main_thread()
      # With several processes JAX has a handler, which informs all hosts.
      and jax.process_count() == 1
    ):
      for number in _SIGNALS:
        before = signal.getsignal(number)
        if (
          before != signal.SIG_IGN
        ):  # Shells ignore Ctrl-C for background jobs.
          self._before[number] = before
          signal.signal(number, self._receive)
    return self

  def __exit__(self, *unused_exception):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _receive(self, number: int, unused_frame):
    self._received = self._received or number
    signal.signal(number, self._before[number])
    with contextlib.suppress(OSError):
      # Unlike print, this may interrupt another print.
      os.write(_STDERR, _TEXT.format(name(number)).encode())

  def agreed(self, step: int) -> int | None:
    """Returns the signal to stop for after `step`; None to continue.

    All hosts get the same answer, even if only one received the signal.
    """
    if jax.process_count() == 1:
      return self._received
    stop = multihost_utils.reached_preemption_sync_point(step)
    return signal.SIGTERM if stop else None


def name(number: int) -> str:
  """'SIGTERM', for example."""
  return signal.Signals(number).name
