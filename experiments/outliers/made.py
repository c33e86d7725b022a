"""Makes outliers from held-out lesions, in graded strengths.

Images are uint8 `[S, S, 3]`. Each function of `KINDS` takes a generator of
random numbers, an image, another lesion's image and a strength, 0 (weak) to 2
(strong). It returns the new image, and which pixels are wrong, bool `[S, S]`;
None if all are.
"""

import io
from collections.abc import Callable

import numpy as np
import scipy.ndimage
from PIL import Image, ImageDraw

_SCALE = 64  # Sizes below are pixels of images of this side.
_FINE = 4  # Lines are drawn at this many times the size, then reduced.
STRENGTHS = ('weak', 'medium', 'strong')

Made = tuple[np.ndarray, np.ndarray | None]
_Pixels = np.ndarray


def _to_uint8(x: np.ndarray) -> np.ndarray:
  return np.rint(np.clip(x, 0, 255)).astype(np.uint8)


def blur(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """Gaussian blur."""
  sigma = (0.6, 1.2, 2.5)[strength] * len(image) / _SCALE
  return _to_uint8(
    scipy.ndimage.gaussian_filter(np.float64(image), (sigma, sigma, 0))
  ), None


def noise(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """Independent Gaussian noise."""
  deviation = (5, 12, 30)[strength]
  return _to_uint8(image + rng.normal(0, deviation, image.shape)), None


def jpeg(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """JPEG of a low quality."""
  out = io.BytesIO()
  Image.fromarray(image).save(out, 'JPEG', quality=(50, 20, 5)[strength])
  return np.asarray(Image.open(out).convert('RGB')), None


def colour_cast(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """All pixels move in one random direction of equal brightness."""
  direction = rng.normal(size=3)
  direction -= direction.mean()
  direction /= np.abs(direction).max()
  return _to_uint8(image + (15, 35, 70)[strength] * direction), None


def exposure(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """Too bright or too dark, by a factor."""
  factor = (1.2, 1.5, 2.2)[strength] ** rng.choice([-1, 1])
  return _to_uint8(image * factor), None


def _draw(
  image: np.ndarray, paint: Callable[[ImageDraw.ImageDraw, float], None], colour
) -> Made:
  """Paints over an image.

  Args:
    image: what is painted on.
    paint: paints white where the colour goes; it also gets the length of a
      pixel of `_SCALE`.
    colour: RGB.
  """
  side = len(image)
  mask = Image.new('L', (side * _FINE, side * _FINE))
  paint(ImageDraw.Draw(mask), side * _FINE / _SCALE)
  covered = np.asarray(mask.resize((side, side), Image.Resampling.BOX)) / 255.0
  covered = covered[..., None]
  made = image * (1 - covered) + np.array(colour) * covered
  return _to_uint8(made), covered[..., 0] > 0.25


def pen_mark(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """A bent stroke of a pen."""
  colours = ((40, 50, 150), (90, 40, 130), (30, 30, 40), (20, 110, 90))
  colour = colours[rng.integers(len(colours))]
  x = np.linspace(-5, _SCALE + 5, 30)
  y = rng.uniform(8, 56) + rng.uniform(4, 10) * np.sin(
    x / rng.uniform(8, 20) + rng.uniform(0, 6)
  )
  points = np.stack([x, y], 1)
  if rng.random() < 0.5:
    points = points[:, ::-1]

  def paint(draw, unit):
    width = round((1, 2, 4)[strength] * unit)
    draw.line([tuple(p * unit) for p in points], 255, width, joint='curve')

  return _draw(image, paint, colour)


def hair(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """Dark hairs: thin arcs across the image."""
  arcs = []
  for _ in range((2, 6, 15)[strength]):
    start, angle = rng.uniform(0, _SCALE, 2), rng.uniform(0, 2 * np.pi)
    angles = angle + np.linspace(0, rng.uniform(-1.5, 1.5), 20)
    steps = np.stack([np.cos(angles), np.sin(angles)], 1)
    arcs.append(start + rng.uniform(1, 3) * np.cumsum(steps, 0))

  def paint(draw, unit):
    width = round((0.5, 0.75, 1)[strength] * unit)
    for points in arcs:
      draw.line([tuple(p * unit) for p in points], 255, width, joint='curve')

  return _draw(image, paint, (45, 30, 25))


def ruler(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """Ticks of a ruler along one side."""
  step = rng.uniform(3, 6)
  length = (3, 5, 8)[strength]
  turns = int(rng.integers(4))

  def paint(draw, unit):
    for i, at in enumerate(np.arange(rng.uniform(0, step), _SCALE, step)):
      end = length * (1.6 if i % 5 == 0 else 1)
      width = max(1, round((0.6, 0.9, 1.3)[strength] * unit))
      draw.line([(at * unit, 0), (at * unit, end * unit)], 255, width)

  made, wrong = _draw(np.rot90(image, turns), paint, (25, 25, 25))
  return np.rot90(made, -turns).copy(), np.rot90(wrong, -turns)


def gel_bubble(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """A bubble in the gel: a dark ring, brighter inside, with a reflection."""
  radius = (4, 7, 12)[strength]
  centre = rng.uniform(radius, _SCALE - radius, 2)

  def disc(shift, size):
    def paint(draw, unit):
      low, high = (centre + shift - size) * unit, (centre + shift + size) * unit
      draw.ellipse([*low, *high], 255)

    return paint

  ring, wrong = _draw(image, disc(0, radius), (110, 80, 70))
  inside, _ = _draw(image, disc(0, radius), (255, 245, 240))
  _, inner = _draw(image, disc(0, radius - 1.2), (0, 0, 0))
  made = np.where(inner[..., None], (np.float64(image) + inside) / 2, ring)
  made, _ = _draw(
    _to_uint8(made), disc(-radius * 0.4, radius * 0.25), (255, 255, 255)
  )
  return made, wrong


def black_border(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """The black edge of the camera's round field of view."""
  radius = (42, 36, 29)[strength] * len(image) / _SCALE
  centre = (len(image) - 1) / 2 + rng.uniform(-3, 3, 2) * len(image) / _SCALE
  rows, columns = np.mgrid[: len(image), : len(image)]
  outside = np.hypot(rows - centre[0], columns - centre[1]) - radius
  covered = np.clip(outside + 0.5, 0, 1)[..., None]
  return _to_uint8(image * (1 - covered) + 8 * covered), covered[..., 0] > 0.25


def wrong_crop(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """A corner of the image alone, enlarged."""
  side = round((0.6, 0.4, 0.25)[strength] * len(image))
  top, left = rng.choice([0, len(image) - side], 2)
  part = Image.fromarray(image[top : top + side, left : left + side])
  size = (len(image), len(image))
  return np.asarray(part.resize(size, Image.Resampling.LANCZOS)), None


def pasted_patch(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """A square of another lesion's image."""
  side = round((10, 16, 24)[strength] * len(image) / _SCALE)
  return _paste(rng, image, other, side)


def photo_patch(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """A square of a photograph that shows no skin."""
  from experiments.outliers import shipped

  side = round((10, 16, 24)[strength] * len(image) / _SCALE)
  return _paste(rng, image, shipped.photograph(rng, len(image)), side)


def _paste(rng, image: _Pixels, other: _Pixels, side: int) -> Made:
  (top, left), (y, x) = rng.integers(0, len(image) - side, (2, 2))
  made, wrong = image.copy(), np.zeros(image.shape[:2], bool)
  made[top : top + side, left : left + side] = other[y : y + side, x : x + side]
  wrong[top : top + side, left : left + side] = True
  return made, wrong


def mirrored_half(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """One half is the mirror image of the other."""
  turned = np.rot90(image, turns := int(rng.integers(4)))
  made, wrong = turned.copy(), np.zeros(image.shape[:2], bool)
  half = len(image) // 2
  made[half:] = turned[:half][::-1]
  wrong[half:] = True
  return np.rot90(made, -turns).copy(), np.rot90(wrong, -turns)


def other_half(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """One half is another lesion's."""
  turned = np.rot90(image, turns := int(rng.integers(4)))
  made, wrong = turned.copy(), np.zeros(image.shape[:2], bool)
  half = len(image) // 2
  made[half:] = np.rot90(other, turns)[half:]
  wrong[half:] = True
  return np.rot90(made, -turns).copy(), np.rot90(wrong, -turns)


def photograph(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """A photograph of something else."""
  from experiments.outliers import shipped

  return shipped.photograph(rng, len(image)), None


def drawing(rng, image: _Pixels, other: _Pixels, strength: int) -> Made:
  """A drawing of shapes in plain colours."""
  side = len(image) * _FINE
  canvas = Image.new('RGB', (side, side), tuple(rng.integers(0, 256, 3)))
  draw = ImageDraw.Draw(canvas)
  for _ in range(rng.integers(1, 8)):
    box = np.sort(rng.uniform(0, side, (2, 2)), axis=0).ravel().tolist()
    colour = tuple(int(c) for c in rng.integers(0, 256, 3))
    shape = (draw.ellipse, draw.rectangle, draw.line)[rng.integers(3)]
    shape(box, fill=colour, **({'width': 9} if shape == draw.line else {}))
  size = (len(image), len(image))
  return np.asarray(canvas.resize(size, Image.Resampling.BOX)), None


GRADED = (
  blur,
  noise,
  jpeg,
  colour_cast,
  exposure,
  pen_mark,
  hair,
  ruler,
  gel_bubble,
  black_border,
  wrong_crop,
  pasted_patch,
  photo_patch,
)
SINGLE = (mirrored_half, other_half, photograph, drawing)  # of one strength
KINDS = {f.__name__: f for f in GRADED + SINGLE}


def make(
  kind: str, strength: int, images: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
  """Makes one outlier of each image.

  Args:
    kind: one of `KINDS`.
    strength: 0 to 2.
    images: uint8 `[N, S, S, 3]`, of different lesions; N is 2 or more.
    seed: the seed.

  Returns:
    uint8 `[N, S, S, 3]`, and which pixels are wrong, bool `[N, S, S]`; None if
    all are.
  """
  made, wrong = [], []
  for i, image in enumerate(images):
    rng = np.random.default_rng([seed, i, list(KINDS).index(kind)])
    other = images[(i + 1 + rng.integers(len(images) - 1)) % len(images)]
    new, where = KINDS[kind](rng, image, other, strength)
    made.append(new)
    wrong.append(where)
  return np.stack(made), None if wrong[0] is None else np.stack(wrong)
