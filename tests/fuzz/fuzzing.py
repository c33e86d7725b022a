"""Runs commands and readers on fuzzed input, and checks how they end.

On any input a command gives its result, or one line and exit code 2. It has no
traceback, takes at most 10 seconds and 2 GB of memory, and leaves nothing
half-written. `make test` tries a few inputs, always the same. `make fuzz` tries
thousands, other ones each time; a failure prints how to repeat it.
"""

import contextlib
import dataclasses
import faulthandler
import io
import os
import pathlib
import random
import re
import time
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import strategies as st

from dermvq_jax import errors, main

# How many inputs all tests together try; 0: those of `make test`.
_INPUTS = int(os.environ.get('DERMVQ_FUZZ_INPUTS', '0'))
_MAX_SECONDS = 10
_MAX_BYTES = 2 * 10**9
_WEDGED = 300  # seconds until a hang ends the process
_REFUSED = 2  # exit code
_DAMAGED = 1  # exit code of dermvq check


def inputs(few: int, share: float) -> Callable:
  """Says how many inputs a test tries.

  Args:
    few: their number in `make test`.
    share: their share of all inputs in `make fuzz`.
  """
  number = max(1, round(share * _INPUTS)) if _INPUTS else few
  return hypothesis.settings(
    max_examples=number,
    derandomize=not _INPUTS,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
  )


def _kilobytes(name: str) -> int:
  """A line of /proc/self/status; 0 where there is no such file."""
  with contextlib.suppress(OSError):
    text = pathlib.Path('/proc/self/status').read_text()
    return int(re.search(rf'^{name}:\s+(\d+) kB', text, re.MULTILINE)[1])
  return 0


def _forget_peak():
  """Sets the largest memory so far, VmHWM, to what is in use now."""
  with contextlib.suppress(OSError):
    pathlib.Path('/proc/self/clear_refs').write_text('5')


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a command ended: its exit code, and what it printed."""

  code: int
  out: str
  err: str


@dataclasses.dataclass
class Tally:
  """What was tried in one test."""

  inputs: int = 0
  refused: int = 0
  most_seconds: float = 0.0
  most_bytes: int = 0

  @contextlib.contextmanager
  def _measured(self):
    """Measures one input; fails if it takes too long or too much memory."""
    _forget_peak()
    before = _kilobytes('VmRSS')
    since, worked = time.monotonic(), time.process_time()
    faulthandler.dump_traceback_later(_WEDGED, exit=True)
    try:
      yield
    finally:
      faulthandler.cancel_dump_traceback_later()
    # Others may use this machine: what this process worked is what counts.
    seconds = min(time.monotonic() - since, time.process_time() - worked)
    used = 1024 * (_kilobytes('VmHWM') - before)
    self.inputs += 1
    self.most_seconds = max(self.most_seconds, seconds)
    self.most_bytes = max(self.most_bytes, used)
    assert seconds <= _MAX_SECONDS, f'{seconds:.1f} s'
    assert used <= _MAX_BYTES, f'{used:,} bytes'

  def command(self, *argv: str, codes: tuple[int, ...] = ()) -> Outcome:
    """Runs a command, whose exit code must be 0, 2 or one of `codes`."""
    out, err = io.StringIO(), io.StringIO()
    with (
      self._measured(),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
    ):
      try:
        code = main.main(argv)
      except SystemExit as e:  # argparse
        code = e.code
    done = Outcome(code, out.getvalue(), err.getvalue())
    assert code in (0, _REFUSED, *codes), done
    assert 'Traceback' not in done.out + done.err, done
    self.refused += code in (_DAMAGED, _REFUSED)
    if code == _REFUSED:
      said = re.findall(r'^dermvq.*: error: .+$', done.err, re.MULTILINE)
      assert len(said) == 1 and done.err.endswith(f'{said[0]}\n'), done
    return done

  def call(self, function: Callable, *args: Any) -> Any:
    """Calls a function; returns None if it refuses its arguments."""
    with self._measured():
      try:
        return function(*args)
      except errors.UserError as e:
        assert '\n' not in str(e) and str(e), e
        self.refused += 1
        return None


def files_in(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
  """All files in a folder: size and time of change by path."""
  found = {}
  for parent, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(parent, name)
      status = os.lstat(path)
      found[os.path.relpath(path, folder)] = status.st_size, status.st_mtime_ns
  return found


# Words that programs have stumbled over.
_AWKWARD = (
  *('', ' ', '0', '-0', '-1', '1', '2', '3', '4', '8', '16', '1.5', '0.5'),
  *('1e400', '1e-400', '-1e400', 'nan', 'inf', '-inf', '1e3', '1_000', '0x10'),
  *('2147483647', '2147483648', '4294967296', '9223372036854775808'),
  *('9' * 400, 'true', 'True', 'False', 'None', 'null', '[]', '{}', '()'),
  *('(1,2)', '(8,)', '[1', '"', "'", '\\', '%s', '%(prog)s', '{x}', '$(x)'),
  *('\n', '\r', 'a\nb', '\x00', '\x1b[31m', '\u202e', '\udcff', '\ufeff'),
  *('é', '\uff11', '\u0661', 'x' * 5000, '=', ',', '=,=', ';', '#', '-', '--'),
  *('~nobody', '*', '[a]', '?', ':', '::', '+', '@', '__class__', 'float32'),
)


def words() -> st.SearchStrategy[str]:
  """Any text: awkward words, numbers, random characters."""
  return st.one_of(
    st.sampled_from(_AWKWARD),
    st.integers(-3, 40).map(str),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=12),
  )


def dice() -> st.SearchStrategy[random.Random]:
  """Uniform choices; Hypothesis itself prefers small values and repetitions."""
  return st.randoms(use_true_random=True)


def damaged(data: bytes, rng: random.Random) -> bytes:
  """Changes, cuts out or repeats one place of some bytes, or a few places."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    at = rng.randrange(len(data) or 1)
    part = slice(at, at + rng.choice((1, 2, 4, 16, 300)))
    kind = rng.choice(('flip', 'flip', 'set', 'cut', 'end', 'repeat', 'insert'))
    if kind == 'flip' and data:
      data[at] ^= 1 << rng.randrange(8)
    elif kind == 'set':
      byte = rng.choice((0, 1, 127, 128, 255))
      data[part] = bytes([byte]) * len(data[part])
    elif kind == 'cut':
      del data[part]
    elif kind == 'end':
      del data[at:]
    elif kind == 'repeat':
      data[at:at] = data[part]
    elif kind == 'insert':
      data[at:at] = rng.randbytes(rng.randint(1, 8))
  return bytes(data)
