"""The report: tables of all results, and a plot of how costs grow."""

import math
import platform
from collections.abc import Sequence

from experiments import common
from experiments.benchmarks import cases as suite
from experiments.benchmarks import flops, harness, steps


def _better_torch(results: harness.Results, *rest: int | str) -> harness.Case:
  work, *sizes = rest
  cases = [(work, how, *sizes) for how in suite.HOW[1:]]
  cases = [case for case in cases if case in results] or cases
  return min(cases, key=lambda case: harness.median(results, case))


def _operators(work: str, size: int) -> list[flops.Operator]:
  if work == 'vqvae':
    return flops.vqvae(size)
  return flops.gated_pixelcnn(size, num_layers=steps.NUM_LAYERS)


def _gemm_peak(results: harness.Results) -> float:
  """Returns operations per second of the faster of JAX and PyTorch."""
  cases = [('gemm', how, suite.GEMM_SIZE, 1) for how in suite.HOW[:2]]
  seconds = [harness.median(results, case) for case in cases]
  return 2 * suite.GEMM_SIZE**3 / min(seconds)


def _verdict(value: float, least: float, aim: float | None = None) -> str:
  if math.isnan(value):
    return ''
  if value >= (aim or least):
    return 'met'
  return 'least met' if value >= least else 'missed'


def _training_table(results: harness.Results, peak: float) -> str:
  rows = []
  for (work, size, batch), least in suite.TRAINING.items():
    ours = (work, 'jax', size, batch)
    better = _better_torch(results, work, size, batch)
    work_done = flops.of_step(_operators(work, size), batch)
    ratio = harness.ratio(results, better, ours)
    row = [work, f'{size}x{size}, batch {batch}', work_done / 1e9]
    for how in suite.HOW:
      row.append(1e3 * harness.median(results, (work, how, size, batch)))
    row += [ratio, f'1.0 ({least})', _verdict(ratio, least, 1.0)]
    for case in (ours, better):
      row.append(100 * work_done / harness.median(results, case) / peak)
    for case in (ours, better):
      row.append(harness.median(results, case, 'peak_bytes') / 1e6)
    row.append(harness.of_first_round(results, ours, 'first_seconds'))
    row.append(harness.median(results, ours, 'first_seconds'))
    rows.append(row)
  header = ['step', 'size', 'GFLOP', *(f'{how}, ms' for how in suite.HOW)]
  header += ['images/s relative to the better PyTorch', 'bar (least)', '']
  header += ['% of GEMM peak', 'PyTorch %', 'memory peak, MB', 'PyTorch MB']
  header += ['first call, s', 'from the cache, s']
  return common.table(header, rows)


def _codebook_table(results: harness.Results, peak: float) -> str:
  rows = []
  for k in suite.CODEBOOKS:
    ours, torch = (('codebook', how, k, 32) for how in suite.HOW[:2])
    ratio = harness.ratio(results, torch, ours)
    n = 32 * suite.POSITIONS
    seconds = harness.median(results, ours)
    rows.append(
      [
        f'{n:,}',
        k,
        1e3 * seconds,
        1e3 * harness.median(results, torch),
        ratio,
        _verdict(ratio, 1.0),
        100 * 2 * n * k * suite.CODE_DIM / seconds / peak,
      ]
    )
  header = ['N', 'K', 'jax, ms', 'PyTorch, ms', 'speed relative to PyTorch', '']
  return common.table([*header, '% of GEMM peak'], rows)


def _memory_table(results: harness.Results) -> str:
  rows = []
  for _, how, k, batch in suite.MEMORY:
    extra = harness.median(results, ('codebook', how, k, batch), 'extra_bytes')
    rows.append([f'{batch * suite.POSITIONS:,}', k, how, extra / 1e6])
  return common.table(['N', 'K', 'how', 'memory beyond the inputs, MB'], rows)


def _input_table(results: harness.Results) -> str:
  rows = []
  for size, batch in suite.INPUT:
    records, step, constant = (
      (f'input_{what}', 'jax', size, batch) for what in suite.INPUT_WORK
    )
    speed = harness.median(results, records, 'images_per_second')
    wait = harness.ratio(results, step, constant)
    rows.append(
      [
        size,
        speed,
        _verdict(speed, suite.LEAST_IMAGES) if size == 64 else '',
        1e3 * harness.median(results, step),
        1e3 * harness.median(results, constant),
        wait,
        _verdict(-wait, -suite.MOST_WAIT),
      ]
    )
  header = [
    'px',
    'images/s on one core',
    f'bar {suite.LEAST_IMAGES:,} at 64 px',
  ]
  header += ['step on records, ms', 'on one batch, ms', 'ratio']
  return common.table([*header, f'bar {suite.MOST_WAIT}'], rows)


def _costs(results: harness.Results, cases: Sequence[harness.Case]):
  """Returns the cases that were measured, and their seconds per example."""
  found = [case for case in cases if case in results]
  return found, [harness.median(results, case) / case[3] for case in found]


def _growth_table(results: harness.Results) -> str:
  rows = []
  for title, (cases, x) in suite.GROWTH.items():
    found, costs = _costs(results, cases)
    if len(found) < 2:
      continue
    sizes = [x(case) for case in found]
    rows.append(
      [
        title,
        ', '.join(map(str, sizes)),
        ', '.join(f'{1e3 * cost:.3g}' for cost in costs),
        harness.slope(sizes, costs),
        100 * (costs[-1] / costs[0] - 1),
      ]
    )
  header = ['cost', 'over', 'ms each', 'log-log slope']
  return common.table([*header, 'last to first, % more'], rows)


def plot(results: harness.Results, path: str):
  """Plots the cost of an example against the size, both logarithmic."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(
    1,
    len(suite.GROWTH),
    figsize=(3.4 * len(suite.GROWTH), 3.2),
    layout='constrained',
  )
  for axis, (title, (cases, x)) in zip(axes, suite.GROWTH.items()):
    what, _, over = title.partition(', over ')
    found, costs = _costs(results, cases)
    sizes = [x(case) for case in found]
    axis.loglog(sizes, [1e3 * c for c in costs], 'o-')
    axis.set(title=what, xlabel=over, ylabel='ms each')
    axis.title.set_fontsize('small')
    axis.set_xticks(sizes, labels=[f'{size:,}' for size in sizes])
    axis.minorticks_off()
    low, high = axis.get_ylim()
    middle = math.sqrt(low * high)  # Noise must not look like growth.
    axis.set_ylim(min(low, middle / 4), max(high, 4 * middle))
    axis.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
  figure.savefig(path, dpi=100)
  plt.close(figure)


def make_report(results: harness.Results, rounds: int) -> str:
  """Returns all tables as Markdown."""
  peak = _gemm_peak(results)
  size = suite.GEMM_SIZE
  gemm = [
    2e-9 * size**3 / harness.median(results, ('gemm', how, size, 1))
    for how in suite.HOW[:2]
  ]
  sections = [
    f'{rounds} rounds, {platform.machine()}, {suite.CORES} cores. GEMM of '
    f'{size}x{size} in float32: JAX {gemm[0]:.3g}, PyTorch {gemm[1]:.3g} '
    'GFLOP/s. Shares of the GEMM peak refer to the faster of the two, and to '
    'the operations of the original operators.',
    '#### Training step\n\n' + _training_table(results, peak),
    '#### Codebook search\n\n' + _codebook_table(results, peak),
    _memory_table(results),
    '#### Input, with flips and RGB shift\n\n' + _input_table(results),
    '#### Growth\n\n' + _growth_table(results),
  ]
  return '\n\n'.join(sections)
