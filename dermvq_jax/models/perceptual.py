"""LPIPS: how different two images look to a network (Zhang et al. 2018).

Both images pass through a network that was trained on photographs. The
distance is the weighted squared difference of their features, at up to five
depths.
"""

import dataclasses
import functools
import pathlib
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax

from dermvq_jax import errors
from dermvq_jax.models import cpu_convolution, layers

Array = jax.Array

# The weights that the package ships; weights/README.md says where from.
ALEXNET = pathlib.Path(__file__).parent / 'weights' / 'lpips_alexnet.npz'
# The statistics of ImageNet, for images in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_FIRST_STRIDE = 4  # of AlexNet's first convolution
_EPSILON = 1e-10
# AlexNet halves images of this size to features of at least one place.
MIN_SIZE = 31


class _Layer(NamedTuple):
  """One convolution of a network.

  Attributes:
    pool: side of the maximum pool before it, with stride 2; 0: none.
    is_feature: whether its output is one of the features.
  """

  pool: int
  is_feature: bool


_ALEXNET_LAYERS = [_Layer(p, True) for p in (0, 3, 3, 0, 0)]
_VGG16_LAYERS = [
  _Layer(2 if first and stage else 0, last)
  for stage, size in enumerate((2, 2, 3, 3, 3))
  for first, last in [(i == 0, i == size - 1) for i in range(size)]
]
# By the number of convolutions, which tells a file's network. A file may hold
# the first stages of VGG16 alone: they see fine texture, and cost less.
_NETWORKS = {5: ('alexnet', _ALEXNET_LAYERS)} | {
  number: ('vgg16', _VGG16_LAYERS[:number]) for number in (4, 7, 10, 13)
}


class Network(NamedTuple):
  """A network with the heads of LPIPS.

  Attributes:
    name: 'alexnet' or 'vgg16'.
    convs: kernel `[k, k, C, C']` and bias `[C']` of each convolution.
    heads: weights of the squared differences of each feature, `[C]`; as many
      as there are features.
  """

  name: str
  convs: tuple[tuple[np.ndarray, np.ndarray], ...]
  heads: tuple[np.ndarray, ...]


def load(path: epath.PathLike = ALEXNET) -> Network:
  """Reads a network's weights.

  Args:
    path: an .npz file from experiments/lpips_weights.py; by default AlexNet,
      which comes with the package.

  Raises:
    UserError: the file is missing, or does not hold such weights.
  """
  path = epath.Path(path).expanduser()
  try:
    with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
      return _network({k: np.float32(v) for k, v in arrays.items()})
  except (
    KeyError,
    ValueError,
    TypeError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
  ) as e:
    raise errors.UserError(
      f'{path} does not hold the weights of LPIPS ({errors.one_line(e)}); make '
      'it with experiments/lpips_weights.py'
    ) from e


@functools.cache
def _cached(path: str) -> Network:
  return load(path or ALEXNET)


@dataclasses.dataclass(frozen=True)
class View:
  """How a network sees images.

  Attributes:
    weights: an .npz file of `load`; '': AlexNet, which comes with the package.
    crop: side of the square that it sees of each image, in pixels; 0: all.
  """

  weights: str = ''
  crop: int = 0

  def load(self) -> Network:
    """Returns the network, which is read once.

    Raises:
      UserError: as in `load`.
    """
    return _cached(self.weights)

  def cut(self, rng: Array | None, *images: Array) -> tuple[Array, ...]:
    """Cuts the same random square from all images.

    Args:
      rng: random key; None: nothing is cut.
      *images: arrays `[B, H, W, 3]` of the same shape.

    Returns:
      Arrays `[B, crop, crop, 3]`.
    """
    if rng is None or not self.crop:
      return images
    number, *size, channels = images[0].shape
    limits = np.array(size) - self.crop + 1
    offset = jax.random.randint(rng, (2,), 0, limits)
    shape = (number, self.crop, self.crop, channels)
    return tuple(lax.dynamic_slice(x, (0, *offset, 0), shape) for x in images)


def _network(arrays: Mapping[str, np.ndarray]) -> Network:
  number = sum(name.endswith('/kernel') for name in arrays)
  if number not in _NETWORKS:
    raise ValueError(f'{number} convolutions')
  name, network = _NETWORKS[number]
  convs = [
    (arrays[f'conv_{i}/kernel'], arrays[f'conv_{i}/bias'])
    for i in range(number)
  ]
  widths = [
    kernel.shape[-1]
    for (kernel, _), layer in zip(convs, network)
    if layer.is_feature
  ]
  heads = [arrays[f'head_{i}'] for i in range(len(widths))]
  if [head.shape for head in heads] != [(width,) for width in widths]:
    raise ValueError('the heads do not fit the convolutions')
  if name == 'alexnet':
    convs[0] = _as_stride_1(convs[0][0]), convs[0][1]
  return Network(name, tuple(convs), tuple(heads))


def _as_stride_1(kernel: np.ndarray) -> np.ndarray:
  """AlexNet's first kernel, 11x11 with stride 4, after `space_to_depth`."""
  size = -(-kernel.shape[0] // _FIRST_STRIDE) * _FIRST_STRIDE
  # One more row and column of zeros, after the others.
  padded = np.zeros((size, size, *kernel.shape[2:]), kernel.dtype)
  padded[: kernel.shape[0], : kernel.shape[1]] = kernel
  blocks = padded.reshape(
    size // _FIRST_STRIDE,
    _FIRST_STRIDE,
    size // _FIRST_STRIDE,
    _FIRST_STRIDE,
    *kernel.shape[2:],
  )
  blocks = blocks.transpose(0, 2, 1, 3, 4, 5)
  return blocks.reshape(*blocks.shape[:2], -1, kernel.shape[-1])


def _max_pool(x: Array, size: int) -> Array:
  window, strides = (1, size, size, 1), (1, 2, 2, 1)
  return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, 'VALID')


def _first_blocks(x: Array) -> Array:
  """Pads images as AlexNet does, and turns blocks of 4x4 pixels to channels."""
  height, width = x.shape[1:3]

  def pad(size: int) -> tuple[int, int]:
    # The network pads 2; the rest is filled up for the last whole window.
    places = (size + 4 - 11) // _FIRST_STRIDE + 1
    return 2, (places + 2) * _FIRST_STRIDE - size - 2

  (top, bottom), (left, right) = pad(height), pad(width)
  config = [(0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)]
  return layers.space_to_depth(
    lax.pad(x, jnp.zeros((), x.dtype), config), _FIRST_STRIDE
  )


def features(network: Network, images: Array) -> list[Array]:
  """Returns the features of images, five or fewer.

  Args:
    network: the network.
    images: `[B, H, W, 3]` in [0, 1]; H and W at least `MIN_SIZE`.

  Returns:
    Arrays `[B, h, w, C]`, from the highest resolution down.
  """
  x = (images - _MEAN) / _STD
  _, structure = _NETWORKS[len(network.convs)]
  found = []
  for i, (layer, (kernel, bias)) in enumerate(zip(structure, network.convs)):
    if layer.pool:
      x = _max_pool(x, layer.pool)
    if i == 0 and network.name == 'alexnet':
      x, padding = _first_blocks(x), ((0, 0), (0, 0))
    else:
      reach = kernel.shape[0] // 2
      padding = ((reach, reach), (reach, reach))
    x = cpu_convolution.conv(x, jnp.asarray(kernel), padding) + bias
    x = jax.nn.relu(x)
    if layer.is_feature:
      found.append(x)
  return found


def normalised(x: Array) -> Array:
  """Divides features `[..., C]` by their length at each place."""
  squares = jnp.sum(x * x, axis=-1, keepdims=True)
  # The root has no gradient at 0, where all features are 0.
  safe = jnp.where(squares > 0, squares, 1)
  length = jnp.where(squares > 0, jnp.sqrt(safe), 0)
  return x / (length + _EPSILON)


def lpips(network: Network, a: Array, b: Array) -> Array:
  """The distance of images: Zhang et al. 2018, equation 1.

  Args:
    network: the network.
    a: `[B, H, W, 3]` in [0, 1].
    b: the same shape.

  Returns:
    `[B]`, 0 if the images are the same.
  """
  total = 0
  for head, x, y in zip(
    network.heads, features(network, a), features(network, b)
  ):
    difference = jnp.square(normalised(x) - normalised(y))
    total += (difference @ head).mean((1, 2))
  return total
