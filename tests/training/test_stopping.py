import os
import signal
import threading

import jax
import pytest

from dermvq_jax.training import stopping


@pytest.fixture(autouse=True)
def usual_handlers():
  """Shells ignore Ctrl-C for background jobs, nohup ignores SIGHUP."""
  before = {
    signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
  }
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


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


def test_a_closed_terminal_is_a_request(capfd):
  """Two SIGHUPs come: from the system and from the shell."""
  before = signal.getsignal(signal.SIGHUP)
  with stopping.Requests() as requests:
    for _ in range(2):
      os.kill(os.getpid(), signal.SIGHUP)
    assert requests.agreed(1) == signal.SIGHUP
  assert signal.getsignal(signal.SIGHUP) == before
  err = capfd.readouterr().err
  assert err.count('SIGHUP: saving and stopping') == 1 and 'again' not in err


def test_with_several_hosts_sighup_is_sigterm(monkeypatch):
  """JAX's handler of SIGTERM informs all hosts."""
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  received = []
  before = signal.signal(signal.SIGTERM, lambda n, _: received.append(n))
  try:
    with stopping.Requests():
      os.kill(os.getpid(), signal.SIGHUP)
      os.kill(os.getpid(), signal.SIGHUP)
    assert received == [signal.SIGTERM]
  finally:
    signal.signal(signal.SIGTERM, before)


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
