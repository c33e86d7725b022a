"""Speed of sampling, against recomputing the grid for every code.

```
pip install -c constraints.txt -e '.[bench]'
python -m experiments.benchmarks.sampling
```

Every number is the median over rounds. In each round every contender runs once,
one after the other and in a separate process, so a machine that slows down
slows all of them. Compilation is not included. A recomputing sampler samples 32
codes, and its time is scaled to the grid. `forward` is one pass of the same
batch with all codes given: no exact sampler needs less work.
"""

import functools

from experiments import common
from experiments.benchmarks import harness

_CODEBOOK_SIZE, _NUM_CLASSES = 512, 7
RECOMPUTED = 32  # codes that a recomputing sampler samples
PRIORS = {
  'gated_pixelcnn': {'num_layers': 15, 'features': 64},
  'pixelcnn': {'num_layers': 15, 'features': 128},
  'rnn': {'num_layers': 2, 'features': 208},
  'transformer': {'num_layers': 6, 'features': 128},
}
_HOW = ('torch', 'recompute', 'incremental', 'forward')


def _torch(prior: str, grid: int, batch: int) -> tuple[float, float]:
  import torch

  from experiments.benchmarks import torch_gated_pixelcnn

  if prior != 'gated_pixelcnn':
    raise ValueError('there is a PyTorch twin of gated_pixelcnn only')
  torch.manual_seed(0)
  model = torch_gated_pixelcnn.GatedPixelCNN(
    _CODEBOOK_SIZE, _NUM_CLASSES, **PRIORS[prior]
  ).eval()
  labels = torch.zeros(batch, dtype=torch.int64)
  first, seconds = harness.timed(
    lambda: model.sample(labels, (grid, grid), RECOMPUTED), calls=1
  )
  return first, seconds * grid**2 / RECOMPUTED


def _jax(
  how: str, prior: str, grid: int, batch: int, calls: int
) -> tuple[float, float]:
  import jax
  import jax.numpy as jnp

  from dermvq_jax.models import build
  from dermvq_jax.models.priors import randomness, sampler

  fields = (f'prior.{name}={value}' for name, value in PRIORS[prior].items())
  model = build.prior(
    common.load_config(f'prior:{prior}', *fields),
    {
      'codebook_size': _CODEBOOK_SIZE,
      'conditions': {'label': tuple(map(str, range(_NUM_CLASSES)))},
    },
  )
  labels = jnp.zeros(batch, jnp.int32)
  conditions = {'label': labels}
  codes = jnp.zeros((batch, grid, grid), jnp.int32)
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), codes[:1, :2, :2], {'label': labels[:1]}
  )
  apply = functools.partial(model.apply, train=False)

  if how == 'incremental':
    keys = randomness.image_keys(0, labels)
    return harness.timed(
      lambda: sampler.sample_codes(
        model, variables, conditions, keys, (grid, grid)
      ).block_until_ready(),
      calls,
    )
  if how == 'forward':
    forward = jax.jit(apply)
    return harness.timed(
      lambda: forward(variables, codes, conditions).block_until_ready(), calls
    )

  @jax.jit
  def sample_next(variables, codes, conditions, n):
    i, j = n // grid, n % grid
    logits = apply(variables, codes, conditions)[:, i, j]
    sampled = jax.random.categorical(jax.random.key(n), logits)
    return codes.at[:, i, j].set(sampled)

  def run():
    sampled = codes
    for n in range(RECOMPUTED):
      sampled = sample_next(variables, sampled, conditions, n)
    sampled.block_until_ready()

  first, seconds = harness.timed(run, calls=1)
  return first, seconds * grid**2 / RECOMPUTED


def measure(case: harness.Case, calls: int) -> dict[str, float]:
  """Measures the seconds for a batch of full grids, in this process."""
  how, prior, grid, batch = case
  if how == 'torch':
    first, seconds = _torch(prior, grid, batch)
  else:
    first, seconds = _jax(how, prior, grid, batch, calls)
  return {'first_seconds': first, 'seconds': seconds}


def _cases() -> list[harness.Case]:
  """Returns all cases: how, prior, side of the grid, batch size."""
  cases = [
    (how, 'gated_pixelcnn', grid, batch)
    for grid, batch in ((32, 16), (16, 1))
    for how in _HOW
  ]
  # Recomputing 32x32 codes with the transformer would take minutes per round.
  cases += [(how, 'transformer', 32, 16) for how in _HOW[2:]]
  cases += [(how, 'transformer', 16, 1) for how in _HOW[1:]]
  # Growth with the number of codes.
  cases += [
    ('incremental', prior, grid, 4) for prior in PRIORS for grid in (16, 32, 64)
  ]
  return cases


def _report(results: harness.Results) -> str:
  rows = []
  for case in results:
    how, prior, grid, batch = case
    seconds = harness.median(results, case)
    forward = ('forward', prior, grid, batch)
    rows.append(
      [
        prior,
        f'{grid}x{grid}',
        batch,
        how,
        seconds,
        batch / seconds,
        1e3 * seconds / grid**2,
        harness.ratio(results, forward, case),
        harness.of_first_round(results, case, 'first_seconds'),
      ]
    )
  header = ['prior', 'grid', 'batch', 'how', 's a batch', 'images/s']
  header += ['ms a code', 'of the forward pass', 'first call, s']
  lines = [common.table(header, rows), '']
  for grid, batch in ((32, 16), (16, 1)):
    for prior in ('gated_pixelcnn', 'transformer'):
      fast = ('incremental', prior, grid, batch)
      for how in ('torch', 'recompute'):
        slow = (how, prior, grid, batch)
        if fast in results and slow in results:
          lines.append(
            f'{prior} {grid}x{grid}, batch {batch}: incremental is '
            f'{harness.ratio(results, slow, fast):.0f} times as fast as {how}'
          )
  return '\n'.join(lines)


def main():
  """Measures all cases and prints a table."""
  args = harness.parser(__doc__).parse_args()
  harness.run(
    'experiments.benchmarks.sampling',
    args,
    _cases(),
    lambda case: measure(case, args.calls),
    _report,
  )


if __name__ == '__main__':
  main()
