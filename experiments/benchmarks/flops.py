"""Floating point operations of the models' original operators, by formula.

A multiply-add counts 2. Counted is what the operators are defined as: a
convolution by the positions of its output, its kernel and its channels (causal
ones by the part of the kernel that sees anything; the zeros around the grid
count), a matmul, the distances to all codes. Not counted: elementwise work,
biases, gathers, the optimizer. Whatever else a backend makes of them (copies,
other algorithms) changes the time and not these numbers.

A training step computes each operator three times: forward, the gradient for
its input and the gradient for its kernel; twice where its input needs no
gradient, once where nothing does.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Operator:
  """One operator, of one example.

  Attributes:
    forward: operations of the forward pass.
    passes: of a training step.
  """

  forward: int
  passes: int = 3


def conv(
  positions: int, taps: int, inputs: int, features: int, passes: int = 3
) -> Operator:
  """A convolution with `taps` weights a pair of channels; a matmul has 1."""
  return Operator(2 * positions * taps * inputs * features, passes)


def vqvae(
  size: int,
  features: int = 128,
  residual_features: int = 32,
  num_residual_blocks: int = 2,
  codebook_size: int = 512,
  code_dim: int = 64,
) -> list[Operator]:
  """Of images `size` px a side, 4 times downsampled."""
  half, grid = features // 2, (size // 4) ** 2
  block = [
    conv(grid, 9, features, residual_features),
    conv(grid, 1, residual_features, features),
  ]
  return [
    # Encoder; space-to-depth makes 4 times the channels.
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
  """Of codes [grid, grid]."""
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
  """Operations of one example's forward pass."""
  return sum(operator.forward for operator in operators)


def of_step(operators: list[Operator], batch: int) -> int:
  """Operations of a training step."""
  return batch * sum(o.passes * o.forward for o in operators)
