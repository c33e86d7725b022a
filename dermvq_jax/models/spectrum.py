"""How much detail images have: their power by octaves of frequency.

Squared error and PSNR hardly see whether fine texture is there; this does.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

NUM_OCTAVES = 3


def octave_names() -> list[str]:
  """Names the octaves by their limits in cycles per pixel, finest first."""
  return [f'1/{4 << i} to 1/{2 << i}' for i in range(NUM_OCTAVES)]


def _bands(height: int, width: int) -> np.ndarray:
  """Which frequency of `rfft2` is in which octave: float32 [octaves, h, w]."""
  rows = np.fft.fftfreq(height)[:, None]
  columns = np.fft.rfftfreq(width)[None]
  radius = np.hypot(rows, columns)
  # A column of `rfft2` stands for two of `fft2`, but for the first and, if the
  # width is even, the last.
  weights = np.full(radius.shape, 2.0)
  weights[:, 0] = 1
  if width % 2 == 0:
    weights[:, -1] = 1
  limits = [0.5 / 2**i for i in range(NUM_OCTAVES + 1)]
  bands = [
    weights * ((low <= radius) & (radius < high))
    for high, low in zip(limits, limits[1:])
  ]
  return np.float32(bands)


def octave_powers(images: Array) -> Array:
  """The power of grey images in each octave.

  Args:
    images: `[B, H, W, 3]`.

  Returns:
    float32 `[B, NUM_OCTAVES]`, the finest octave first; the mean is taken away
    and a Hann window hides the borders.
  """
  height, width = images.shape[1:3]
  grey = images.astype(jnp.float32).mean(-1)
  grey -= grey.mean((1, 2), keepdims=True)
  window = np.outer(_hann(height), _hann(width)).astype(np.float32)
  power = _power(grey * window)
  total = jnp.einsum('bhw,ohw->bo', power, _bands(height, width))
  return total / (height * width * float((window**2).sum()))


def _power(images: Array) -> Array:
  """The squared absolute values of `jnp.fft.rfft2`: `[B, H, W]` to `[B, H, w]`.

  As products of matrices: devices would exchange all images for an FFT.
  """
  height, width = images.shape[1:]
  multiply = functools.partial(jnp.einsum, precision='highest')
  cosines, sines = _waves(width, width // 2 + 1)
  even = multiply('bhw,wk->bhk', images, cosines)
  odd = multiply('bhw,wk->bhk', images, sines)
  cosines, sines = _waves(height, height)
  real = multiply('bhk,hl->blk', even, cosines)
  real -= multiply('bhk,hl->blk', odd, sines)
  imaginary = multiply('bhk,hl->blk', even, sines)
  imaginary += multiply('bhk,hl->blk', odd, cosines)
  return real**2 + imaginary**2


def _waves(size: int, number: int) -> tuple[np.ndarray, np.ndarray]:
  """The cosine and sine waves of a Fourier transform, `[size, number]` each."""
  # Whole turns are taken away first, in integers.
  turns = np.outer(np.arange(size), np.arange(number)) % size / size
  waves = np.exp(2j * math.pi * turns)
  return np.float32(waves.real), np.float32(waves.imag)


def _hann(size: int) -> np.ndarray:
  """The Hann window without the zeros at its ends."""
  return np.sin(math.pi * (np.arange(size) + 0.5) / size) ** 2
