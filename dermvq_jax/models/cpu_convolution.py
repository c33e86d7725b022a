"""Convolution with stride 1, in the form that each backend runs fast.

XLA's CPU backend is slow at the gradient of a convolution with respect to its
kernel, and at some convolutions themselves. On a CPU this module uses matmuls
and Winograd's algorithm instead. All forms give the same values up to rounding;
the forms for the CPU have reverse-mode gradients only.
"""

import functools
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

_DIMENSION_NUMBERS = ('NHWC', 'HWIO', 'NHWC')


def _pad(x: Array, padding: Padding) -> Array:
  """Pads height and width with zeros; negative padding crops."""
  if all(amount == 0 for pair in padding for amount in pair):
    return x
  config = [(0, 0, 0), *((a, b, 0) for a, b in padding), (0, 0, 0)]
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def _xla_conv(x: Array, kernel: Array, padding: Padding) -> Array:
  return lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=_DIMENSION_NUMBERS
  )


def _transposed_padding(kernel: Array, padding: Padding) -> Padding:
  """Returns the padding of the transposed convolution (flipped kernel)."""
  return tuple(
    (size - 1 - before, size - 1 - after)
    for size, (before, after) in zip(kernel.shape, padding)
  )


def _shifts(x: Array, size: tuple[int, int], padding: Padding) -> Array:
  """Returns the window of every output position: [B*H*W, kh*kw*C]."""
  x = _pad(x, padding)
  kh, kw = size
  height, width = x.shape[1] - kh + 1, x.shape[2] - kw + 1
  shifts = [
    x[:, i : i + height, j : j + width] for i in range(kh) for j in range(kw)
  ]
  return jnp.concatenate(shifts, -1).reshape(-1, kh * kw * x.shape[3])


def _kernel_gradient(
  x: Array, kernel: Array, grad: Array, padding: Padding
) -> Array:
  """Returns the gradient of the kernel: one matmul over shifted copies.

  It copies the operand that has fewer channels.
  """
  kh, kw, inputs, features = size = kernel.shape
  flat_x, flat_grad = x.reshape(-1, inputs), grad.reshape(-1, features)
  if inputs <= features:
    return (_shifts(x, (kh, kw), padding).T @ flat_grad).reshape(size)
  back = _transposed_padding(kernel, padding)
  flipped = flat_x.T @ _shifts(grad, (kh, kw), back)
  flipped = flipped.reshape(inputs, kh, kw, features)
  return einops.rearrange(flipped, 'i h w o -> h w i o')[::-1, ::-1]


class _Winograd(NamedTuple):
  """Matrices of F(2, r), which computes two outputs of a kernel of size r."""

  input: np.ndarray
  kernel: np.ndarray
  output: np.ndarray


# For each kernel size r (Lavin and Gray 2016, section 4).
_WINOGRAD = {
  2: _Winograd(
    input=np.array([[1, -1, 0], [0, 1, 0], [0, -1, 1]]),
    kernel=np.array([[1, 0], [1, 1], [0, 1]]),
    output=np.array([[1, 1, 0], [0, 1, 1]]),
  ),
  3: _Winograd(
    input=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    kernel=np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    output=np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
  ),
}
_Tiles = list[list[Array]]


def _combine(matrix: np.ndarray, parts: list[Array]) -> list[Array]:
  """Returns matrix @ parts, for a small matrix with many zeros."""
  products = []
  for row in matrix.tolist():
    terms = [factor * part for factor, part in zip(row, parts) if factor]
    products.append(functools.reduce(jnp.add, terms))
  return products


def _transform(rows: np.ndarray, columns: np.ndarray, tiles: _Tiles) -> _Tiles:
  """Returns rows @ tiles @ columns.T, where tiles is a matrix of arrays."""
  by_column = [_combine(rows, list(column)) for column in zip(*tiles)]
  return [_combine(columns, list(row)) for row in zip(*by_column)]


def _tiles(x: Array, size: tuple[int, int]) -> _Tiles:
  """Cuts overlapping tiles, which begin at every second row and column.

  Args:
    x: [B, H, W, C].
    size: height and width of a tile.

  Returns:
    A matrix of that size. Its entry [i][j], an array [B, h, w, C], holds the
    pixel (i, j) of all h x w tiles.
  """
  height, width = (n - k + 1 for n, k in zip(x.shape[1:], size))
  return [
    [x[:, i : i + height : 2, j : j + width : 2] for j in range(size[1])]
    for i in range(size[0])
  ]


def _winograd_input(x: Array, kernel: Array, padding: Padding) -> _Tiles:
  """Returns the transformed tiles of the padded input."""
  kh, kw = kernel.shape[:2]
  (top, bottom), (left, right) = padding
  # A tile makes 2x2 outputs: pad height and width to even numbers.
  bottom += (x.shape[1] + top + bottom - kh + 1) % 2
  right += (x.shape[2] + left + right - kw + 1) % 2
  tiles = _tiles(_pad(x, ((top, bottom), (left, right))), (kh + 1, kw + 1))
  return _transform(_WINOGRAD[kh].input, _WINOGRAD[kw].input, tiles)


def _winograd_conv(x: Array, kernel: Array, padding: Padding) -> Array:
  """Convolution with 2.25 (3x3) or 2 (2x3) times fewer multiplications."""
  kh, kw, inputs, features = kernel.shape
  rows, columns = _WINOGRAD[kh], _WINOGRAD[kw]
  tiles = _winograd_input(x, kernel, padding)
  kernels = _transform(
    rows.kernel, columns.kernel, [list(row) for row in kernel]
  )
  grid = (*tiles[0][0].shape[:3], features)
  products = [
    [(a.reshape(-1, inputs) @ b).reshape(grid) for a, b in zip(*pair)]
    for pair in zip(tiles, kernels)
  ]
  outputs = _transform(rows.output, columns.output, products)
  y = jnp.concatenate([part for row in outputs for part in row], -1)
  height = x.shape[1] + sum(padding[0]) - kh + 1
  width = x.shape[2] + sum(padding[1]) - kw + 1
  y = einops.rearrange(y, 'b h w (i j c) -> b (h i) (w j) c', i=2, j=2)
  return y[:, :height, :width]


def _winograd_kernel_gradient(
  x: Array, kernel: Array, grad: Array, padding: Padding
) -> Array:
  """Like `_kernel_gradient`, by transposing `_winograd_conv`."""
  kh, kw, inputs, features = kernel.shape
  rows, columns = _WINOGRAD[kh], _WINOGRAD[kw]
  grad = _pad(grad, ((0, grad.shape[1] % 2), (0, grad.shape[2] % 2)))
  grads = _transform(rows.output.T, columns.output.T, _tiles(grad, (2, 2)))
  products = [
    [a.reshape(-1, inputs).T @ b.reshape(-1, features) for a, b in zip(*pair)]
    for pair in zip(_winograd_input(x, kernel, padding), grads)
  ]
  kernel_grad = _transform(rows.kernel.T, columns.kernel.T, products)
  return jnp.stack([jnp.stack(row) for row in kernel_grad])


def _winograd_pays(x: Array, kernel: Array, padding: Padding) -> bool:
  """Whether Winograd's form is faster than the others, by measurement."""
  return (
    all(k in _WINOGRAD for k in kernel.shape[:2])
    and kernel.shape[:2] != (2, 2)
    and min(kernel.shape[2:]) >= 64
    and min(x.shape[1:3]) >= 8
    and all(n >= 0 for pair in padding for n in pair)
    and x.dtype.itemsize >= 4  # 16 bits are too few for sums of tiles
  )


def _cpu_forward(x: Array, kernel: Array, padding: Padding) -> Array:
  """Convolves in the fastest of three forms, by measurement."""
  kh, kw, inputs, features = kernel.shape
  height = x.shape[1] + sum(padding[0]) - kh + 1
  width = x.shape[2] + sum(padding[1]) - kw + 1
  if _winograd_pays(x, kernel, padding):
    return _winograd_conv(x, kernel, padding)
  # A matmul is fastest if its copies are small compared to its output.
  if (kh, kw) == (1, 1) or kh * kw * inputs <= 4 * features:
    y = _shifts(x, (kh, kw), padding) @ kernel.reshape(-1, features)
    return y.reshape(x.shape[0], height, width, features)
  # XLA:CPU is slow with negative padding. Cropping the output afterwards is
  # faster; cropping the input beforehand is not.
  (top, bottom), (left, right) = padding
  outside = tuple((max(a, 0), max(b, 0)) for a, b in padding)
  y = _xla_conv(x, kernel, outside)
  top, left = max(-top, 0), max(-left, 0)
  return y[:, top : top + height, left : left + width]


_cpu_conv = jax.custom_vjp(_cpu_forward, nondiff_argnums=(2,))


def _cpu_conv_forward(x, kernel, padding):
  return _cpu_forward(x, kernel, padding), (x, kernel)


def _cpu_conv_backward(padding, residuals, grad):
  x, kernel = residuals
  back = _transposed_padding(kernel, padding)
  flipped = einops.rearrange(kernel[::-1, ::-1], 'h w i o -> h w o i')
  # With several devices Winograd's form would exchange all its products between
  # them instead of the gradient.
  winograd = _winograd_pays(x, kernel, padding) and jax.device_count() == 1
  gradient = _winograd_kernel_gradient if winograd else _kernel_gradient
  return (
    _cpu_forward(grad, flipped, back),
    gradient(x, kernel, grad, padding),
  )


_cpu_conv.defvjp(_cpu_conv_forward, _cpu_conv_backward)


def conv(
  x: Array, kernel: Array, padding: Padding, *, cpu: bool | None = None
) -> Array:
  """Convolution with stride 1.

  Args:
    x: [B, H, W, C].
    kernel: [kh, kw, C, features]; if kh or kw is 0, the output is zero.
    padding: ((top, bottom), (left, right)) zeros; negative amounts crop.
    cpu: whether to use the forms for the CPU; None: if that is the default
      backend.

  Returns:
    [B, H + top + bottom - kh + 1, W + left + right - kw + 1, features].
  """
  padding = tuple(tuple(pair) for pair in padding)
  kh, kw, inputs, features = kernel.shape
  height = x.shape[1] + sum(padding[0]) - kh + 1
  width = x.shape[2] + sum(padding[1]) - kw + 1
  if 0 in kernel.shape:
    return jnp.zeros((x.shape[0], height, width, features), x.dtype)
  if (height, width) == (1, 1):  # one position, as in sampling: a matmul
    flat = _pad(x, padding).reshape(x.shape[0], kh * kw * inputs)
    y = flat @ kernel.reshape(kh * kw * inputs, features)
    return y[:, None, None]
  if cpu is None:
    cpu = jax.default_backend() == 'cpu'
  if cpu:
    return _cpu_conv(x, kernel, padding)
  if (kh, kw) == (1, 1):
    return _pad(x, padding) @ kernel[0, 0]
  return _xla_conv(x, kernel, padding)
