"""The cases that are measured, and the bars that they must reach."""

from experiments.benchmarks import harness

CORES = 2
GEMM_SIZE = 2048
CODE_DIM, POSITIONS = 64, 32 * 32

HOW = ('jax', 'torch', 'torch_channels_last')
# (work, size, batch): lowest accepted speed, as a share of PyTorch's.
TRAINING = {
  ('vqvae', 64, 32): 0.8,
  ('vqvae', 128, 8): 0.8,
  ('prior', 16, 16): 0.9,
  ('prior', 32, 8): 0.9,
}
CODEBOOKS = (512, 8192)
INPUT = ((64, 32), (128, 8))
INPUT_WORK = ('records', 'step', 'constant')
LEAST_IMAGES, MOST_WAIT = 1000, 1.05
# title -> the cases of a growth, and the size that grows. Most of these cases
# are measured anyway.
GROWTH = {
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
MEMORY = [('codebook', how, 512, n) for how in HOW[:2] for n in (8, 32, 128)]


def all_cases() -> list[harness.Case]:
  """Returns all cases: work, how, size or K, batch.

  The batch of the codebook search is a number of grids.
  """
  cases = [('gemm', how, GEMM_SIZE, 1) for how in HOW[:2]]
  cases += [(w, how, *sizes) for w, *sizes in TRAINING for how in HOW]
  cases += [('codebook', how, k, 32) for k in CODEBOOKS for how in HOW[:2]]
  cases += MEMORY
  for sizes in INPUT:
    cases += [(f'input_{what}', 'jax', *sizes) for what in INPUT_WORK]
  cases += [case for growing, _ in GROWTH.values() for case in growing]
  return list(dict.fromkeys(cases))
