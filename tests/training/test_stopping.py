import os
import signal
import threading

import pytest

from dermvq_jax.training import stopping


@pytest.fixture(autouse=True)
def usual_handlers():
  """Ctrl-C is ignored in a process that a shell runs in its background."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request(number, capfd):
  before = signal.getsignal(number)
  with stopping.Requests() as requests:
    assert requests.agreed(1) is None
    os.kill(os.getpid(), number)
    assert requests.agreed(2) == number
    assert signal.getsignal(number) == before  # The second acts as usual.
  assert signal.getsignal(number) == before
  name = signal.Signals(number).name
  assert f'{name}: saving and stopping after this' in capfd.readouterr().err


def test_a_second_ctrl_c_interrupts():
  with stopping.Requests():
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      threading.Event().wait(5)


def test_ignored_signals_stay_ignored():
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with stopping.Requests() as requests:
    os.kill(os.getpid(), signal.SIGINT)
    assert requests.agreed(1) is None
  assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_in_another_thread_there_are_no_requests():
  """Python allows handlers in the main thread only."""
  results = []

  def use():
    with stopping.Requests() as requests:
      results.append(requests.agreed(1))

  thread = threading.Thread(target=use)
  thread.start()
  thread.join()
  assert results == [None]
