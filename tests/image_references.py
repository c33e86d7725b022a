"""LPIPS and the power by octaves in NumPy, in float64, from their papers."""

import numpy as np

# The scaling layer of PerceptualSimilarity, for images in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188])
_SCALE = np.array([0.458, 0.448, 0.450])
# (stride, padding, side of the maximum pool before) of each convolution.
_ALEXNET = [(4, 2, 0), (1, 2, 3), (1, 1, 3), (1, 1, 0), (1, 1, 0)]
_VGG16_POOLS = [0, 0, 2, 0, 2, 0, 0, 2, 0, 0, 2, 0, 0]
_VGG16_FEATURES = [1, 3, 6, 9, 12]


def random_weights(widths, sizes):
  """Arrays of a network with few channels, like those of a file.

  Args:
    widths: number of channels before the first and after each convolution.
    sizes: side of each kernel; five for AlexNet, thirteen for VGG16, fewer for
      its first stages.
  """
  rng = np.random.default_rng(0)
  arrays = {}
  for i, (size, *shape) in enumerate(zip(sizes, widths, widths[1:])):
    kernel = rng.normal(size=(size, size, *shape))
    scale = np.sqrt(2 / (size**2 * shape[0]))
    arrays[f'conv_{i}/kernel'] = np.float32(scale * kernel)
    arrays[f'conv_{i}/bias'] = np.float32(rng.normal(size=shape[1]) / 2)
  chosen = range(5) if len(sizes) == 5 else _VGG16_FEATURES
  chosen = [conv for conv in chosen if conv < len(sizes)]
  for i, conv in enumerate(chosen):
    arrays[f'head_{i}'] = np.float32(rng.random(widths[conv + 1]))
  return arrays


def _windows(x, size, stride):
  """The windows of an image `[H, W, C]`: `[h, w, C, size, size]`."""
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))
  return windows[::stride, ::stride]


def conv(x, kernel, bias, stride, padding):
  """Strided convolution of `[H, W, C]` as a product of its windows."""
  x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
  windows = _windows(x, kernel.shape[0], stride)
  return np.tensordot(windows, kernel, ((3, 4, 2), (0, 1, 2))) + bias


def features(arrays, image):
  """The features of an image `[H, W, 3]` in [0, 1]."""
  number = sum(name.endswith('/kernel') for name in arrays)
  if number == 5:
    layers, chosen = _ALEXNET, range(5)
  else:
    layers = [(1, 1, pool) for pool in _VGG16_POOLS[:number]]
    chosen = _VGG16_FEATURES
  x = (2 * np.float64(image) - 1 - _SHIFT) / _SCALE
  found = []
  for i, (stride, padding, pool) in enumerate(layers):
    if pool:
      x = _windows(x, pool, 2).max((-2, -1))
    kernel, bias = (
      np.float64(arrays[f'conv_{i}/{kind}']) for kind in ('kernel', 'bias')
    )
    x = np.maximum(conv(x, kernel, bias, stride, padding), 0)
    if i in chosen:
      found.append(x)
  return found


def lpips(arrays, a, b):
  """Zhang et al. 2018, equation 1, of images `[B, H, W, 3]`: `[B]`."""
  distances = []
  for pair in zip(a, b):
    total = 0
    for i, (x, y) in enumerate(zip(*(features(arrays, p) for p in pair))):
      x, y = (
        f / (np.linalg.norm(f, axis=-1)[..., None] + 1e-10) for f in (x, y)
      )
      head = np.float64(arrays[f'head_{i}'])
      total += np.mean(((x - y) ** 2) @ head)
    distances.append(total)
  return np.array(distances)


def octave_powers(images, num_octaves=3):
  """The power of `[B, H, W, 3]` by octaves from all frequencies of `fft2`."""
  grey = np.float64(images).mean(-1)
  grey -= grey.mean((1, 2), keepdims=True)
  height, width = grey.shape[1:]
  rows, columns = (
    0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n)
    for n in (height, width)
  )
  window = rows[:, None] * columns
  power = np.abs(np.fft.fft2(grey * window)) ** 2
  power /= height * width * np.sum(window**2)
  y, x = np.meshgrid(
    np.fft.fftfreq(height), np.fft.fftfreq(width), indexing='ij'
  )
  radius = np.sqrt(y**2 + x**2)
  octaves = []
  for i in range(num_octaves):
    high = 0.5 / 2**i
    inside = (radius >= high / 2) & (radius < high)
    octaves.append(power[:, inside].sum(1))
  return np.stack(octaves, 1)
