"""The Gated PixelCNN in plain PyTorch: the baseline of the benchmarks.

It has the same layers and parameters as
`dermvq_jax.models.priors.gated_pixelcnn`, written as is usual in PyTorch:
padding makes convolutions causal, `nn.Conv2d` computes them, and each sampled
code takes a forward pass over the entire grid.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

_NUM_WAVES = 4


class CausalConv(nn.Module):
  """A convolution over the rows above (k x k) or the columns left (1 x k)."""

  def __init__(
    self,
    inputs: int,
    features: int,
    kernel_size: int,
    *,
    vertical: bool,
    include_self: bool = True,
    bias: bool = True,
  ):
    super().__init__()
    reach = kernel_size // 2
    seen = reach + include_self
    self.conv = nn.Conv2d(
      inputs,
      features,
      (seen, kernel_size) if vertical else (1, seen),
      bias=bias,
    )
    past = (reach, include_self - 1)
    # F.pad takes left, right, top, bottom; negative amounts crop.
    self.padding = (reach, reach, *past) if vertical else (*past, 0, 0)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] -> [B, features, h, w]."""
    return self.conv(F.pad(x, self.padding))


def gate(x: torch.Tensor) -> torch.Tensor:
  """[B, 2F, h, w] -> [B, F, h, w]."""
  content, gate = x.chunk(2, dim=1)
  return torch.tanh(content) * torch.sigmoid(gate)


class GatedLayer(nn.Module):
  """One layer of both stacks."""

  def __init__(self, features: int, num_labels: int, kernel_size: int):
    super().__init__()
    doubled = 2 * features
    self.vertical_conv = CausalConv(
      features, doubled, kernel_size, vertical=True
    )
    self.horizontal_conv = CausalConv(
      features, doubled, kernel_size, vertical=False, bias=False
    )
    self.vertical_to_horizontal = nn.Conv2d(doubled // 2, doubled, 1)
    self.output = nn.Conv2d(features, doubled, 1)
    self.condition_bias = nn.Embedding(num_labels, 2 * doubled)

  def forward(self, vertical, horizontal, labels):
    """Returns both stacks and the skip connection, [B, F, h, w] each."""
    biases = self.condition_bias(labels)[:, :, None, None].chunk(2, dim=1)
    vertical = vertical + gate(self.vertical_conv(vertical) + biases[0])
    above = self.vertical_to_horizontal(vertical) + biases[1]
    out = self.output(gate(self.horizontal_conv(horizontal) + above))
    residual, skip = out.chunk(2, dim=1)
    return vertical, horizontal + residual, skip


def waves(n: int) -> torch.Tensor:
  """[n, 2 * _NUM_WAVES], as in the Flax model."""
  place = (torch.arange(n) + 0.5) / n
  angles = math.pi * place[:, None] * torch.arange(1, _NUM_WAVES + 1)
  return torch.cat([angles.sin(), angles.cos()], dim=1)


class GatedPixelCNN(nn.Module):
  """Gated PixelCNN with the same fields as the Flax model."""

  def __init__(
    self,
    codebook_size: int,
    num_classes: int,
    num_layers: int = 15,
    features: int = 64,
    kernel_size: int = 3,
    first_kernel_size: int = 7,
    head_features: int = 256,
  ):
    super().__init__()
    self.embedding = nn.Embedding(codebook_size, features)
    self.position = nn.Linear(4 * _NUM_WAVES, features, bias=False)
    stem = dict(include_self=False)
    self.vertical_stem = CausalConv(
      features, features, first_kernel_size, vertical=True, **stem
    )
    self.horizontal_stem = CausalConv(
      features, features, first_kernel_size, vertical=False, **stem
    )
    self.layers = nn.ModuleList(
      GatedLayer(features, num_classes + 1, kernel_size)
      for _ in range(num_layers)
    )
    self.hidden = nn.Conv2d(features, head_features, 1)
    self.logits = nn.Conv2d(head_features, codebook_size, 1)

  def forward(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """int64 [B, h, w] and [B] -> logits [B, K, h, w]."""
    x = self.embedding(codes).permute(0, 3, 1, 2)
    height, width = codes.shape[1:]
    rows = waves(height)[:, None].expand(-1, width, -1)
    columns = waves(width)[None].expand(height, -1, -1)
    places = self.position(torch.cat([rows, columns], dim=-1))
    places = places.permute(2, 0, 1)
    vertical = self.vertical_stem(x) + places
    horizontal = self.horizontal_stem(x) + places
    skips = 0
    for layer in self.layers:
      vertical, horizontal, skip = layer(vertical, horizontal, labels)
      skips = skips + skip
    return self.logits(F.relu(self.hidden(F.relu(skips))))

  @torch.no_grad()
  def sample(self, labels: torch.Tensor, grid: tuple[int, int], limit: int):
    """Samples the first `limit` codes of each grid, int64 [B, h, w]."""
    codes = torch.zeros(len(labels), *grid, dtype=torch.int64)
    for n in range(limit):
      i, j = divmod(n, grid[1])
      probabilities = self(codes, labels)[:, :, i, j].softmax(dim=1)
      codes[:, i, j] = torch.multinomial(probabilities, 1)[:, 0]
    return codes


def load_flax(model: GatedPixelCNN, params: dict) -> GatedPixelCNN:
  """Copies the parameters of the Flax prior into a model; returns the model."""

  def tensor(leaf, axes=None):
    array = np.asarray(leaf, np.float32)
    return torch.from_numpy(array if axes is None else array.transpose(axes))

  def take(module, tree):
    if isinstance(module, CausalConv):
      module = module.conv
    if isinstance(module, nn.Embedding):
      tree = tree.get('label', tree)  # Biases are stored by condition.
      module.weight.copy_(tensor(tree['embedding']))
      return
    axes = (3, 2, 0, 1) if isinstance(module, nn.Conv2d) else (1, 0)
    module.weight.copy_(tensor(tree['kernel'], axes))
    if module.bias is not None:
      module.bias.copy_(tensor(tree['bias']))

  with torch.no_grad():
    for name, module in model.named_children():
      if name == 'layers':
        for n, layer in enumerate(module):
          for part, inner in layer.named_children():
            take(inner, params[f'layers_{n}'][part])
      else:
        take(module, params[name])
  return model
