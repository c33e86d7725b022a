"""Synthetic dermoscopy: the default dataset, which this module draws.

An image shows skin with a lesion. Light passes through absorbing layers
(melanin, blood, keratin) and is scattered by others (veil, scale, scars). Each
class paints its own dermoscopic criteria into these layers; hair, gel bubbles,
uneven light and dark corners are added on top. All coordinates are in image
sides and the random numbers do not depend on the size, so an index gives the
same picture at every size.

The module is long because one picture needs all of it: skin, seven classes,
light and hair, in the order in which they are painted.
"""

import dataclasses
import math
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageFilter

from dermvq_jax.data.datasets import builder, drawing

# Less imbalanced than HAM10000 (67% nv), so that every split has every class,
# even in the small configs.
CLASS_SHARES = {
  'akiec': 0.12,
  'bcc': 0.14,
  'bkl': 0.16,
  'df': 0.09,
  'mel': 0.16,
  'nv': 0.24,
  'vasc': 0.09,
}
NUM_IMAGES = 2000
NUM_SMOKE_IMAGES = 140

_ANGLES = 1024
# Any number of multiples of the golden ratio fills [0, 1) evenly.
_GOLDEN = (math.sqrt(5) - 1) / 2

# Absorbance of one unit in R, G and B, adjusted by eye to HAM10000.
_MELANIN = (0.42, 0.83, 1.02)
_BLOOD = (0.13, 0.85, 0.58)
_KERATIN = (0.05, 0.20, 0.62)
# Colours of scattered light.
_VEIL = (0.47, 0.45, 0.54)
_WHITE = (0.95, 0.88, 0.89)
_SCALE = (0.97, 0.92, 0.84)

# Pale skin under common dermatoscopes: salmon, pink, violet, cream, orange.
_LIGHTS = (
  (0.98, 0.74, 0.69),
  (0.97, 0.75, 0.81),
  (0.87, 0.79, 0.91),
  (0.96, 0.91, 0.90),
  (0.97, 0.77, 0.66),
)
# Melanin of the skin, after Fitzpatrick types I to VI, and their shares.
_TONES = (0.0, 0.06, 0.14, 0.28, 0.5, 0.8)
_TONE_SHARES = (0.25, 0.32, 0.21, 0.12, 0.06, 0.04)


@dataclasses.dataclass(frozen=True)
class _Form:
  """The shape of a class's lesions.

  Attributes:
    radius: minimum and maximum of the mean radius, in image sides.
    irregularity: size of its lobes, in radii.
    roughness: size of its small notches, in radii.
    softness: width of the transition to the skin, in radii.
  """

  radius: tuple[float, float]
  irregularity: float
  roughness: float
  softness: float


@dataclasses.dataclass
class _Lesion:
  """The place of a lesion, as fields `[n, n]` around its centre.

  Attributes:
    depth: 1 at the centre, 0 at the outline, negative outside.
    mask: 1 inside, 0 outside.
    theta: direction from the centre, radians.
    radius: mean radius, in image sides.
    centre: x and y.
  """

  depth: np.ndarray
  mask: np.ndarray
  theta: np.ndarray
  radius: float
  centre: tuple[float, float]


def _lesion(canvas: drawing.Canvas, form: _Form) -> _Lesion:
  rng = canvas.rng
  centre = tuple(rng.normal(0, 0.05, 2).clip(-0.12, 0.12).tolist())
  radius = canvas.uniform(*form.radius)
  u, v = canvas.turned(*centre)
  v = v * canvas.uniform(1.0, 1.45)
  theta = np.arctan2(v, u)
  orders = np.arange(2, 10)
  sizes = rng.normal(0, 1, orders.shape) * form.irregularity / orders**0.7
  phases = rng.uniform(0, 2 * math.pi, orders.shape)
  angles = np.arange(_ANGLES) * (2 * math.pi / _ANGLES)
  waves = np.sin(orders[:, None] * angles + phases[:, None])
  outline = radius * np.clip(1 + sizes @ waves, 0.5, 1.6).astype(np.float32)
  turn = (theta * (_ANGLES / (2 * math.pi))).astype(np.int32) % _ANGLES
  depth = 1 - np.sqrt(u * u + v * v) / outline[turn]
  depth = depth + form.roughness * canvas.cloud(1.0)
  soft = max(
    form.softness * canvas.uniform(0.5, 1.8), 2 * drawing.PIXEL / radius
  )
  mask = drawing.ramp(depth, -soft / 2, soft / 2)
  return _Lesion(depth, mask, theta, radius, centre)


def _network(canvas: drawing.Canvas, count: float, width: float) -> np.ndarray:
  """Pigment network: 1 on the lines between the holes."""
  return drawing.ramp(canvas.cells(count)[1], width, 0.0)


def _dots(canvas: drawing.Canvas, count: float, size: float, share: float):
  """Spots in a `share` of the cells; `size` is the mean radius in cells."""
  distance, _, value = canvas.cells(count)
  sizes = size * (0.6 + (0.8 / share) * value)
  return np.clip(1.4 - 1.4 * distance / sizes, 0, 1) * (value < share)


def _flakes(canvas: drawing.Canvas) -> np.ndarray:
  return drawing.ramp(canvas.cloud(1.1) + 0.2 * canvas.grain(), 0.4, 1.8)


def _paint_nv(canvas: drawing.Canvas, lesion: _Lesion) -> None:
  """Brown, symmetric: network, globules or homogeneous, fading outwards."""
  dome = lesion.mask * (0.5 + 0.8 * np.clip(lesion.depth, 0, 1))
  pattern = canvas.rng.choice(3, p=(0.5, 0.25, 0.25))
  if pattern == 0:
    lines = _network(canvas, canvas.uniform(19, 27), 0.6)
    texture = 0.75 + canvas.uniform(0.4, 0.9) * lines
  elif pattern == 1:
    texture = 0.8 + 0.8 * _dots(canvas, canvas.uniform(16, 24), 0.5, 0.8)
  else:
    texture = 1.0
  density = canvas.uniform(0.45, 1.4)
  patches = np.clip(1 + 0.3 * canvas.cloud(0.7), 0.3, 2)
  canvas.melanin += density * dome * texture * patches
  canvas.blood += canvas.uniform(0.0, 0.25) * lesion.mask
  canvas.keratin += canvas.uniform(0.0, 0.4) * lesion.mask


def _paint_mel(canvas: drawing.Canvas, lesion: _Lesion) -> None:
  """Asymmetric, many colours: black, brown, pink, blue-white veil, streaks."""
  side = np.cos(lesion.theta - canvas.uniform(0, 2 * math.pi))
  patches = canvas.cloud(0.6) + side * (1 - lesion.depth)
  density = canvas.uniform(0.2, 1.0) + 1.5 * drawing.ramp(patches, -0.4, 1.6)
  network = _network(canvas, canvas.uniform(12, 18), 0.7)
  density = density * (0.8 + 0.6 * network * drawing.ramp(patches, 1.0, -0.6))
  pink = canvas.uniform(0.2, 0.8) * drawing.ramp(canvas.cloud(), 0.2, 1.4)
  density = density * (1 - 0.85 * pink)
  density = density + 1.3 * drawing.ramp(canvas.cloud(0.8), 0.6, 1.3)
  canvas.melanin += lesion.mask * density
  canvas.blood += lesion.mask * (0.05 + 0.4 * pink)
  if canvas.chance(0.6):
    rays = np.sin(lesion.theta * int(canvas.rng.integers(20, 32)) + 2 * patches)
    ring = drawing.ramp(lesion.depth, -0.3, 0) * drawing.ramp(
      lesion.depth, 0.35, 0.05
    )
    rays = drawing.ramp(rays, 0.0, 0.9) * drawing.ramp(
      side + 0.5 * patches, 0.2, 1.4
    )
    canvas.melanin += 1.1 * ring * rays
  veil = drawing.ramp(canvas.cloud(0.6), -0.2, 1.3) * drawing.ramp(
    lesion.depth, 0.0, 0.5
  )
  canvas.veil += 0.08 * lesion.mask
  canvas.veil += canvas.uniform(0.2, 0.6) * veil
  canvas.keratin += canvas.uniform(0.0, 0.5) * lesion.mask


def _paint_bkl(canvas: drawing.Canvas, lesion: _Lesion) -> None:
  """Stuck-on tan plaque: sharp border, milia-like cysts, fissures, scale."""
  density = canvas.uniform(0.2, 1.0)
  patches = 1 + 0.35 * canvas.cloud(0.8) + 0.12 * canvas.grain()
  edge = 0.4 * drawing.ramp(lesion.depth, 0.25, 0.0)
  canvas.melanin += lesion.mask * density * (patches + edge)
  keratin = canvas.uniform(0.1, 0.55) * (1 + 0.3 * canvas.cloud(0.7))
  canvas.keratin += keratin * lesion.mask
  canvas.veil += canvas.uniform(0, 0.3) * lesion.mask
  if canvas.chance(0.6):
    fissures = drawing.ramp(np.abs(canvas.cloud(0.9)), 0.35, 0.0) * lesion.mask
    canvas.melanin += (0.2 + 0.6 * density) * fissures
  else:
    openings = _dots(canvas, canvas.uniform(13, 20), 0.4, 0.25) * lesion.mask
    canvas.melanin += 1.1 * openings
  cysts = _dots(canvas, canvas.uniform(14, 22), 0.38, canvas.uniform(0.1, 0.3))
  canvas.scale += 0.5 * cysts * lesion.mask
  if canvas.chance(0.35):
    canvas.scale += 0.6 * _flakes(canvas) * lesion.mask


def _vessel_tree(canvas: drawing.Canvas, lesion: _Lesion) -> np.ndarray:
  """Arborizing vessels: stems that run inwards, each with branches."""
  coverage = np.zeros_like(canvas.x)
  for _ in range(canvas.rng.integers(3, 6)):
    angle = canvas.uniform(0, 2 * math.pi)
    reach = lesion.radius * canvas.uniform(0.8, 1.3)
    x = lesion.centre[0] + reach * math.cos(angle)
    y = lesion.centre[1] + reach * math.sin(angle)
    heading = angle + math.pi + canvas.uniform(-0.7, 0.7)
    length = lesion.radius * canvas.uniform(0.9, 1.7)
    bend = canvas.uniform(-2.5, 2.5)
    canvas.add_curve(coverage, (x, y), heading, length, bend, 0.008, 0.006)
    c, s = math.cos(heading), math.sin(heading)
    for _ in range(4):
      u = length * canvas.uniform(0.15, 0.85)
      v = bend * u * u
      canvas.add_curve(
        coverage,
        (x + c * u - s * v, y + s * u + c * v),
        heading + canvas.uniform(0.4, 1.0) * canvas.rng.choice((-1, 1)),
        length * canvas.uniform(0.25, 0.6),
        canvas.uniform(-5, 5),
        0.0055,
        0.005,
      )
  return coverage


def _paint_bcc(canvas: drawing.Canvas, lesion: _Lesion) -> None:
  """Pink and shiny: arborizing vessels, blue-grey nests, ulceration."""
  red = canvas.uniform(0.1, 0.35) * (1 + 0.3 * canvas.cloud(0.8))
  canvas.blood += red * lesion.mask
  shine = canvas.uniform(0.1, 0.5) * drawing.ramp(canvas.cloud(0.7), -0.3, 1.8)
  canvas.white += shine * lesion.mask
  vessels = canvas.uniform(0.5, 1.1) * _vessel_tree(canvas, lesion)
  canvas.blood += vessels * (0.9 + 0.3 * canvas.cloud(1.0))
  nests = _dots(canvas, canvas.uniform(6, 11), 0.55, canvas.uniform(0.2, 0.5))
  nests = (
    np.sqrt(nests) * lesion.mask * drawing.ramp(canvas.cloud(0.9), -1.0, 0.5)
  )
  canvas.veil += canvas.uniform(0.4, 0.75) * nests
  canvas.melanin += canvas.uniform(0.3, 1.0) * nests
  if canvas.chance(0.4):
    crust = drawing.ramp(canvas.cloud(0.7), 0.6, 1.2) * drawing.ramp(
      lesion.depth, 0.1, 0.5
    )
    canvas.blood += 0.9 * crust
    canvas.melanin += 1.2 * crust


def _paint_akiec(canvas: drawing.Canvas, lesion: _Lesion) -> None:
  """Red and rough: strawberry pattern (pale follicles), scale, crusts."""
  follicles = _dots(canvas, canvas.uniform(13, 20), 0.5, 0.7)
  follicles *= drawing.ramp(canvas.cloud(0.7), -1.2, 0.6)
  red = canvas.uniform(0.2, 0.6) * (1 + 0.4 * canvas.cloud(0.8))
  canvas.blood += lesion.mask * red * (1 - 0.8 * follicles)
  brown = canvas.uniform(0.0, 0.5) * drawing.ramp(canvas.cloud(0.7), -0.8, 1.2)
  canvas.melanin += brown * lesion.mask * (1 - 0.7 * follicles)
  canvas.keratin += canvas.uniform(0.1, 0.4) * lesion.mask
  canvas.scale += canvas.uniform(0.05, 0.3) * follicles * lesion.mask
  flakes = _flakes(canvas) * lesion.mask
  canvas.scale += canvas.uniform(0.3, 0.9) * flakes
  crust = drawing.ramp(canvas.cloud(0.8), 0.9, 1.8) * lesion.mask
  canvas.melanin += canvas.uniform(0.3, 1.5) * crust


def _paint_vasc(canvas: drawing.Canvas, lesion: _Lesion) -> None:
  """Red to purple lacunae with sharp borders, divided by pale septa."""
  distance, border, value = canvas.cells(canvas.uniform(12, 20))
  lacunae = drawing.ramp(border, -0.1, 0.6) * drawing.ramp(distance, 0.9, 0.1)
  contrast = canvas.uniform(0.3, 1.0)
  blood = canvas.uniform(0.8, 1.4) * (1 - contrast * (0.6 - lacunae))
  blood = blood * (0.8 + 0.4 * value + 0.15 * canvas.cloud(0.7))
  canvas.blood += lesion.mask * blood
  dark = canvas.uniform(0.0, 1.0) * lacunae * (value > 0.6)
  canvas.melanin += lesion.mask * dark
  if canvas.chance(0.2):  # Thrombosed: blue to black.
    canvas.melanin += canvas.uniform(0.5, 1.5) * lesion.mask * lacunae
    clots = lesion.mask * drawing.ramp(canvas.cloud(0.8), -1.5, 1.5)
    canvas.veil += canvas.uniform(0.3, 0.8) * clots
  canvas.veil += canvas.uniform(0, 0.3) * lesion.mask
  halo = drawing.ramp(lesion.depth, -0.5, 0.2)
  canvas.blood += canvas.uniform(0, 0.2) * halo


def _paint_df(canvas: drawing.Canvas, lesion: _Lesion) -> None:
  """White scar-like centre in a light brown ring with a delicate network."""
  lines = _network(canvas, canvas.uniform(20, 27), 0.6)
  brown = canvas.uniform(0.2, 0.65) * (1 + 0.3 * canvas.cloud(0.7))
  brown = brown * (0.75 + canvas.uniform(0.1, 0.7) * lines)
  canvas.melanin += lesion.mask * brown
  canvas.blood += canvas.uniform(0.1, 0.4) * lesion.mask
  scar = drawing.ramp(lesion.depth + 0.14 * canvas.cloud(0.8), 0.35, 1.0)
  canvas.melanin *= 1 - 0.8 * scar
  scar = scar * (0.9 + 0.1 * canvas.grain())
  canvas.white += canvas.uniform(0.4, 0.8) * scar


_CLASSES = {
  'akiec': (_paint_akiec, _Form((0.22, 0.40), 0.12, 0.24, 0.60)),
  'bcc': (_paint_bcc, _Form((0.20, 0.38), 0.12, 0.14, 0.45)),
  'bkl': (_paint_bkl, _Form((0.20, 0.42), 0.08, 0.11, 0.09)),
  'df': (_paint_df, _Form((0.17, 0.34), 0.07, 0.12, 0.75)),
  'mel': (_paint_mel, _Form((0.22, 0.38), 0.13, 0.22, 0.22)),
  'nv': (_paint_nv, _Form((0.13, 0.36), 0.07, 0.12, 0.40)),
  'vasc': (_paint_vasc, _Form((0.10, 0.25), 0.13, 0.09, 0.14)),
}


def _paint_skin(canvas: drawing.Canvas) -> None:
  tone = float(canvas.rng.choice(_TONES, p=_TONE_SHARES))
  canvas.melanin += tone * (1 + 0.15 * canvas.cloud())
  mottled = canvas.uniform(0.01, 0.06) * canvas.cloud(0.9)
  grain = canvas.uniform(0.01, 0.05) * canvas.grain(canvas.uniform(0.5, 0.8))
  canvas.blood += 0.05 + mottled + grain
  canvas.melanin += 0.4 * grain
  if canvas.chance(0.35):
    ridges = drawing.ramp(np.abs(canvas.cloud(0.8)), 0.28, 0.0)
    ridges = ridges * drawing.ramp(canvas.cloud(), -1.0, 1.0)
    canvas.blood += canvas.uniform(0.08, 0.3) * ridges
  if canvas.chance(0.35):
    freckles = drawing.ramp(canvas.cloud(0.9), 0.5, 2.2)
    canvas.melanin += canvas.uniform(0.1, 0.4) * freckles


def _scatter(image: np.ndarray, weight: np.ndarray, colour) -> np.ndarray:
  """Mixes `colour` into the image `[n, n, 3]` by `weight` `[n, n]`."""
  if not weight.any():
    return image
  weight = np.clip(weight, 0, 1)[..., None]
  return image + weight * (np.asarray(colour, np.float32) - image)


def _develop(canvas: drawing.Canvas) -> np.ndarray:
  """Turns the layers into colours, float32 `[n, n, 3]` in [0, 1]."""
  weights = canvas.rng.dirichlet((0.5,) * len(_LIGHTS))
  light = (weights @ np.asarray(_LIGHTS)).astype(np.float32)
  light = light * canvas.uniform(0.82, 1.08)
  layers = np.stack([canvas.melanin, canvas.blood, canvas.keratin], -1)
  absorbance = np.asarray([_MELANIN, _BLOOD, _KERATIN], np.float32)
  image = light * np.exp(-(layers @ absorbance))
  # Scattered light has passed less tissue, so it is tinted less.
  for weight, colour in (
    (canvas.veil, _VEIL),
    (canvas.white, _WHITE),
    (canvas.scale, _SCALE),
  ):
    image = _scatter(image, weight, colour * light**0.35)
  return image


def _add_hair(canvas: drawing.Canvas, image: np.ndarray) -> np.ndarray:
  if not canvas.chance(0.3):
    return image
  coverage = np.zeros_like(canvas.x)
  heading = canvas.uniform(0, 2 * math.pi)
  for _ in range(canvas.rng.integers(2, 14)):
    canvas.add_curve(
      coverage,
      canvas.rng.uniform(-0.7, 0.7, 2).tolist(),
      heading + canvas.rng.normal(0, 0.5),
      canvas.uniform(0.4, 1.4),
      canvas.rng.normal(0, 0.5),
      canvas.uniform(0.002, 0.006),
    )
  colour = np.asarray((0.24, 0.16, 0.14)) * canvas.uniform(0.4, 1.6)
  return _scatter(image, 0.8 * coverage, colour)


def _add_bubbles(canvas: drawing.Canvas, image: np.ndarray) -> np.ndarray:
  """Adds bubbles in the gel: a dim disc, a bright rim, a highlight."""
  if not canvas.chance(0.2):
    return image
  for _ in range(canvas.rng.integers(1, 5)):
    x, y = canvas.rng.uniform(-0.48, 0.48, 2)
    radius = canvas.uniform(0.015, 0.06)
    u, v = canvas.turned(x, y)
    distance = np.sqrt(u * u + v * v)
    rim = drawing.ramp(np.abs(distance - radius), 1.5 * drawing.PIXEL, 0)
    shine = drawing.ramp(np.hypot(u - 0.5 * radius, v), 0.4 * radius, 0)
    image = image * (1 + 0.06 * (distance < radius))[..., None]
    image = _scatter(image, 0.35 * rim * (u > -0.3 * radius), _SCALE)
    image = _scatter(image, 0.8 * shine, (1, 1, 1))
  return image


def _add_light(canvas: drawing.Canvas, image: np.ndarray) -> np.ndarray:
  """Adds a gradient, a vignette and sometimes the tube's dark corners."""
  u, v = canvas.turned()
  distance = np.sqrt(u * u + v * v)
  shade = 1 + canvas.uniform(0, 0.16) * u
  shade = shade - canvas.uniform(0.0, 0.25) * distance**2
  if canvas.chance(0.08):
    edge = canvas.uniform(0.58, 0.70)
    shade = shade * (
      0.04 + 0.96 * drawing.ramp(distance, edge + 0.03, edge - 0.01)
    )
  return image * shade[..., None]


def render(index: int, label: str, size: int, seed: int = 0) -> np.ndarray:
  """Draws one image.

  Args:
    index: number of the image; each number gives another image.
    label: class name, one of `builder.CLASS_NAMES`.
    size: side in pixels; all sizes show the same picture.
    seed: seed of the whole dataset.

  Returns:
    uint8 `[size, size, 3]`, the same for the same arguments.
  """
  factor = math.ceil(drawing.MIN_GRID / size)
  canvas = drawing.Canvas(np.random.default_rng((seed, index)), size * factor)
  _paint_skin(canvas)
  paint, form = _CLASSES[label]
  paint(canvas, _lesion(canvas, form))
  image = _develop(canvas)
  image = _add_hair(canvas, image)
  image = _add_bubbles(canvas, image)
  image = _add_light(canvas, image)
  pixels = np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)
  blur = canvas.uniform(0.3, 1.1) * drawing.PIXEL * size * factor
  picture = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur))
  return np.array(picture.reduce(factor))


def label_of(index: int) -> str:
  """Returns the class of an image; consecutive indices follow the shares."""
  position = ((index + 0.5) * _GOLDEN) % 1
  bounds = np.cumsum(list(CLASS_SHARES.values()))
  place = int(np.searchsorted(bounds, position, side='right'))
  return list(CLASS_SHARES)[min(place, len(CLASS_SHARES) - 1)]


@dataclasses.dataclass(kw_only=True)
class SyntheticConfig(builder.ImageConfig):
  """One size of the images.

  Attributes:
    num_images: number of images.
  """

  num_images: int = NUM_IMAGES


class Builder(builder.ImageBuilder):
  """Drawn dermoscopic images of HAM10000's 7 classes; needs no download."""

  name = 'synthetic_dermoscopy'
  # Raise it with every change of the pictures.
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    SyntheticConfig(name='64', size=64),
    SyntheticConfig(name='128', size=128),
    SyntheticConfig(name='256', size=256),
    SyntheticConfig(name='smoke', size=16, num_images=NUM_SMOKE_IMAGES),
  ]

  def read_records(self, folder: pathlib.Path | None) -> list[builder.Record]:
    """Returns one record for each image; each is its own group."""
    del folder
    return [
      builder.Record(
        id=f'synthetic_{index:05d}',
        label=label_of(index),
        group=f'synthetic_{index:05d}',
        source=index,
      )
      for index in range(self.builder_config.num_images)
    ]

  def read_image(self, record: builder.Record) -> np.ndarray:
    """Draws the image, uint8 `[size, size, 3]`."""
    return render(record.source, record.label, self.builder_config.size)
