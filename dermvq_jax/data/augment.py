"""Augmentations of uint8 images, in NumPy, for grain's `random_map`.

Coarse cut-out and RGB shift are the same as `CoarseDropout` and `RGBShift` in
Albumentations 2.0.8 (Buslaev et al. 2020).
"""

import dataclasses

import grain
import numpy as np

from dermvq_jax import errors

CLEAN, AUGMENTED = 'clean', 'augmented'


NUM_SYMMETRIES = 8


def symmetry(images: np.ndarray, number: int) -> np.ndarray:
  """Applies one of the square's eight symmetries to `[..., H, W, C]`.

  Args:
    images: the images.
    number: 0 changes nothing; 1 to 3 are quarter turns to the left; 4 to 7 are
      mirror images of 0 to 3.
  """
  images = np.rot90(images, k=number % 4, axes=(-3, -2))
  return images[..., ::-1, :] if number >= 4 else images


def flip_and_turn(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Applies one of the eight symmetries to `[H, W, C]`, at random."""
  turns = rng.integers(4)
  return symmetry(image, turns + 4 * rng.integers(2))


def coarse_cutout(
  image: np.ndarray,
  rng: np.random.Generator,
  max_holes: int,
  min_side: float,
  max_side: float,
) -> np.ndarray:
  """Blackens 1 to `max_holes` boxes, each entirely inside the image.

  Args:
    image: `[H, W, C]`.
    rng: random generator.
    max_holes: maximum number of boxes.
    min_side: minimum side of a box, as a share of the image's side.
    max_side: maximum side of a box, as a share of the image's side.

  Returns:
    A changed copy of the image.
  """
  image = image.copy()
  size = np.array(image.shape[:2])
  for _ in range(rng.integers(1, max_holes + 1)):
    sides = np.maximum(
      1, (rng.uniform(min_side, max_side, 2) * size).astype(int)
    )
    top, left = rng.integers(0, size - sides + 1)
    image[top : top + sides[0], left : left + sides[1]] = 0
  return image


def rgb_shift(
  image: np.ndarray, rng: np.random.Generator, limit: int
) -> np.ndarray:
  """Shifts each channel by a uniform number in +-`limit` (of 255) and clips."""
  shift = rng.uniform(-limit, limit, size=image.shape[-1])
  return np.clip(np.rint(image + shift), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Augment(grain.transforms.RandomMap):
  """Augments `record['image']`; records without an image stay as they are.

  Attributes:
    flips: whether to apply a random flip and quarter turn.
    rgb_shift_probability: probability that the colours are shifted.
    rgb_shift_limit: maximum shift of a channel (of 255).
    cutout_probability: probability that boxes are cut out.
    cutout_max_holes: maximum number of boxes.
    cutout_min_side: minimum side of a box, as a share of the image's side.
    cutout_max_side: maximum side of a box, as a share of the image's side.
    cutout_target: 'clean' adds `record['target']`, the image before the
      cut-out, so the model learns to fill the boxes; with 'augmented' there is
      no such field, so the model learns to reproduce the boxes.

  Raises:
    UserError: a value is out of range.
  """

  flips: bool = False
  rgb_shift_probability: float = 0.0
  rgb_shift_limit: int = 20
  cutout_probability: float = 0.0
  cutout_max_holes: int = 2
  cutout_min_side: float = 0.1
  cutout_max_side: float = 0.2
  cutout_target: str = CLEAN

  def __post_init__(self):
    """Raises UserError for values that would fail late or silently."""
    if self.cutout_target not in (CLEAN, AUGMENTED):
      raise errors.UserError(
        f'config.augment.cutout_target is {self.cutout_target!r}; it must be '
        f'{CLEAN!r} or {AUGMENTED!r}'
      )
    is_valid = {
      'rgb_shift_probability': 0 <= self.rgb_shift_probability <= 1,
      'rgb_shift_limit': 0 <= self.rgb_shift_limit <= 255,
      'cutout_probability': 0 <= self.cutout_probability <= 1,
      'cutout_max_holes': self.cutout_max_holes >= 1,
      'cutout_min_side': 0 < self.cutout_min_side <= self.cutout_max_side,
      'cutout_max_side': self.cutout_max_side <= 1,
    }
    for name, valid in is_valid.items():
      if not valid:
        raise errors.UserError(
          f'config.augment.{name} is {getattr(self, name)}, which is out of '
          'range: probabilities and sides go from 0 to 1 (sides above 0, min '
          '<= max), the shift from 0 to 255, holes from 1'
        )

  def random_map(
    self, element: dict[str, np.ndarray], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    """Returns the augmented record."""
    if 'image' not in element:
      return element
    image = element['image']
    if self.flips:
      image = flip_and_turn(image, rng)
    if rng.random() < self.rgb_shift_probability:
      image = rgb_shift(image, rng, self.rgb_shift_limit)
    element = {**element, 'image': image}
    if self.cutout_probability:
      if self.cutout_target == CLEAN:
        element['target'] = image
      if rng.random() < self.cutout_probability:
        element['image'] = coarse_cutout(
          image,
          rng,
          self.cutout_max_holes,
          self.cutout_min_side,
          self.cutout_max_side,
        )
    return element
