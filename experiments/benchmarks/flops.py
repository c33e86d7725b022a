"""Floating point operations of the models' original operators, by formula.

A multiply-add counts as 2 operations. Operators count as they are defined:
convolutions (positions of the output, times kernel, times channels), matmuls
and the distances to all codes. A causal convolution counts only the part of its
kernel that is not masked; zeros around the grid count. Elementwise work,
biases, gathers and the optimiser do not count. If a backend computes an
operator in another way, its time changes, but not these numbers.

A training step computes each operator three times: forward, the gradient of its
input and the gradient of its kernel. It computes operators without a gradient
of the input twice, and operators without any gradient once.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Operator:
  """One operator, for one example.

  Attributes:
    forward: operations of the forward pass.
    passes: how often a training step computes the operator.
  """

  forward: int
  passes: int = 3


def conv(
  positions: int, taps: int, inputs: int, features: int, passes: int = 3
) -> Operator:
  """Returns a convolution; a matmul is one with a single tap.

  Args:
    positions: number of positions in the output.
    taps: number of weights for each pair of channels.
    inputs: number of input channels.
    features: number of output channels.
    passes: see `Operator`.
  """
  return Operator(2 * positions * taps * inputs * features, passes)


def vqvae(
  size: int,
  features: int = 128,
  residual_features: int = 32,
  num_residual_blocks: int = 2,
  codebook_size: int = 512,
  code_dim: int = 64,
) -> list[Operator]:
  """Returns the operators of a VQ-VAE that downsamples 4 times.

  Args:
    size: side of the images in pixels.
    features: width of the network.
    residual_features: width inside the residual blocks.
    num_residual_blocks: number of residual blocks in each half.
    codebook_size: K.
    code_dim: D.
  """
  half, grid = features // 2, (size // 4) ** 2
  block = [
    conv(grid, 9, features, residual_features),
    conv(grid, 1, residual_features, features),
  ]
  return [
    # Encoder; space-to-depth multiplies the channels by 4.
    conv(4 * grid, 9, 4 * 3, half, passes=2),
    conv(grid, 9, 4 * half, features),
    conv(grid, 9, features, features),
    *num_residual_blocks * block,
    conv(grid, 1, features, code_dim),
    # Distances.
    conv(grid, 1, code_dim, codebook_size, passes=1),
    # Decoder.
    conv(grid, 9, code_dim, features),
    *num_residual_blocks * block,
    conv(grid, 9, features, 4 * half),
    conv(4 * grid, 9, half, 4 * 3),
  ]


def gated_pixelcnn(
  grid: int,
  num_layers: int = 15,
  features: int = 64,
  kernel_size: int = 3,
  first_kernel_size: int = 7,
  head_features: int = 256,
  codebook_size: int = 512,
) -> list[Operator]:
  """Returns the operators of a Gated PixelCNN.

  Args:
    grid: side of the grid of codes.
    num_layers: number of layers.
    features: width of each stack.
    kernel_size: size of the kernels inside the layers.
    first_kernel_size: size of the first kernels.
    head_features: width of the hidden layer before the logits.
    codebook_size: K.
  """
  positions = grid**2
  first, reach = first_kernel_size // 2, kernel_size // 2
  layer = [
    conv(positions, (reach + 1) * kernel_size, features, 2 * features),
    conv(positions, reach + 1, features, 2 * features),
    conv(positions, 1, features, 2 * features),  # vertical to horizontal
    conv(positions, 1, features, 2 * features),  # residual and skip
  ]
  return [
    conv(positions, first * first_kernel_size, features, features),
    conv(positions, first, features, features),
    *num_layers * layer,
    conv(positions, 1, features, head_features),
    conv(positions, 1, head_features, codebook_size),
  ]


def of_forward(operators: list[Operator]) -> int:
  """Returns the operations of the forward pass of one example."""
  return sum(operator.forward for operator in operators)


def of_step(operators: list[Operator], batch: int) -> int:
  """Returns the operations of a training step."""
  return batch * sum(o.passes * o.forward for o in operators)
