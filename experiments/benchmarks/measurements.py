"""The measurements; each runs in a separate process."""

import math
import time
from collections.abc import Sequence

import numpy as np

from experiments.benchmarks import cases as suite
from experiments.benchmarks import harness, steps

_INPUT_BATCHES = 16  # for each of --calls
# Number of steps between the first epoch and the timed steps; they use up all
# batches that were made ahead. Then the number of timed steps for each of
# --calls.
_STEPS_BEFORE, _INPUT_STEPS = 8, 4
_DATASET = 'synthetic_dermoscopy'


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
  side = math.isqrt(suite.POSITIONS)
  latents = rng.normal(size=(batch, side, side, suite.CODE_DIM)).astype(
    np.float32
  )
  codebook = rng.normal(size=(k, suite.CODE_DIM)).astype(np.float32)
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

    flat = torch.from_numpy(latents).reshape(-1, suite.CODE_DIM)
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


def measure(case: harness.Case, data_dir: str, calls: int) -> dict[str, float]:
  """Measures one case, in this process."""
  work, how, size, batch = case
  harness.limit_cores(1 if work == 'input_records' else suite.CORES)
  if how.startswith('torch'):
    import torch

    torch.set_num_threads(suite.CORES)
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


def prepare(cases: Sequence[harness.Case], data_dir: str):
  """Prepares the datasets that the cases read."""
  sizes = {case[2] for case in cases if case[0].startswith('input_')}
  for size in sorted(sizes):
    from dermvq_jax.data import prepare

    prepare.run(f'{_DATASET}/{size}', data_dir)
