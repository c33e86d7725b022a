"""Training, codebook search and input against PyTorch and the hardware.

```
make bench
```

or, with the extra `bench` installed, `python -m experiments.benchmarks --help`.

Each contender runs in a process of its own; each round runs all of them, one
after the other. Numbers are medians over the rounds, and ratios are medians of
the rounds' ratios. Everything runs on 2 cores (input: 1) in float32. First
calls, which compile, are reported separately. PyTorch runs eagerly, with
contiguous tensors and with channels_last; the better one counts.
"""

import math
import pathlib
import platform
import time
from collections.abc import Sequence

import numpy as np

from experiments import common
from experiments.benchmarks import flops, harness, steps

_CORES = 2
_GEMM_SIZE = 2048
_CODE_DIM, _POSITIONS = 64, 32 * 32
_INPUT_BATCHES = 16  # for each of --calls
# Steps between the first epoch and the timed steps, which use up all batches
# that are made ahead; timed steps for each of --calls.
_STEPS_BEFORE, _INPUT_STEPS = 8, 4
_DATASET = 'synthetic_dermoscopy'

_HOW = ('jax', 'torch', 'torch_channels_last')
# (work, size, batch): lowest accepted speed, as a share of PyTorch's.
_TRAINING = {
  ('vqvae', 64, 32): 0.8,
  ('vqvae', 128, 8): 0.8,
  ('prior', 16, 16): 0.9,
  ('prior', 32, 8): 0.9,
}
_CODEBOOKS = (512, 8192)
_INPUT = ((64, 32), (128, 8))
_LEAST_IMAGES, _MOST_WAIT = 1000, 1.05
# What grows with what: the cases, and the size that grows. Most of these cases
# are measured anyway.
_GROWTH = {
  'VQ-VAE step an image, over pixels': (
    [('vqvae', 'jax', size, 8) for size in (64, 128, 256)],
    lambda case: case[2] ** 2,
  ),
  'VQ-VAE step an image, over batch (64 px)': (
    [('vqvae', 'jax', 64, batch) for batch in (8, 16, 32, 64)],
    lambda case: case[3],
  ),
  'Gated PixelCNN step a grid, over codes': (
    [('prior', 'jax', grid, 8) for grid in (16, 32, 64)],
    lambda case: case[2] ** 2,
  ),
  'Gated PixelCNN step a grid, over batch (16x16)': (
    [('prior', 'jax', 16, batch) for batch in (4, 8, 16, 32)],
    lambda case: case[3],
  ),
  'search of 1,024 latents, over K (N=32,768)': (
    [('codebook', 'jax', k, 32) for k in (512, 2048, 8192)],
    lambda case: case[2],
  ),
}
_MEMORY = [('codebook', how, 512, n) for how in _HOW[:2] for n in (8, 32, 128)]


def all_cases() -> list[harness.Case]:
  """Returns all cases: work, how, size or K, batch.

  The batch of the codebook search is a number of grids.
  """
  cases = [('gemm', how, _GEMM_SIZE, 1) for how in _HOW[:2]]
  cases += [(w, how, *sizes) for w, *sizes in _TRAINING for how in _HOW]
  cases += [('codebook', how, k, 32) for k in _CODEBOOKS for how in _HOW[:2]]
  cases += _MEMORY
  for sizes in _INPUT:
    cases += [(f'input_{what}', 'jax', *sizes) for what in _INPUT_WORK]
  cases += [case for growing, _ in _GROWTH.values() for case in growing]
  return list(dict.fromkeys(cases))


# Measurements, each in a process of its own.


def _gemm(how: str, size: int, calls: int) -> dict[str, float]:
  a = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
  if how == 'jax':
    import jax
    import jax.numpy as jnp

    x, matmul = jnp.asarray(a), jax.jit(jnp.matmul)
    first, seconds = harness.timed(
      lambda: matmul(x, x).block_until_ready(), 4 * calls
    )
  else:
    import torch

    x = torch.from_numpy(a)
    first, seconds = harness.timed(lambda: x @ x, 4 * calls)
  return {'seconds': seconds, 'first_seconds': first}


def _train(
  work: str, how: str, size: int, batch: int, calls: int
) -> dict[str, float]:
  if how == 'jax':
    step = steps.jax_step(work, size, batch)
  else:
    step = steps.torch_step(
      work, size, batch, channels_last=how == 'torch_channels_last'
    )
  # Memory stays the same after a few steps.
  first, seconds = harness.timed(step, calls, warm_up=3)
  return {'seconds': seconds, 'first_seconds': first}


def _codebook(how: str, k: int, batch: int, calls: int) -> dict[str, float]:
  """Searches the nearest codes of `batch` grids of 32x32 latents."""
  rng = np.random.default_rng(0)
  side = math.isqrt(_POSITIONS)
  latents = rng.normal(size=(batch, side, side, _CODE_DIM)).astype(np.float32)
  codebook = rng.normal(size=(k, _CODE_DIM)).astype(np.float32)
  if how == 'jax':
    import jax
    import jax.numpy as jnp

    from dermvq_jax.models import nearest

    given = jnp.asarray(latents), jnp.asarray(codebook)
    compiled = jax.jit(nearest.nearest_codes).lower(*given).compile()

    def call():
      return compiled(*given).block_until_ready()

  else:
    import torch

    flat = torch.from_numpy(latents).reshape(-1, _CODE_DIM)
    codes = torch.from_numpy(codebook)

    @torch.no_grad()
    def call():
      return (codes.square().sum(1) - 2 * flat @ codes.T).argmin(1)

  extra = harness.extra_bytes(call)
  first, seconds = harness.timed(call, calls)
  return {'seconds': seconds, 'first_seconds': first, 'extra_bytes': extra}


def _input_records(
  data_dir: str, size: int, batch: int, calls: int
) -> dict[str, float]:
  """Reads records to the device on one core; the start is timed too."""
  import jax

  from dermvq_jax.data import augment, pipeline, prepared
  from dermvq_jax.training import parallel

  par = parallel.Parallel()
  source = prepared.Dataset(f'{_DATASET}/{size}', data_dir).split('train')
  changes = augment.Augment(flips=True, rgb_shift_probability=1.0)

  def read(count: int):
    batches = pipeline.train_batches(
      source, batch_size=batch, seed=0, keys=('image',), augment=changes
    )
    for _ in range(count):
      jax.block_until_ready(par.put_batch(next(batches)))

  read(1)
  count = _INPUT_BATCHES * calls
  _, seconds = harness.timed(lambda: read(count), 1)
  return {'seconds': seconds, 'images_per_second': count * batch / seconds}


def _input_step(
  data_dir: str, size: int, batch: int, calls: int, *, constant: bool
) -> dict[str, float]:
  """Makes steps as the training loop does, and waits only for the last one."""
  import jax

  from dermvq_jax.data import prepared

  source = prepared.Dataset(f'{_DATASET}/{size}', data_dir).split('train')
  shift = 'augment.rgb_shift_probability=1.0'
  trainer = steps.trainer(
    'vqvae', size, batch, shift, sources={'train': source}
  )
  par, step_fn = trainer.parallel, trainer.compile_train_step()
  tree = par.put_tree(trainer.start())
  batches = trainer.train_batches()
  same = par.put_batch(next(batches))
  count = _INPUT_STEPS * calls
  before = len(source) // batch + _STEPS_BEFORE
  for n in range(before + count):
    if n == before:
      jax.block_until_ready(tree)
      start = time.perf_counter()
    tree = step_fn(tree, same if constant else par.put_batch(next(batches)))
  jax.block_until_ready(tree)
  return {'seconds': (time.perf_counter() - start) / count}


_INPUT_WORK = ('records', 'step', 'constant')


def _measure(case: harness.Case, data_dir: str, calls: int) -> dict[str, float]:
  """Measures one case, in this process."""
  work, how, size, batch = case
  harness.limit_cores(1 if work == 'input_records' else _CORES)
  if how.startswith('torch'):
    import torch

    torch.set_num_threads(_CORES)
  if work == 'gemm':
    return _gemm(how, size, calls)
  if work == 'codebook':
    return _codebook(how, size, batch, calls)
  if work == 'input_records':
    return _input_records(data_dir, size, batch, calls)
  if work.startswith('input_'):
    constant = work == 'input_constant'
    return _input_step(data_dir, size, batch, calls, constant=constant)
  return _train(work, how, size, batch, calls)


def _prepare(cases: Sequence[harness.Case], data_dir: str):
  """Prepares the datasets that the cases read."""
  sizes = {case[2] for case in cases if case[0].startswith('input_')}
  for size in sorted(sizes):
    from dermvq_jax.data import prepare

    prepare.run(f'{_DATASET}/{size}', data_dir)


# The report.


def _better_torch(results: harness.Results, *rest: int | str) -> harness.Case:
  work, *sizes = rest
  cases = [(work, how, *sizes) for how in _HOW[1:]]
  cases = [case for case in cases if case in results] or cases
  return min(cases, key=lambda case: harness.median(results, case))


def _operators(work: str, size: int) -> list[flops.Operator]:
  if work == 'vqvae':
    return flops.vqvae(size)
  return flops.gated_pixelcnn(size, num_layers=steps.NUM_LAYERS)


def _gemm_peak(results: harness.Results) -> float:
  """Returns operations per second of the faster of JAX and PyTorch."""
  cases = [('gemm', how, _GEMM_SIZE, 1) for how in _HOW[:2]]
  seconds = [harness.median(results, case) for case in cases]
  return 2 * _GEMM_SIZE**3 / min(seconds)


def _verdict(value: float, least: float, aim: float | None = None) -> str:
  if math.isnan(value):
    return ''
  if value >= (aim or least):
    return 'holds'
  return 'the least holds' if value >= least else 'missed'


def _training_table(results: harness.Results, peak: float) -> str:
  rows = []
  for (work, size, batch), least in _TRAINING.items():
    ours = (work, 'jax', size, batch)
    better = _better_torch(results, work, size, batch)
    work_done = flops.of_step(_operators(work, size), batch)
    ratio = harness.ratio(results, better, ours)
    row = [work, f'{size}x{size}, batch {batch}', work_done / 1e9]
    for how in _HOW:
      row.append(1e3 * harness.median(results, (work, how, size, batch)))
    row += [ratio, f'1.0 ({least})', _verdict(ratio, least, 1.0)]
    for case in (ours, better):
      row.append(100 * work_done / harness.median(results, case) / peak)
    for case in (ours, better):
      row.append(harness.median(results, case, 'peak_bytes') / 1e6)
    row.append(harness.of_first_round(results, ours, 'first_seconds'))
    row.append(harness.median(results, ours, 'first_seconds'))
    rows.append(row)
  header = ['step', 'size', 'GFLOP', *(f'{how}, ms' for how in _HOW)]
  header += ['images/s to the better PyTorch', 'bar (least)', '']
  header += ['% of GEMM peak', 'PyTorch %', 'memory peak, MB', 'PyTorch MB']
  header += ['first call, s', 'from the cache, s']
  return common.table(header, rows)


def _codebook_table(results: harness.Results, peak: float) -> str:
  rows = []
  for k in _CODEBOOKS:
    ours, torch = (('codebook', how, k, 32) for how in _HOW[:2])
    ratio = harness.ratio(results, torch, ours)
    n = 32 * _POSITIONS
    seconds = harness.median(results, ours)
    rows.append(
      [
        f'{n:,}',
        k,
        1e3 * seconds,
        1e3 * harness.median(results, torch),
        ratio,
        _verdict(ratio, 1.0),
        100 * 2 * n * k * _CODE_DIM / seconds / peak,
      ]
    )
  header = ['N', 'K', 'jax, ms', 'PyTorch, ms', 'speed to PyTorch', '']
  return common.table([*header, '% of GEMM peak'], rows)


def _memory_table(results: harness.Results) -> str:
  rows = []
  for _, how, k, batch in _MEMORY:
    extra = harness.median(results, ('codebook', how, k, batch), 'extra_bytes')
    rows.append([f'{batch * _POSITIONS:,}', k, how, extra / 1e6])
  return common.table(['N', 'K', 'how', 'memory beyond the inputs, MB'], rows)


def _input_table(results: harness.Results) -> str:
  rows = []
  for size, batch in _INPUT:
    records, step, constant = (
      (f'input_{what}', 'jax', size, batch) for what in _INPUT_WORK
    )
    speed = harness.median(results, records, 'images_per_second')
    wait = harness.ratio(results, step, constant)
    rows.append(
      [
        size,
        speed,
        _verdict(speed, _LEAST_IMAGES) if size == 64 else '',
        1e3 * harness.median(results, step),
        1e3 * harness.median(results, constant),
        wait,
        _verdict(-wait, -_MOST_WAIT),
      ]
    )
  header = ['px', 'images/s on one core', f'bar {_LEAST_IMAGES:,} at 64 px']
  header += ['step on records, ms', 'on one batch, ms', 'ratio']
  return common.table([*header, f'bar {_MOST_WAIT}'], rows)


def _costs(results: harness.Results, cases: Sequence[harness.Case]):
  """Returns the cases that were measured, and their seconds per example."""
  found = [case for case in cases if case in results]
  return found, [harness.median(results, case) / case[3] for case in found]


def _growth_table(results: harness.Results) -> str:
  rows = []
  for title, (cases, x) in _GROWTH.items():
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
    1, len(_GROWTH), figsize=(3.4 * len(_GROWTH), 3.2), layout='constrained'
  )
  for axis, (title, (cases, x)) in zip(axes, _GROWTH.items()):
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
  gemm = [
    2e-9 * _GEMM_SIZE**3 / harness.median(results, ('gemm', how, _GEMM_SIZE, 1))
    for how in _HOW[:2]
  ]
  sections = [
    f'{rounds} rounds, {platform.machine()}, {_CORES} cores. GEMM, float32, '
    f'{_GEMM_SIZE}: JAX {gemm[0]:.3g}, PyTorch {gemm[1]:.3g} GFLOP/s; shares '
    'are of the higher one, by the original operators.',
    '#### Training step\n\n' + _training_table(results, peak),
    '#### Codebook search\n\n' + _codebook_table(results, peak),
    _memory_table(results),
    '#### Input, with flips and RGB shift\n\n' + _input_table(results),
    '#### Growth\n\n' + _growth_table(results),
  ]
  return '\n\n'.join(sections)


def main():
  """Measures all cases and prints tables."""
  parser = harness.parser(__doc__)
  parser.add_argument(
    '--data_dir',
    default='runs/bench_data',
    help='folder for generated images (default: runs/bench_data)',
  )
  parser.add_argument(
    '--plot', metavar='FILE', help='write a plot of the growth here (PNG)'
  )
  args = parser.parse_args()
  data_dir = str(pathlib.Path(args.data_dir).absolute())

  def report(results: harness.Results) -> str:
    if args.plot:
      plot(results, args.plot)
    return make_report(results, args.rounds)

  harness.run(
    'experiments.benchmarks',
    args,
    all_cases(),
    lambda case: _measure(case, data_dir, args.calls),
    report,
    lambda cases: _prepare(cases, data_dir),
  )


if __name__ == '__main__':
  main()
