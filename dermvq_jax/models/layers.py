"""Building blocks that every model shares, in the form each backend runs fast.

XLA's CPU backend is slow at convolutions' gradients for the kernel, at strided
convolutions and at scatters written as matmuls; TPU and GPU are the other way
round. Which form runs is chosen here and nowhere else, by
`jax.default_backend()`; every function gives the same values in each form, up
to rounding. Those with forms of their own have reverse-mode gradients only.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dermvq_jax import errors

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]
Initializer = Callable[..., Array]

_DIMENSION_NUMBERS = ('NHWC', 'HWIO', 'NHWC')
_NO_PADDING = ((0, 0), (0, 0))

default_kernel_init = nn.initializers.lecun_normal()


def _on_cpu() -> bool:
  return jax.default_backend() == 'cpu'


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def space_to_depth(x: Array, factor: int) -> Array:
  """[B, H, W, C] -> [B, H/f, W/f, f*f*C]: each f x f block becomes channels."""
  if _on_cpu():
    # A transposition would be made again in everything that reads it.
    places = [(i, j) for i in range(factor) for j in range(factor)]
    return jnp.concatenate([x[:, i::factor, j::factor] for i, j in places], -1)
  return einops.rearrange(
    x, 'b (h i) (w j) c -> b h w (i j c)', i=factor, j=factor
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def depth_to_space(x: Array, factor: int) -> Array:
  """[B, h, w, f*f*C] -> [B, h*f, w*f, C]: the inverse of `space_to_depth`."""
  return einops.rearrange(
    x, 'b h w (i j c) -> b (h i) (w j) c', i=factor, j=factor
  )


space_to_depth.defvjp(
  lambda x, factor: (space_to_depth(x, factor), None),
  lambda factor, _, grad: (depth_to_space(grad, factor),),
)
depth_to_space.defvjp(
  lambda x, factor: (depth_to_space(x, factor), None),
  lambda factor, _, grad: (space_to_depth(grad, factor),),
)


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
  """The padding with which the flipped kernel maps the output's grid back."""
  return tuple(
    (size - 1 - before, size - 1 - after)
    for size, (before, after) in zip(kernel.shape, padding)
  )


def _shifts(x: Array, size: tuple[int, int], padding: Padding) -> Array:
  """What each position of a kernel sees: [B*H*W, kh*kw*C]."""
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
  """The gradient for the kernel: one matmul over shifted copies.

  The operand with fewer channels is the one that is copied.
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
  """The matrices of F(2, r): two outputs of a kernel of size r at once."""

  input: np.ndarray
  kernel: np.ndarray
  output: np.ndarray


# By r; Lavin and Gray 2016, section 4.
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
  """The product of a small matrix of many zeros with a vector of arrays."""
  found = []
  for row in matrix.tolist():
    terms = [factor * part for factor, part in zip(row, parts) if factor]
    found.append(functools.reduce(jnp.add, terms))
  return found


def _transform(rows: np.ndarray, columns: np.ndarray, tiles: _Tiles) -> _Tiles:
  """The product rows @ tiles @ columns.T, tiles being a matrix of arrays."""
  by_column = [_combine(rows, list(column)) for column in zip(*tiles)]
  return [_combine(columns, list(row)) for row in zip(*by_column)]


def _tiles(x: Array, size: tuple[int, int]) -> _Tiles:
  """The places of tiles that begin at every second row and column.

  Args:
    x: [B, H, W, C].
    size: of a tile.

  Returns:
    `size` arrays [B, h, w, C], h and w being the numbers of tiles.
  """
  height, width = (n - k + 1 for n, k in zip(x.shape[1:], size))
  return [
    [x[:, i : i + height : 2, j : j + width : 2] for j in range(size[1])]
    for i in range(size[0])
  ]


def _winograd_input(x: Array, kernel: Array, padding: Padding) -> _Tiles:
  """The transformed tiles, which cover every output."""
  kh, kw = kernel.shape[:2]
  (top, bottom), (left, right) = padding
  bottom += (x.shape[1] + top + bottom - kh + 1) % 2
  right += (x.shape[2] + left + right - kw + 1) % 2
  tiles = _tiles(_pad(x, ((top, bottom), (left, right))), (kh + 1, kw + 1))
  return _transform(_WINOGRAD[kh].input, _WINOGRAD[kw].input, tiles)


def _winograd_conv(x: Array, kernel: Array, padding: Padding) -> Array:
  """Convolution with 2.25 times fewer products (3x3), or half of them (2x3)."""
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
  return depth_to_space(y, 2)[:, :height, :width]


def _winograd_kernel_gradient(
  x: Array, kernel: Array, grad: Array, padding: Padding
) -> Array:
  """As `_kernel_gradient`: `_winograd_conv` transposed."""
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
  """Whether fewer products save more than the transforms cost; measured."""
  return (
    all(k in _WINOGRAD for k in kernel.shape[:2])
    and kernel.shape[:2] != (2, 2)
    and min(kernel.shape[2:]) >= 64
    and min(x.shape[1:3]) >= 8
    and all(n >= 0 for pair in padding for n in pair)
    and x.dtype.itemsize >= 4  # Sums of tiles need more digits than 16 bits.
  )


def _on_one_device() -> bool:
  """Else devices would exchange all products, not the gradient they make."""
  return jax.device_count() == 1


def _flipped(kernel: Array) -> Array:
  """The kernel of the gradient for the input."""
  return einops.rearrange(kernel[::-1, ::-1], 'h w i o -> h w o i')


def _cpu_forward(x: Array, kernel: Array, padding: Padding) -> Array:
  """The fastest of three forms; which one is measured."""
  kh, kw, inputs, features = kernel.shape
  height = x.shape[1] + sum(padding[0]) - kh + 1
  width = x.shape[2] + sum(padding[1]) - kw + 1
  if _winograd_pays(x, kernel, padding):
    return _winograd_conv(x, kernel, padding)
  # A matmul where there are few copies for the output, or none.
  if (kh, kw) == (1, 1) or kh * kw * inputs <= 4 * features:
    y = _shifts(x, (kh, kw), padding) @ kernel.reshape(-1, features)
    return y.reshape(x.shape[0], height, width, features)
  # XLA:CPU is slow where padding is negative: what is too much is cut off.
  # (It stays slow with an input cropped before.)
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
  winograd = _winograd_pays(x, kernel, padding) and _on_one_device()
  gradient = _winograd_kernel_gradient if winograd else _kernel_gradient
  return (
    _cpu_forward(grad, _flipped(kernel), back),
    gradient(x, kernel, grad, padding),
  )


_cpu_conv.defvjp(_cpu_conv_forward, _cpu_conv_backward)


def conv(
  x: Array, kernel: Array, padding: Padding, *, cpu: bool | None = None
) -> Array:
  """Convolution with stride 1.

  Args:
    x: [B, H, W, C].
    kernel: [kh, kw, C, features]; kh or kw may be 0, which gives zeros.
    padding: ((top, bottom), (left, right)) zeros; negative amounts crop.
    cpu: whether to use the forms for the CPU; by default, whether it is the
      default backend. Reverse-mode gradients only, then.

  Returns:
    [B, H + top + bottom - kh + 1, W + left + right - kw + 1, features].
  """
  padding = tuple(tuple(pair) for pair in padding)
  kh, kw, inputs, features = kernel.shape
  height = x.shape[1] + sum(padding[0]) - kh + 1
  width = x.shape[2] + sum(padding[1]) - kw + 1
  if 0 in kernel.shape:
    return jnp.zeros((x.shape[0], height, width, features), x.dtype)
  if (height, width) == (1, 1):  # One position, as when sampling: a matmul.
    flat = _pad(x, padding).reshape(x.shape[0], kh * kw * inputs)
    y = flat @ kernel.reshape(kh * kw * inputs, features)
    return y[:, None, None]
  if _on_cpu() if cpu is None else cpu:
    return _cpu_conv(x, kernel, padding)
  if (kh, kw) == (1, 1):
    return _pad(x, padding) @ kernel[0, 0]
  return _xla_conv(x, kernel, padding)


class Conv(nn.Module):
  """Convolution with stride 1 and a bias.

  Attributes:
    features: number of output channels.
    kernel_size: (height, width).
    padding: 'SAME', 'VALID' or ((top, bottom), (left, right)).
    use_bias: whether a bias is added.
    dtype: of the computation; parameters are float32.
    kernel_init: initializer of the kernel.
  """

  features: int
  kernel_size: tuple[int, int] = (3, 3)
  padding: str | Padding = 'SAME'
  use_bias: bool = True
  dtype: jnp.dtype | None = None
  kernel_init: Initializer = default_kernel_init

  def _padding(self) -> Padding:
    if self.padding == 'VALID':
      return _NO_PADDING
    if self.padding == 'SAME':
      return tuple(((k - 1) // 2, k // 2) for k in self.kernel_size)
    return self.padding

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, H, W, C] -> [B, H', W', features]."""
    shape = (*self.kernel_size, x.shape[-1], self.features)
    return _conv_and_bias(self, x, shape, self._padding())


def _conv_and_bias(
  module: nn.Module, x: Array, shape: tuple[int, ...], padding: Padding
) -> Array:
  """Convolves with parameters `kernel` and `bias` of a compact module."""
  kernel_init = module.kernel_init
  if 0 in shape:  # Variance scaling divides by the fan-in.
    kernel_init = nn.initializers.zeros_init()
  kernel = module.param('kernel', kernel_init, shape, jnp.float32)
  bias = None
  if module.use_bias:
    zeros = nn.initializers.zeros_init()
    bias = module.param('bias', zeros, shape[-1:], jnp.float32)
  x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=module.dtype)
  y = conv(x, kernel, padding)
  return y if bias is None else y + bias


def check_causal_size(name: str, size: int) -> None:
  """Raises UserError unless a causal kernel of this size is symmetric.

  Args:
    name: of the field of the prior.
    size: of its kernel; less than 3 sees no neighbours.
  """
  if size < 3 or size % 2 == 0:
    raise errors.UserError(
      f'config.prior.{name} is {size}; it must be odd, from 3 up'
    )


class VerticalConv(nn.Module):
  """Causal convolution over the rows above, in full width.

  The output at (i, j) sees the rows i - k//2 .. i (or .. i - 1 without
  `include_self`), columns j - k//2 .. j + k//2: the vertical stack of van den
  Oord et al. 2016b, section 2.2. The kernel holds only the rows that are seen.

  Attributes:
    features: number of output channels.
    kernel_size: odd k of the k x k kernel this is the upper part of.
    include_self: whether row i is seen by the output of row i.
    use_bias: whether a bias is added.
    dtype: of the computation; parameters are float32.
    kernel_init: initializer of the kernel.
  """

  features: int
  kernel_size: int = 3
  include_self: bool = True
  use_bias: bool = True
  dtype: jnp.dtype | None = None
  kernel_init: Initializer = default_kernel_init

  @nn.compact
  def __call__(self, x: Array, *, has_context: bool = False) -> Array:
    """Convolves.

    Args:
      x: [B, h, w, C]; with `has_context` every row that the output needs,
        k//2 (+ 1 with `include_self`) for one row.
      has_context: whether the rows above are part of `x` instead of zeros.

    Returns:
      [B, h, w, features], or the rows with a full context.
    """
    reach = self.kernel_size // 2
    rows = reach + self.include_self
    shape = (rows, self.kernel_size, x.shape[-1], self.features)
    vertical = (0, 0) if has_context else (reach, self.include_self - 1)
    return _conv_and_bias(self, x, shape, (vertical, (reach, reach)))


class HorizontalConv(nn.Module):
  """Causal convolution over the columns to the left, in one row.

  The output at (i, j) sees the columns j - k//2 .. j (or .. j - 1 without
  `include_self`) of row i: the horizontal stack of van den Oord et al. 2016b,
  section 2.2. Attributes as those of `VerticalConv`.
  """

  features: int
  kernel_size: int = 3
  include_self: bool = True
  use_bias: bool = True
  dtype: jnp.dtype | None = None
  kernel_init: Initializer = default_kernel_init

  @nn.compact
  def __call__(self, x: Array, *, has_context: bool = False) -> Array:
    """Convolves; as `VerticalConv`, with columns for rows."""
    reach = self.kernel_size // 2
    columns = reach + self.include_self
    shape = (1, columns, x.shape[-1], self.features)
    horizontal = (0, 0) if has_context else (reach, self.include_self - 1)
    return _conv_and_bias(self, x, shape, ((0, 0), horizontal))


class MaskedConv(nn.Module):
  """Convolution masked in raster order: van den Oord et al. 2016a, figure 2.

  The output at (i, j) sees k x k positions around it that come before it in
  raster order, and itself with `include_self` (mask B; without, mask A). It
  is the sum of `above`, over the rows above, and of `left`, over the columns
  to the left, so the masked half of the kernel neither exists nor costs
  anything. Attributes as those of `VerticalConv`.
  """

  features: int
  kernel_size: int = 3
  include_self: bool = True
  use_bias: bool = True
  dtype: jnp.dtype | None = None
  kernel_init: Initializer = default_kernel_init

  def setup(self):
    """Makes both parts, which can be called apart."""
    self.above = VerticalConv(
      self.features,
      self.kernel_size,
      include_self=False,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=self.kernel_init,
    )
    self.left = HorizontalConv(
      self.features,
      self.kernel_size,
      include_self=self.include_self,
      use_bias=self.use_bias,
      dtype=self.dtype,
      kernel_init=self.kernel_init,
    )

  def __call__(self, x: Array) -> Array:
    """[B, h, w, C] -> [B, h, w, features]."""
    return self.above(x) + self.left(x)


class CodeEmbedding(nn.Module):
  """Embeds codes, and turns features into logits of codes.

  Attributes:
    codebook_size: K.
    features: width F of the embedding.
    tied: whether the logits are products with the embedding itself (Press and
      Wolf 2017), F wide then, instead of having a matrix of their own.
    dtype: of the computation; parameters and logits are float32.
  """

  codebook_size: int
  features: int
  tied: bool = False
  dtype: jnp.dtype | None = None

  def setup(self):
    """Makes the embedding and what the logits need."""
    # A tied embedding is small for the logits and scaled up where it is read.
    scale = self.features**-0.5 if self.tied else 1.0
    self.embedding = nn.Embed(
      self.codebook_size,
      self.features,
      embedding_init=nn.initializers.normal(scale),
      dtype=self.dtype,
    )
    if self.tied:
      zeros = nn.initializers.zeros_init()
      self.bias = self.param('bias', zeros, (self.codebook_size,), jnp.float32)
    else:
      self.output = nn.Dense(self.codebook_size, dtype=self.dtype)

  def __call__(self, codes: Array) -> Array:
    """Codes, int [...] -> [..., F]."""
    x = self.embedding(codes)
    return x * self.features**0.5 if self.tied else x

  def logits(self, x: Array) -> Array:
    """[..., C] -> [..., K], float32 also where dtype is less."""
    if self.tied:
      return self.embedding.attend(x) + self.bias
    y = self.output(x)
    return y.astype(jnp.promote_types(y.dtype, jnp.float32))


def previous_in_raster(x: Array) -> Array:
  """Moves [B, h, w, C] on by one position in raster order; zeros come first."""
  flat = einops.rearrange(x, 'b h w c -> b (h w) c')
  flat = jnp.pad(flat, ((0, 0), (1, 0), (0, 0)))[:, :-1]
  return flat.reshape(x.shape)


# Size of a block of distances: larger ones leave a CPU's cache.
_BLOCK_BYTES = 2**20


def _block_size(batch: int, positions: int, codebook_size: int) -> int:
  """How many positions of every image make a block of distances."""
  most = max(1, _BLOCK_BYTES // (4 * batch * codebook_size))
  return max(c for c in range(1, most + 1) if positions % c == 0)


def position_blocks(latents: Array, codebook_size: int) -> Array:
  """Cuts grids into blocks whose distances to all codes are of bounded size.

  Never along the batch, which may be sharded. A block is at least one position
  of every image, and blocks are equally long.

  Args:
    latents: [B, h, w, D].
    codebook_size: K.

  Returns:
    [n, B, c, D], n * c = h * w, in raster order.
  """
  batch, height, width, _ = latents.shape
  positions = height * width
  size = _block_size(batch, positions, codebook_size)
  return einops.rearrange(
    latents.reshape(batch, positions, -1), 'b (n c) d -> n b c d', c=size
  )


def squared_distances(latents: Array, codebook: Array) -> Array:
  """To every code, less |z|^2, which is the same for all: [..., D] -> [..., K].

  Args:
    latents: [..., D].
    codebook: [K, D].
  """
  products = jnp.einsum(
    '...d,kd->...k', latents, codebook, precision=lax.Precision.HIGHEST
  )
  return jnp.sum(codebook**2, axis=-1) - 2 * products


def argmax(x: Array) -> Array:
  """Index of the first of the largest: [..., K] -> int32 [...]."""
  # XLA:CPU's argmax is a slow loop; a maximum and a minimum are not.
  most = x.max(axis=-1, keepdims=True)
  last = x.shape[-1] - 1  # Also where there is what is not a number.
  indices = jnp.arange(last + 1, dtype=jnp.int32)
  return jnp.where(x == most, indices, last).min(axis=-1)


def _least(distances: Array) -> tuple[Array, Array]:
  """[..., K] -> the least, and the index of the first such: [...] each."""
  return distances.min(axis=-1), argmax(-distances)


def nearest_codes(latents: Array, codebook: Array) -> Array:
  """Index of the nearest code of each latent, in Euclidean distance.

  In blocks of positions, and of codes where one position of every image has
  too many distances already: those of all latents to all codes never exist at
  once. Right up to the rounding of float32: where two codes are as near up to
  1e-6 of |z|^2 + |e|^2, either may be found.

  Args:
    latents: [B, h, w, D].
    codebook: [K, D].

  Returns:
    int32 [B, h, w]; the lowest index where codes are equally near.
  """
  dtype = jnp.promote_types(
    jnp.promote_types(latents.dtype, codebook.dtype), jnp.float32
  )
  latents, codebook = latents.astype(dtype), codebook.astype(dtype)
  batch, size = latents.shape[0], codebook.shape[0]
  most = max(1, _BLOCK_BYTES // (4 * batch))  # codes a block
  if size <= most:

    def nearest(block: Array) -> Array:  # [B, c, D] -> [B, c]
      return _least(squared_distances(block, codebook))[1]

  else:
    parts = -(-size // most)
    most = -(-size // parts)
    # Repeated codes at the end come second to themselves.
    padded = jnp.pad(codebook, ((0, parts * most - size), (0, 0)), mode='edge')
    codebooks = padded.reshape(parts, most, -1)
    firsts = most * jnp.arange(parts, dtype=jnp.int32)

    def nearest(block: Array) -> Array:
      def nearer(best, part):
        least, code = _least(squared_distances(block, part[0]))
        closer = least < best[0]
        code = jnp.where(closer, part[1] + code, best[1])
        return (jnp.where(closer, least, best[0]), code), None

      shape = block.shape[:2]
      start = (
        jnp.full(shape, jnp.inf, dtype),
        jnp.full(shape, size - 1, jnp.int32),
      )
      return lax.scan(nearer, start, (codebooks, firsts))[0][1]

  flat = einops.rearrange(latents, 'b h w d -> b (h w) d')
  positions = flat.shape[1]
  length = _block_size(batch, positions, min(size, most))

  def nearest_from(start: Array) -> Array:  # Not cut before: a copy less.
    return nearest(lax.dynamic_slice_in_dim(flat, start, length, axis=1))

  codes = lax.map(nearest_from, jnp.arange(0, positions, length))
  codes = einops.rearrange(codes, 'n b c -> b (n c)')
  return codes.reshape(latents.shape[:3])


def code_sums(
  latents: Array, codes: Array, codebook_size: int, *, cpu: bool | None = None
) -> tuple[Array, Array]:
  """How many latents each code has, and their sum.

  Args:
    latents: [N, D].
    codes: int [N].
    codebook_size: K.
    cpu: whether to use the form for the CPU; by default, whether it is the
      default backend.

  Returns:
    Counts [K] and sums [K, D], in the dtype of the latents.
  """
  if _on_cpu() if cpu is None else cpu:
    ones = jnp.ones(codes.shape, latents.dtype)
    return (
      jax.ops.segment_sum(ones, codes, codebook_size),
      jax.ops.segment_sum(latents, codes, codebook_size),
    )
  one_hot = jax.nn.one_hot(codes, codebook_size, dtype=latents.dtype)  # [N, K]
  sums = jnp.einsum(
    'nk,nd->kd', one_hot, latents, precision=lax.Precision.HIGHEST
  )
  return one_hot.sum(axis=0), sums
