"""What the benchmarks share: a process a measurement, rounds, medians, tables.

A case is a tuple of words and numbers. In each round every case is measured
once, in a process of its own, one after the other, so that a machine that slows
down slows them all. The process prints one JSON object of numbers.

Rounds share a cache of compiled programs that starts empty: the first round's
first call compiles, and its memory is that of compiling; later rounds show what
a second start costs.
"""

import argparse
import ctypes
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from dermvq_jax.training import host_memory

Case = tuple[str | int, ...]
# Of each case, each number of all rounds.
Results = dict[Case, dict[str, list[float]]]


def name(case: Case) -> str:
  """As `--only` finds it."""
  return ' '.join(map(str, case))


def limit_cores(count: int):
  """Keeps this process to some cores; before anything starts threads."""
  if hasattr(os, 'sched_setaffinity'):  # Linux
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def timed(
  call: Callable[[], object], calls: int, warm_up: int = 0
) -> tuple[float, float]:
  """Seconds of the first call, and the median of the last `calls`.

  Args:
    call: what is timed.
    calls: how many count.
    warm_up: how many come between, which do not.
  """
  seconds = []
  for _ in range(1 + warm_up + calls):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return seconds[0], statistics.median(seconds[-calls:])


def peak_bytes() -> int:
  """The most memory that this process had at once."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else 1024 * peak


def extra_bytes(call: Callable[[], object]) -> int:
  """How much more memory than before a call has at its peak (Linux)."""
  status = pathlib.Path('/proc/self/status')

  def read(field: str) -> int:
    line = next(s for s in status.read_text().splitlines() if field in s)
    return 1024 * int(line.split()[1])

  if hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):
    libc.malloc_trim(0)  # Else it may use what was freed before.
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # forgets the peak
  before = read('VmRSS:')
  call()
  return read('VmHWM:') - before


def interleave(
  cases: Sequence[Case],
  rounds: int,
  measure: Callable[[Case], dict[str, float]],
) -> Results:
  """Measures every case once a round; says on stderr how far it is."""
  results = {case: {} for case in cases}
  for n in range(rounds):
    for case in cases:
      found = measure(case)
      for key, value in found.items():
        results[case].setdefault(key, []).append(value)
      shown = ', '.join(f'{key} {value:.4g}' for key, value in found.items())
      print(
        f'round {n + 1}/{rounds}: {name(case)}: {shown}',
        file=sys.stderr,
        flush=True,
      )
  return results


def in_process(module: str, arguments: Sequence[str], cache: str) -> Callable:
  """Measures cases by starting `module` with `--measure` added.

  Args:
    module: its name.
    arguments: its command line.
    cache: folder for JAX's compiled programs.
  """
  env = os.environ | {
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }

  def measure(case: Case) -> dict[str, float]:
    done = subprocess.run(
      [sys.executable, '-m', module, *arguments, '--measure', json.dumps(case)],
      check=True,
      stdout=subprocess.PIPE,
      text=True,
      env=env,
    )
    return json.loads(done.stdout.splitlines()[-1])

  return measure


def median(results: Results, case: Case, key: str = 'seconds') -> float:
  """Over the rounds; not a number if the case was not measured."""
  values = results.get(case, {}).get(key)
  return statistics.median(values) if values else float('nan')


def of_first_round(results: Results, case: Case, key: str) -> float:
  """Where compiling counts; not a number if the case was not measured."""
  return results.get(case, {}).get(key, [float('nan')])[0]


def ratio(
  results: Results, above: Case, below: Case, key: str = 'seconds'
) -> float:
  """Median of the rounds' quotients: a round shares the machine's speed."""
  try:
    pairs = zip(results[above][key], results[below][key], strict=True)
    return statistics.median(a / b for a, b in pairs)
  except KeyError:  # One was not measured.
    return float('nan')


def slope(x: Iterable[float], y: Iterable[float]) -> float:
  """Of y against x, both logarithmic: the power of x that y grows with."""
  return float(np.polyfit(np.log(list(x)), np.log(list(y)), 1)[0])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Markdown; numbers have three digits, what is not a number is left out."""

  def cell(value: Any) -> str:
    if isinstance(value, float):
      return '' if np.isnan(value) else f'{value:#.3g}'.rstrip('.')
    return str(value)

  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join('| ' + ' | '.join(map(cell, row)) + ' |' for row in lines)


def parser(description: str) -> argparse.ArgumentParser:
  """The flags that all benchmarks have."""
  made = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  made.add_argument('--rounds', type=int, default=5)
  made.add_argument(
    '--calls', type=int, default=5, help='timed in a process; the median counts'
  )
  made.add_argument(
    '--only',
    default='',
    metavar='TEXT',
    help='measure cases that have it in their names, as stderr shows them',
  )
  made.add_argument('--out', metavar='FILE', help='for the tables')
  made.add_argument('--measure', type=json.loads, help=argparse.SUPPRESS)
  return made


def run(
  module: str,
  args: argparse.Namespace,
  cases: Sequence[Case],
  measure: Callable[[Case], dict[str, float]],
  report: Callable[[Results], str],
  prepare: Callable[[Sequence[Case]], None] = lambda _: None,
):
  """Measures one case if `args` says so, else all of them and prints a report.

  Args:
    module: name of the program's module.
    args: from `parser`.
    cases: all there are.
    measure: runs in a process of its own.
    report: makes Markdown of the results of the chosen cases.
    prepare: is given the chosen cases before any is measured.
  """
  if args.measure:
    host_memory.keep()  # As `dermvq` does; it helps PyTorch too.
    found = measure(tuple(args.measure))
    print(json.dumps(found | {'peak_bytes': peak_bytes()}))
    return
  chosen = [case for case in cases if args.only in name(case)]
  prepare(chosen)
  with tempfile.TemporaryDirectory(prefix='dermvq_bench_') as cache:
    measure = in_process(module, sys.argv[1:], cache)
    results = interleave(chosen, args.rounds, measure)
  text = report(results)
  print(text)
  if args.out:
    pathlib.Path(args.out).write_text(text + '\n')
