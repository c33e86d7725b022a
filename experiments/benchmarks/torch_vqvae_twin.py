"""The package's VQ-VAE in plain PyTorch: the baseline of its training step.

It has the same layers and parameters as `dermvq_jax.models.vqvae` with the
`ema` quantizer, written as is usual in PyTorch. It does not restart unused
codes, which saves some work. (`torch_vqvae` is the recipe from the literature.)
"""

import numpy as np
import torch
from torch import nn

from experiments.benchmarks import torch_vqvae

_DECAY, _MIN_COUNT = 0.99, 1e-6


class EmaCodebook(torch_vqvae.EmaCodebook):
  """Codes are ratios of averages that start at zero, without smoothing."""

  def __init__(self, codebook_size: int, code_dim: int):
    super().__init__(codebook_size, code_dim, 'normal')
    self.sums.zero_()

  @torch.no_grad()
  def _update(self, rows: torch.Tensor, codes: torch.Tensor):
    counts = torch.bincount(codes, minlength=len(self.codes)).to(rows.dtype)
    sums = torch.zeros_like(self.sums).index_add_(0, codes, rows)
    self.counts.lerp_(counts, 1 - _DECAY)
    self.sums.lerp_(sums, 1 - _DECAY)
    means = self.sums / self.counts.clamp(min=_MIN_COUNT)[:, None]
    used = (self.counts > _MIN_COUNT)[:, None]
    self.codes.copy_(torch.where(used, means, self.codes))


class VQVAE(torch_vqvae.VQVAE):
  """Encoder, codebook and decoder, 4 times downsampling."""

  def __init__(
    self,
    codebook_size: int = 512,
    code_dim: int = 64,
    features: int = 128,
    hidden: int = 32,
  ):
    nn.Module.__init__(self)  # Only the forward pass is inherited.
    half = features // 2

    def conv3(inputs: int, outputs: int) -> nn.Conv2d:
      return nn.Conv2d(inputs, outputs, 3, padding=1)

    def residual() -> nn.Module:
      return torch_vqvae.ResidualLayer(features, hidden, bias=True)

    self.encoder = nn.Sequential(
      nn.PixelUnshuffle(2),
      conv3(4 * 3, half),
      nn.ReLU(),
      nn.PixelUnshuffle(2),
      conv3(4 * half, features),
      nn.ReLU(),
      conv3(features, features),
      residual(),
      residual(),
      nn.ReLU(),
      nn.Conv2d(features, code_dim, 1),
    )
    self.codebook = EmaCodebook(codebook_size, code_dim)
    self.decoder = nn.Sequential(
      conv3(code_dim, features),
      residual(),
      residual(),
      nn.ReLU(),
      conv3(features, 4 * half),
      nn.PixelShuffle(2),
      nn.ReLU(),
      conv3(half, 4 * 3),
      nn.PixelShuffle(2),
    )


def _take(
  conv: nn.Conv2d, tree: dict, *, unshuffled: bool = False, shuffled=False
):
  """Copies the parameters of one convolution.

  Space-to-depth makes channels from 2x2 pixels and the channels of each. The
  pixel is the outer index in the package and the inner index in PyTorch.

  Args:
    conv: the convolution that gets the parameters.
    tree: its `kernel` and `bias` in Flax.
    unshuffled: whether space-to-depth made its input channels.
    shuffled: whether depth-to-space reads its output channels.
  """
  kernel, bias = np.asarray(tree['kernel']), np.asarray(tree['bias'])

  def inner(array: np.ndarray, axis: int) -> np.ndarray:
    shape = array.shape
    blocks = array.reshape(*shape[:axis], 4, -1, *shape[axis + 1 :])
    return blocks.swapaxes(axis, axis + 1).reshape(shape)

  if unshuffled:
    kernel = inner(kernel, 2)
  if shuffled:
    kernel, bias = inner(kernel, 3), inner(bias, 0)
  conv.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
  conv.bias.copy_(torch.from_numpy(bias.copy()))


@torch.no_grad()
def load_flax(model: VQVAE, params: dict, model_state: dict) -> VQVAE:
  """Copies parameters and codebook of the Flax VQ-VAE; returns the model."""
  for part in ('encoder', 'decoder'):
    tree, layers = params[part], [*getattr(model, part), None]
    convs = blocks = 0
    for n, layer in enumerate(layers):
      if isinstance(layer, nn.Conv2d):
        _take(
          layer,
          tree[f'Conv_{convs}'],
          unshuffled=isinstance(layers[n - 1], nn.PixelUnshuffle),
          shuffled=isinstance(layers[n + 1], nn.PixelShuffle),
        )
        convs += 1
      elif isinstance(layer, torch_vqvae.ResidualLayer):
        block = tree[f'ResidualBlock_{blocks}']
        _take(layer.conv1, block['Conv_0'])
        _take(layer.conv2, block['Conv_1'])
        blocks += 1
  codebook = np.asarray(model_state['codebook']['quantizer']['codebook'])
  model.codebook.codes.copy_(torch.from_numpy(codebook.copy()))
  return model
