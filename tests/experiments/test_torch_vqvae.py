"""The PyTorch baseline of the VQ-VAE is the well-known recipe."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from experiments.benchmarks import torch_vqvae  # noqa: E402


def _images(n=4, size=8):
  """Returns images of one colour each."""
  colours = np.random.default_rng(0).integers(0, 256, (n, 1, 1, 3), np.uint8)
  return np.tile(colours, (1, size, size, 1))


@pytest.mark.parametrize('start', torch_vqvae.STARTS)
def test_it_trains_and_is_measured(start):
  torch.manual_seed(0)
  model = torch_vqvae.VQVAE(start, codebook_size=16, code_dim=4, features=8)
  images = _images()
  before = torch_vqvae.evaluate(model, [images])
  seconds = torch_vqvae.train(model, [images] * 20, images.var() / 255**2)
  after = torch_vqvae.evaluate(model, [images[:1], images[1:]])
  assert len(seconds) == 20
  assert after['psnr'] > before['psnr'] + 0.2
  assert 1 / 16 <= after['codebook_usage'] <= 1
  assert 1 <= after['perplexity'] <= 16 * after['codebook_usage'] + 1e-6


def test_size():
  """Parameters and operations at 64 px, counted by hand."""
  model = torch_vqvae.VQVAE('normal')
  residual = 2 * (9 * 128 * 32 + 32 * 128)
  encoder = 48 * 64 + 64 + 16 * 64 * 128 + 128 + 9 * 128 * 128 + 128
  encoder += residual + 128 * 64 + 64
  decoder = 9 * 64 * 128 + 128 + residual
  decoder += 16 * 128 * 64 + 64 + 16 * 64 * 3 + 3
  assert sum(p.numel() for p in model.parameters()) == encoder + decoder
  grid = 16 * 16
  products = 4 * grid * 48 * 64 + grid * 16 * 64 * 128  # strided
  products += grid * (9 * 128 * 128 + residual + 128 * 64)
  products += grid * 64 * 512  # distances
  products += grid * (9 * 64 * 128 + residual + 16 * 128 * 64)
  products += 4 * grid * 16 * 64 * 3
  assert torch_vqvae.forward_flops(model, 64) == 2 * products


def test_one_codebook_update_against_numpy():
  torch.manual_seed(0)
  codebook = torch_vqvae.EmaCodebook(5, 3, 'normal')
  start = codebook.codes.numpy().copy()
  latents = torch.randn(2, 3, 4, 4)
  quantized, codes, loss = codebook(latents)
  rows = latents.permute(0, 2, 3, 1).numpy().reshape(-1, 3)
  nearest = np.square(rows[:, None] - start).sum(-1).argmin(1)
  np.testing.assert_array_equal(codes.numpy().ravel(), nearest)
  flat = quantized.permute(0, 2, 3, 1).reshape(-1, 3)
  np.testing.assert_allclose(flat, start[nearest], atol=1e-6)
  assert float(loss) == pytest.approx(
    np.square(rows - start[nearest]).mean(), rel=1e-5
  )
  one_hot = np.eye(5)[nearest]
  counts, sums = 0.01 * one_hot.sum(0), 0.99 * start + 0.01 * one_hot.T @ rows
  total = counts.sum()
  counts = (counts + 1e-5) / (total + 5e-5) * total
  np.testing.assert_allclose(codebook.counts, counts, rtol=1e-4)
  np.testing.assert_allclose(codebook.codes, sums / counts[:, None], rtol=1e-4)
