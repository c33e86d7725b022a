"""Asks a training to stop at its next step: SIGTERM, or Ctrl-C."""

import contextlib
import os
import signal
import threading
from typing import Self

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STDERR = 2
_TEXT = '\n{}: the training stops after this step and saves; again: at once.\n'


class Requests:
  """While entered, a signal is a request; its second one acts as usual."""

  def __init__(self):
    self._received: int | None = None
    self._before = {}

  def __enter__(self) -> Self:
    # Elsewhere Python allows no handlers.
    if (
      threading.current_thread() is threading.main_thread()
      # JAX has a handler of its own there, so that all hosts hear of it.
      and jax.process_count() == 1
    ):
      for number in _SIGNALS:
        before = signal.getsignal(number)
        if before != signal.SIG_IGN:  # As Ctrl-C is in a shell's background.
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
    """The signal to stop for after `step`, None to go on.

    All hosts get the same answer, also when only one had the signal.
    """
    if jax.process_count() == 1:
      return self._received
    stop = multihost_utils.reached_preemption_sync_point(step)
    return signal.SIGTERM if stop else None


def name(number: int) -> str:
  """'SIGTERM', for example."""
  return signal.Signals(number).name
