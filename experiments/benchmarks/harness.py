"""Parts that benchmarks share: rounds, a process per measurement, medians.

A case is a tuple of words and numbers. Each round measures every case once, one
after the other, so a machine that slows down slows all cases. Each measurement
runs in a separate process, which prints one JSON object of numbers.

All rounds share a cache of compiled programs. It starts empty, so the first
call of the first round includes compilation, and so does its memory. Later
rounds show the cost of a second start.
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

import numpy as np

from dermvq_jax.training import host_memory
from experiments import common

Case = tuple[str | int, ...]
# For each case and each of its numbers, the values of all rounds.
Results = dict[Case, dict[str, list[float]]]


def name(case: Case) -> str:
  """Returns the name that `--only` searches."""
  return ' '.join(map(str, case))


def limit_cores(count: int):
  """Restricts this process to some cores.

  It must be called before anything starts threads.
  """
  if hasattr(os, 'sched_setaffinity'):  # Linux
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def timed(
  call: Callable[[], object], calls: int, warm_up: int = 0
) -> tuple[float, float]:
  """Times a function: seconds of its first call, and the median of the last.

  Args:
    call: the function.
    calls: number of calls that the median is taken over.
    warm_up: number of calls between the first one and these.
  """
  seconds = []
  for _ in range(1 + warm_up + calls):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return seconds[0], statistics.median(seconds[-calls:])


def peak_bytes() -> int:
  """Returns the peak memory of this process."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else 1024 * peak


def extra_bytes(call: Callable[[], object]) -> int:
  """Returns how much memory a call adds at its peak; for Linux only."""
  status = pathlib.Path('/proc/self/status')

  def read(field: str) -> int:
    line = next(s for s in status.read_text().splitlines() if field in s)
    return 1024 * int(line.split()[1])

  if hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):
    libc.malloc_trim(0)  # Otherwise the call may reuse freed memory.
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # Resets the peak.
  before = read('VmRSS:')
  call()
  return read('VmHWM:') - before


def interleave(
  cases: Sequence[Case],
  rounds: int,
  measure: Callable[[Case], dict[str, float]],
) -> Results:
  """Measures every case once per round; reports progress on stderr."""
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
  """Returns a function that measures a case in a separate process.

  Args:
    module: name of the module to start; `--measure` is added to its flags.
    arguments: the other flags of the module.
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
  """Returns the median over the rounds; NaN if the case was not measured."""
  values = results.get(case, {}).get(key)
  return statistics.median(values) if values else float('nan')


def of_first_round(results: Results, case: Case, key: str) -> float:
  """Returns the value of the first round; NaN if the case was not measured."""
  return results.get(case, {}).get(key, [float('nan')])[0]


def ratio(
  results: Results, above: Case, below: Case, key: str = 'seconds'
) -> float:
  """Returns the median of the rounds' ratios; NaN if a case was not measured.

  Within a round the machine is equally fast for both cases.
  """
  try:
    pairs = zip(results[above][key], results[below][key], strict=True)
    return statistics.median(a / b for a, b in pairs)
  except KeyError:
    return float('nan')


def slope(x: Iterable[float], y: Iterable[float]) -> float:
  """Returns the exponent of y's growth with x: the slope of log y on log x."""
  return float(np.polyfit(np.log(list(x)), np.log(list(y)), 1)[0])


def parser(description: str) -> argparse.ArgumentParser:
  """Returns a parser with the flags that all benchmarks have."""
  made = common.parser(description)
  made.add_argument(
    '--rounds', type=int, default=5, help='number of rounds (default: 5)'
  )
  made.add_argument(
    '--calls',
    type=int,
    default=5,
    help='timed calls in each process; their median counts (default: 5)',
  )
  made.add_argument(
    '--only',
    default='',
    metavar='TEXT',
    help='measure only cases whose name, as shown on stderr, contains TEXT',
  )
  made.add_argument('--out', metavar='FILE', help='also write the tables here')
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
  """Measures the chosen cases and prints a report.

  With `--measure` it measures a single case, in this process.

  Args:
    module: name of the program's module.
    args: from `parser`.
    cases: all cases.
    measure: measures one case; it runs in a separate process.
    report: turns the results of the chosen cases into Markdown.
    prepare: called with the chosen cases before any is measured.
  """
  if args.measure:
    host_memory.keep()  # As `dermvq` does; PyTorch gets faster too.
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
