"""The well-known VQ-VAE recipe in plain PyTorch: the baseline of the VQ-VAE.

```
pip install -c constraints.txt '.[bench]'
python -m experiments.benchmarks.torch_vqvae --data_dir=DATA --start=normal
```

The model has width 128, 2 residual layers of 32, D=64, EMA 0.99 with Laplace
smoothing, commitment 0.25 and Adam 1e-3, as in van den Oord et al. 2017,
Sonnet's example and its many ports to PyTorch: strided and transposed 4x4
convolutions, a codebook that starts from N(0, 1) or U(-1/K, 1/K), and nothing
more. It trains on the same batches as the package's default config (same
images, order and flips), and the same metrics are measured on the entire
validation split. It uses a GPU if there is one.

The program prints one JSON object: validation PSNR (of the MSE over all values,
outputs clipped to [0, 1]), codebook usage, perplexity, parameters, floating
point operations of one image's forward pass (a multiply-add counts as 2),
median seconds of a step, device and threads.
"""

import json
import statistics
import time
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils import flop_counter

from dermvq_jax.data import augment, pipeline, prepared
from experiments import common

_DECAY, _EPSILON, _COMMITMENT = 0.99, 1e-5, 0.25
STARTS = ('normal', 'uniform')


class ResidualLayer(nn.Module):
  """x + conv1x1(relu(conv3x3(relu(x)))); the recipe has no biases here."""

  def __init__(self, features: int, hidden: int, bias: bool = False):
    super().__init__()
    self.conv1 = nn.Conv2d(features, hidden, 3, padding=1, bias=bias)
    self.conv2 = nn.Conv2d(hidden, features, 1, bias=bias)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] -> the same shape."""
    return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class EmaCodebook(nn.Module):
  """Nearest codes; moving averages with Laplace smoothing (Appendix A.1)."""

  def __init__(self, codebook_size: int, code_dim: int, start: str):
    super().__init__()
    codes = torch.randn(codebook_size, code_dim)
    if start == 'uniform':
      codes = (2 * torch.rand_like(codes) - 1) / codebook_size
    self.register_buffer('codes', codes)
    self.register_buffer('counts', torch.zeros(codebook_size))
    self.register_buffer('sums', codes.clone())

  def forward(
    self, latents: torch.Tensor
  ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, D, h, w] -> quantized, codes [B, h, w], commitment loss."""
    rows = latents.permute(0, 2, 3, 1)  # [B, h, w, D]
    flat = rows.reshape(-1, rows.shape[-1])
    distances = self.codes.square().sum(1) - 2 * flat @ self.codes.T
    codes = distances.argmin(1)
    quantized = self.codes[codes].reshape(rows.shape)
    if self.training:
      self._update(flat.detach(), codes)
    loss = F.mse_loss(rows, quantized)
    quantized = rows + (quantized - rows).detach()
    return quantized.permute(0, 3, 1, 2), codes.reshape(rows.shape[:3]), loss

  @torch.no_grad()
  def _update(self, rows: torch.Tensor, codes: torch.Tensor):
    k = len(self.codes)
    counts = torch.bincount(codes, minlength=k).to(rows.dtype)
    sums = torch.zeros_like(self.sums).index_add_(0, codes, rows)
    self.counts.lerp_(counts, 1 - _DECAY)
    self.sums.lerp_(sums, 1 - _DECAY)
    total = self.counts.sum()
    smoothed = (self.counts + _EPSILON) / (total + k * _EPSILON) * total
    # The many ports store the smoothed counts; so does this one.
    self.counts.copy_(smoothed)
    self.codes.copy_(self.sums / smoothed[:, None])


class VQVAE(nn.Module):
  """Encoder, codebook and decoder."""

  def __init__(
    self,
    start: str,
    codebook_size: int = 512,
    code_dim: int = 64,
    features: int = 128,
    hidden: int = 32,
  ):
    super().__init__()
    half = features // 2
    self.encoder = nn.Sequential(
      nn.Conv2d(3, half, 4, stride=2, padding=1),
      nn.ReLU(),
      nn.Conv2d(half, features, 4, stride=2, padding=1),
      nn.ReLU(),
      nn.Conv2d(features, features, 3, padding=1),
      ResidualLayer(features, hidden),
      ResidualLayer(features, hidden),
      nn.ReLU(),
      nn.Conv2d(features, code_dim, 1),
    )
    self.codebook = EmaCodebook(codebook_size, code_dim, start)
    self.decoder = nn.Sequential(
      nn.Conv2d(code_dim, features, 3, padding=1),
      ResidualLayer(features, hidden),
      ResidualLayer(features, hidden),
      nn.ReLU(),
      nn.ConvTranspose2d(features, half, 4, stride=2, padding=1),
      nn.ReLU(),
      nn.ConvTranspose2d(half, 3, 4, stride=2, padding=1),
    )

  def forward(
    self, images: torch.Tensor
  ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, 3, H, W] around 0 -> reconstruction, codes, commitment loss."""
    quantized, codes, loss = self.codebook(self.encoder(images))
    return self.decoder(quantized), codes, loss


def to_tensor(
  images: np.ndarray, device: torch.device | str = 'cpu'
) -> torch.Tensor:
  """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-0.5, 0.5]."""
  x = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
  return x.float() / 255 - 0.5


def train(
  model: VQVAE, batches: Iterable[np.ndarray], variance: float
) -> list[float]:
  """Trains on uint8 batches; returns the seconds of each step."""
  optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
  seconds = []
  model.train()
  device = model.codebook.codes.device
  for images in batches:
    began = time.perf_counter()
    x = to_tensor(images, device)
    reconstruction, _, commitment = model(x)
    loss = F.mse_loss(reconstruction, x) / variance + _COMMITMENT * commitment
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()  # Waits for the device.
    seconds.append(time.perf_counter() - began)
  return seconds


@torch.no_grad()
def evaluate(model: VQVAE, batches: Iterable[np.ndarray]) -> dict[str, float]:
  """PSNR, codebook usage and perplexity over all uint8 batches."""
  model.eval()
  total, values = 0.0, 0
  counts = np.zeros(len(model.codebook.codes), np.int64)
  for images in batches:
    x = to_tensor(images, model.codebook.codes.device)
    reconstruction, codes, _ = model(x)
    error = (reconstruction.clamp(-0.5, 0.5) - x).double().square()
    total, values = total + error.sum().item(), values + error.numel()
    counts += np.bincount(codes.cpu().numpy().ravel(), minlength=len(counts))
  p = counts[counts > 0] / counts.sum()
  return {
    'psnr': float(-10 * np.log10(total / values)),
    'codebook_usage': float(np.mean(counts > 0)),
    'perplexity': float(np.exp(-np.sum(p * np.log(p)))),
  }


def forward_flops(model: VQVAE, size: int) -> int:
  """Floating point operations for one image of `size` px a side."""
  counter = flop_counter.FlopCounterMode(display=False)
  model.eval()
  with counter, torch.no_grad():
    model(torch.zeros(1, 3, size, size))
  return counter.get_total_flops()


def main():
  """Trains, evaluates and prints the result."""
  parser = common.parser(__doc__)
  parser.add_argument(
    '--data_dir', required=True, help='folder of prepared datasets'
  )
  parser.add_argument('--dataset', default=common.DATASETS['full'])
  parser.add_argument(
    '--start',
    choices=STARTS,
    default='normal',
    help='distribution of the initial codes (default: normal)',
  )
  parser.add_argument('--steps', type=int, default=3000)
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  images = prepared.Dataset(args.dataset, args.data_dir)
  torch.manual_seed(args.seed)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.backends.cudnn.allow_tf32 = False  # float32, as on a CPU
  model = VQVAE(args.start).to(device)
  stream = pipeline.train_batches(
    images.split('train'),
    batch_size=args.batch_size,
    seed=args.seed,
    keys=('image',),
    augment=augment.Augment(flips=True),
  )
  batches = (next(stream)['image'] for _ in range(args.steps))
  seconds = train(model, batches, images.facts['train_variance'])
  whole = (record['image'][None] for record in images.split('val'))
  result = vars(args) | evaluate(model, whole)
  result |= {
    'num_params': sum(p.numel() for p in model.parameters()),
    'flops': forward_flops(model.cpu(), images.facts['image_size']),
    'device': device,
    'seconds_per_step': statistics.median(seconds),
    'threads': torch.get_num_threads(),
  }
  print(json.dumps(result))


if __name__ == '__main__':
  main()
