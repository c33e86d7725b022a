"""Photographs that come with scikit-image and scikit-learn."""

import functools
import pathlib

import numpy as np
import skimage
import sklearn
from PIL import Image

from dermvq_jax.data import images as images_lib

# Also pictures of a microscope, a telescope and the eye: no skin either.
_FILES = (
  *(
    pathlib.Path(skimage.__file__).parent / 'data' / name
    for name in (
      'astronaut.png',
      'brick.png',
      'camera.png',
      'cell.png',
      'chelsea.png',
      'clock_motion.png',
      'coffee.png',
      'coins.png',
      'grass.png',
      'gravel.png',
      'hubble_deep_field.jpg',
      'ihc.png',
      'moon.png',
      'motorcycle_left.png',
      'page.png',
      'retina.jpg',
      'rocket.jpg',
      'text.png',
    )
  ),
  *(
    pathlib.Path(sklearn.__file__).parent / 'datasets' / 'images' / name
    for name in ('china.jpg', 'flower.jpg')
  ),
)


@functools.cache
def _photographs() -> list[Image.Image]:
  return [Image.open(path).convert('RGB') for path in _FILES if path.exists()]


def photograph(rng: np.random.Generator, size: int) -> np.ndarray:
  """A random square of a random photograph, uint8 `[size, size, 3]`."""
  photographs = _photographs()
  chosen = photographs[rng.integers(len(photographs))]
  side = int(rng.uniform(0.5, 1) * min(chosen.size))
  left, top = (int(rng.integers(n - side + 1)) for n in chosen.size)
  square = chosen.crop((left, top, left + side, top + side))
  return images_lib.crop_and_resize(square, size)
