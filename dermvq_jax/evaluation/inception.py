"""Inception-v3 as the standard FID uses it, with weights from the user.

This is the network of Szegedy et al. 2016 with the weights that TensorFlow
released on 2015-12-05, in the form that all PyTorch ports of the FID use
(pt_inception-2015-12-05): average pools ignore their padding, and the last
block uses a maximum pool. Its features are the 2,048 outputs of the last pool.
"""

import functools
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax

from dermvq_jax import errors

_SIZE = 299  # pixels a side of the images that the network was trained on
_EPSILON = 1e-3  # in its batch normalisation
_SUFFIX = '.conv.weight'
# Turns the published file into one that can be read without running code.
CONVERT = (
  "python -c \"import numpy, torch; numpy.savez('inception.npz', **{k: "
  "v.numpy() for k, v in torch.load('pt_inception-2015-12-05-6726825d.pth', "
  'weights_only=True).items()})"'
)
Weights = dict[str, tuple[jax.Array, jax.Array]]


def load(path: epath.PathLike) -> Weights:
  """Reads weights from an .npz file; the command `CONVERT` makes one.

  Returns:
    For each convolution, by name, its kernel `[kh, kw, in, out]` and bias
    `[out]`, with its batch normalisation folded in.

  Raises:
    UserError: there is no such file, or it is not for this network.
  """
  path = epath.Path(path).expanduser()
  if not path.is_file() or path.suffix != '.npz':
    raise errors.UserError(
      f'{path} is not an .npz file of Inception-v3; make one from the '
      f'published weights with {CONVERT}'
    )
  try:
    with path.open('rb') as f, np.load(f, allow_pickle=False) as arrays:
      weights = _fold({k: np.float64(v) for k, v in arrays.items()})
    made = jax.eval_shape(
      apply, weights, jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    )
    if made.shape != (1, 2048):
      raise ValueError(f'{made.shape[1]} features instead of 2048')
  except (KeyError, ValueError, TypeError, OSError, zipfile.BadZipFile) as e:
    raise errors.UserError(
      f'{path} does not hold the weights of Inception-v3 '
      f'({errors.one_line(e)}); make it with {CONVERT}'
    ) from e
  return jax.device_put(weights)


def _fold(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
  """Kernels and biases, with the batch normalisation folded in."""
  weights = {}
  for key, kernel in arrays.items():
    name = key.removesuffix(_SUFFIX)
    if name == key:
      continue
    mean, variance = (
      arrays[f'{name}.bn.running_{kind}'] for kind in ('mean', 'var')
    )
    scale = arrays[f'{name}.bn.weight'] / np.sqrt(variance + _EPSILON)
    weights[name] = (
      np.float32(kernel.transpose(2, 3, 1, 0) * scale),
      np.float32(arrays[f'{name}.bn.bias'] - mean * scale),
    )
  return weights


def _pool(x: jax.Array, how: str, stride: int = 1) -> jax.Array:
  """A 3x3 pool by 'max' or 'mean'; padded only if the stride is 1."""
  args = (
    (1, 3, 3, 1),
    (1, stride, stride, 1),
    'SAME' if stride == 1 else 'VALID',
  )
  if how == 'max':
    return lax.reduce_window(x, -jnp.inf, lax.max, *args)
  total = lax.reduce_window(x, 0.0, lax.add, *args)
  # For one image and channel: XLA computes it at compile time.
  ones = jnp.ones((1, *x.shape[1:3], 1))
  return total / lax.reduce_window(ones, 0.0, lax.add, *args)


def _conv(
  weights: Weights, name: str, x: jax.Array, stride: int = 1, pad: bool = True
) -> jax.Array:
  kernel, bias = weights[name]
  y = lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    'SAME' if pad else 'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return jax.nn.relu(y + bias)


class _Block:
  """One block: chains of its convolutions, side by side."""

  def __init__(self, weights: Weights, name: str, x: jax.Array):
    self._weights, self._name, self.x = weights, name, x

  def chain(self, *names: str, x: jax.Array | None = None) -> jax.Array:
    """Applies convolutions in turn, to `x` or the block's input."""
    x = self.x if x is None else x
    for name in names:
      x = _conv(self._weights, f'{self._name}.{name}', x)
    return x

  def numbered(self, name: str, n: int) -> jax.Array:
    """Applies the chain `name_1` to `name_n`."""
    return self.chain(*(f'{name}_{i}' for i in range(1, n + 1)))

  def shrink(self, name: str, x: jax.Array) -> jax.Array:
    """Applies a convolution with stride 2."""
    return _conv(self._weights, f'{self._name}.{name}', x, 2, pad=False)

  def pool(self, how: str) -> jax.Array:
    """Applies a pool and the convolution that follows it."""
    return self.chain('branch_pool', x=_pool(self.x, how))


def _join(*branches: jax.Array) -> jax.Array:
  return jnp.concatenate(branches, axis=-1)


def _block_a(block: _Block) -> jax.Array:
  return _join(
    block.chain('branch1x1'),
    block.numbered('branch5x5', 2),
    block.numbered('branch3x3dbl', 3),
    block.pool('mean'),
  )


def _block_b(block: _Block) -> jax.Array:
  return _join(
    block.shrink('branch3x3', block.x),
    block.shrink('branch3x3dbl_3', block.numbered('branch3x3dbl', 2)),
    _pool(block.x, 'max', 2),
  )


def _block_c(block: _Block) -> jax.Array:
  return _join(
    block.chain('branch1x1'),
    block.numbered('branch7x7', 3),
    block.numbered('branch7x7dbl', 5),
    block.pool('mean'),
  )


def _block_d(block: _Block) -> jax.Array:
  return _join(
    block.shrink('branch3x3_2', block.numbered('branch3x3', 1)),
    block.shrink('branch7x7x3_4', block.numbered('branch7x7x3', 3)),
    _pool(block.x, 'max', 2),
  )


def _block_e(block: _Block, pool: str) -> jax.Array:
  single = block.numbered('branch3x3', 1)
  double = block.numbered('branch3x3dbl', 2)
  return _join(
    block.chain('branch1x1'),
    block.chain('branch3x3_2a', x=single),
    block.chain('branch3x3_2b', x=single),
    block.chain('branch3x3dbl_3a', x=double),
    block.chain('branch3x3dbl_3b', x=double),
    block.pool(pool),
  )


_BLOCKS = {
  'Mixed_5b': _block_a,
  'Mixed_5c': _block_a,
  'Mixed_5d': _block_a,
  'Mixed_6a': _block_b,
  'Mixed_6b': _block_c,
  'Mixed_6c': _block_c,
  'Mixed_6d': _block_c,
  'Mixed_6e': _block_c,
  'Mixed_7a': _block_d,
  'Mixed_7b': functools.partial(_block_e, pool='mean'),
  'Mixed_7c': functools.partial(_block_e, pool='max'),
}


def apply(weights: Weights, images: jax.Array) -> jax.Array:
  """Returns features float32 `[B, 2048]` of uint8 images `[B, H, W, 3]`."""
  x = images.astype(jnp.float32) / 255
  shape = (len(images), _SIZE, _SIZE, 3)
  # Like the ports: align pixel centres, without smoothing.
  x = 2 * jax.image.resize(x, shape, 'linear', antialias=False) - 1
  x = _conv(weights, 'Conv2d_1a_3x3', x, 2, pad=False)
  x = _conv(weights, 'Conv2d_2a_3x3', x, pad=False)
  x = _pool(_conv(weights, 'Conv2d_2b_3x3', x), 'max', 2)
  x = _conv(weights, 'Conv2d_3b_1x1', x)
  x = _pool(_conv(weights, 'Conv2d_4a_3x3', x, pad=False), 'max', 2)
  for name, block in _BLOCKS.items():
    x = block(_Block(weights, name, x))
  return x.mean((1, 2))
