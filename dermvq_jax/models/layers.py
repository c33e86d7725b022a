"""Layers that the models share: convolutions, and pixels as channels.

Convolutions have stride 1 and run in the form that suits the backend; see
`cpu_convolution`.
"""

import functools
from collections.abc import Callable

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax import errors
from dermvq_jax.models import cpu_convolution

Array = jax.Array
Padding = cpu_convolution.Padding
Initializer = Callable[..., Array]

default_kernel_init = nn.initializers.lecun_normal()


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def space_to_depth(x: Array, factor: int) -> Array:
  """[B, H, W, C] -> [B, H/f, W/f, f*f*C]: each f x f block becomes channels."""
  if jax.default_backend() == 'cpu':
    # XLA:CPU would repeat a transposition in every operation that reads it.
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


class Conv(nn.Module):
  """Convolution with stride 1 and a bias.

  Attributes:
    features: number of output channels.
    kernel_size: (height, width).
    padding: 'SAME', 'VALID' or ((top, bottom), (left, right)).
    use_bias: whether a bias is added.
    dtype: dtype of the computation; parameters are float32.
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
      return ((0, 0), (0, 0))
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
  """Convolves x with a compact module's parameters `kernel` and `bias`."""
  kernel_init = module.kernel_init
  if 0 in shape:  # variance scaling would divide by a fan-in of 0
    kernel_init = nn.initializers.zeros_init()
  kernel = module.param('kernel', kernel_init, shape, jnp.float32)
  bias = None
  if module.use_bias:
    zeros = nn.initializers.zeros_init()
    bias = module.param('bias', zeros, shape[-1:], jnp.float32)
  x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=module.dtype)
  y = cpu_convolution.conv(x, kernel, padding)
  return y if bias is None else y + bias


def check_causal_size(name: str, size: int) -> None:
  """Raises UserError unless a prior's kernel has a valid size.

  Args:
    name: the field of the prior.
    size: its value; a kernel smaller than 3 sees no neighbours.
  """
  if size < 3 or size % 2 == 0:
    raise errors.UserError(
      f'config.prior.{name} is {size}; it must be odd and at least 3'
    )


class VerticalConv(nn.Module):
  """Causal convolution over the rows above, in full width.

  The output at (i, j) sees the rows i - k//2 .. i (or .. i - 1 without
  `include_self`) and the columns j - k//2 .. j + k//2. This is the vertical
  stack of van den Oord et al. 2016b, section 2.2. The kernel has only the rows
  that are seen.

  Attributes:
    features: number of output channels.
    kernel_size: k, odd; the kernel is the upper part of a k x k kernel.
    include_self: whether the output of row i sees row i.
    use_bias: whether a bias is added.
    dtype: dtype of the computation; parameters are float32.
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
      x: [B, h, w, C]. With `has_context` it begins with the rows above; one
        output row needs k//2 rows of `x` (one more with `include_self`).
      has_context: whether `x` contains the rows above; otherwise they are zero.

    Returns:
      [B, h, w, features]; with `has_context` only the rows whose context is
      complete.
    """
    reach = self.kernel_size // 2
    rows = reach + self.include_self
    shape = (rows, self.kernel_size, x.shape[-1], self.features)
    vertical = (0, 0) if has_context else (reach, self.include_self - 1)
    return _conv_and_bias(self, x, shape, (vertical, (reach, reach)))


class HorizontalConv(nn.Module):
  """Causal convolution over the columns to the left, in one row.

  The output at (i, j) sees the columns j - k//2 .. j (or .. j - 1 without
  `include_self`) of row i. This is the horizontal stack of van den Oord et al.
  2016b, section 2.2. The attributes are those of `VerticalConv`.
  """

  features: int
  kernel_size: int = 3
  include_self: bool = True
  use_bias: bool = True
  dtype: jnp.dtype | None = None
  kernel_init: Initializer = default_kernel_init

  @nn.compact
  def __call__(self, x: Array, *, has_context: bool = False) -> Array:
    """Convolves like `VerticalConv`, with columns in place of rows."""
    reach = self.kernel_size // 2
    columns = reach + self.include_self
    shape = (1, columns, x.shape[-1], self.features)
    horizontal = (0, 0) if has_context else (reach, self.include_self - 1)
    return _conv_and_bias(self, x, shape, ((0, 0), horizontal))


class MaskedConv(nn.Module):
  """Convolution masked in raster order: van den Oord et al. 2016a, figure 2.

  The output at (i, j) sees the k x k positions around it, as far as they come
  before it in raster order. With `include_self` (mask B; otherwise mask A) it
  also sees position (i, j). The output is the sum of a convolution over the
  rows above, `above`, and one over the columns to the left, `left`, so the
  masked half of the kernel has no parameters and no cost. The attributes are
  those of `VerticalConv`.
  """

  features: int
  kernel_size: int = 3
  include_self: bool = True
  use_bias: bool = True
  dtype: jnp.dtype | None = None
  kernel_init: Initializer = default_kernel_init

  def setup(self):
    """Makes the two parts, which can also be called separately."""
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
