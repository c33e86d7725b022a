"""How fast codes are drawn, against recomputing the grid for every code.

```
pip install -c constraints.txt -e '.[bench]'
python -m experiments.benchmarks.sampling
```

Every figure is the median over rounds; in each round every contender runs once
in a process of its own, one after the other, so that a machine that slows down
slows them all. Compilation is apart. A recomputing sampler draws 32 codes and
is scaled to the grid. `forward` is one teacher-forced pass of the same batch:
the work that no exact sampler can do without.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

_CODEBOOK_SIZE, _NUM_CLASSES = 512, 7
_RECOMPUTED = 32  # codes drawn by a recomputing sampler
_CALLS = 3  # timed calls of a fast contender, of which the median counts
_PRIORS = {
  'gated_pixelcnn': {'num_layers': 15, 'features': 64},
  'pixelcnn': {'num_layers': 15, 'features': 128},
  'rnn': {'num_layers': 2, 'features': 208},
  'transformer': {'num_layers': 6, 'features': 128},
}
_HOW = ('torch', 'recompute', 'incremental', 'forward')


def _timed(
  call: Callable[[], object], calls: int = _CALLS
) -> tuple[float, float]:
  """Seconds of the first call and the median of the next ones."""
  seconds = []
  for _ in range(1 + calls):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return seconds[0], statistics.median(seconds[1:])


def _torch(prior: str, grid: int, batch: int) -> tuple[float, float]:
  import torch

  from experiments.benchmarks import torch_gated_pixelcnn

  if prior != 'gated_pixelcnn':
    raise ValueError('there is a PyTorch twin of gated_pixelcnn only')
  torch.manual_seed(0)
  model = torch_gated_pixelcnn.GatedPixelCNN(
    _CODEBOOK_SIZE, _NUM_CLASSES, **_PRIORS[prior]
  ).eval()
  labels = torch.zeros(batch, dtype=torch.int64)
  first, seconds = _timed(
    lambda: model.sample(labels, (grid, grid), _RECOMPUTED), calls=1
  )
  return first, seconds * grid**2 / _RECOMPUTED


def _jax(how: str, prior: str, grid: int, batch: int) -> tuple[float, float]:
  import importlib

  import jax
  import jax.numpy as jnp

  from dermvq_jax import sample

  module = importlib.import_module(f'dermvq_jax.models.{prior}')
  model = module.Prior(_CODEBOOK_SIZE, _NUM_CLASSES, **_PRIORS[prior])
  labels = jnp.zeros(batch, jnp.int32)
  codes = jnp.zeros((batch, grid, grid), jnp.int32)
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), codes[:1, :2, :2], labels[:1]
  )
  apply = functools.partial(model.apply, train=False)

  if how == 'incremental':
    keys = sample.image_keys(0, labels)
    return _timed(
      lambda: sample.sample_codes(
        model, variables, labels, keys, (grid, grid)
      ).block_until_ready()
    )
  if how == 'forward':
    forward = jax.jit(apply)
    return _timed(lambda: forward(variables, codes, labels).block_until_ready())

  @jax.jit
  def draw(variables, codes, labels, n):
    i, j = n // grid, n % grid
    logits = apply(variables, codes, labels)[:, i, j]
    drawn = jax.random.categorical(jax.random.key(n), logits)
    return codes.at[:, i, j].set(drawn)

  def run():
    drawn = codes
    for n in range(_RECOMPUTED):
      drawn = draw(variables, drawn, labels, n)
    drawn.block_until_ready()

  first, seconds = _timed(run, calls=1)
  return first, seconds * grid**2 / _RECOMPUTED


def _measure(how: str, prior: str, grid: int, batch: int) -> dict[str, float]:
  """Seconds for a batch of whole grids; run in a process of its own."""
  if how == 'torch':
    first, seconds = _torch(prior, grid, batch)
  else:
    first, seconds = _jax(how, prior, grid, batch)
  return {'first_seconds': first, 'seconds': seconds}


def _in_process(case: tuple[str, str, int, int]) -> dict[str, float]:
  done = subprocess.run(
    [sys.executable, '-m', __spec__.name, '--measure', *map(str, case)],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def _cases() -> list[tuple[str, str, int, int]]:
  """What is measured: how, prior, side of the grid, batch size."""
  cases = [
    (how, 'gated_pixelcnn', grid, batch)
    for grid, batch in ((32, 16), (16, 1))
    for how in _HOW
  ]
  # Recomputing 32x32 codes with the transformer would take minutes a round.
  cases += [(how, 'transformer', 32, 16) for how in _HOW[2:]]
  cases += [(how, 'transformer', 16, 1) for how in _HOW[1:]]
  # The growth with the number of codes.
  cases += [
    ('incremental', prior, grid, 4)
    for prior in _PRIORS
    for grid in (16, 32, 64)
  ]
  return cases


def _table(results: dict[tuple, dict[str, list[float]]]) -> str:
  lines = [
    '| prior | grid | batch | how | s a batch | images/s | ms a code | of the '
    'forward pass | first call, s |',
    '|' + '---|' * 9,
  ]
  for (how, prior, grid, batch), rows in results.items():
    seconds = statistics.median(rows['seconds'])
    forward = results.get(('forward', prior, grid, batch))
    share = (
      f'{statistics.median(forward["seconds"]) / seconds:.4f}'
      if forward
      else ''
    )
    lines.append(
      f'| {prior} | {grid}x{grid} | {batch} | {how} | {seconds:.4g} | '
      f'{batch / seconds:.4g} | {1e3 * seconds / grid**2:.3f} | {share} | '
      f'{statistics.median(rows["first_seconds"]):.2f} |'
    )
  lines.append('')
  for grid, batch in ((32, 16), (16, 1)):
    for prior in ('gated_pixelcnn', 'transformer'):
      fast = results.get(('incremental', prior, grid, batch))
      for how in ('torch', 'recompute'):
        slow = results.get((how, prior, grid, batch))
        if fast and slow:
          # Pairs of one round share the machine's speed of that time.
          ratios = [a / b for a, b in zip(slow['seconds'], fast['seconds'])]
          lines.append(
            f'{prior} {grid}x{grid}, batch {batch}: incremental is '
            f'{statistics.median(ratios):.0f} times as fast as {how}'
          )
  return '\n'.join(lines)


def main():
  """Measures all cases and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument(
    '--only',
    default='',
    help='measure cases with this text, e.g. "pixelcnn 16"',
  )
  parser.add_argument('--measure', nargs=4, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.measure:
    how, prior, grid, batch = args.measure
    print(json.dumps(_measure(how, prior, int(grid), int(batch))))
    return
  cases = [c for c in _cases() if args.only in ' '.join(map(str, c))]
  results = {case: {'first_seconds': [], 'seconds': []} for case in cases}
  for n in range(args.rounds):
    for case in cases:
      for name, value in _in_process(case).items():
        results[case][name].append(value)
      print(
        f'round {n + 1}/{args.rounds}: {" ".join(map(str, case))}: '
        f'{results[case]["seconds"][-1]:.3f} s',
        file=sys.stderr,
        flush=True,
      )
  print(_table(results))


if __name__ == '__main__':
  main()
