"""Finds the real images that are nearest to new ones, by pixels or by features.

Distances by pixels ignore the eight symmetries of the square and shifts of up
to a sixteenth of the side. Noise and compression hardly change them.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from dermvq_jax import progress
from dermvq_jax.data import images as images_lib
from dermvq_jax.evaluation import feature_spaces

# Images are reduced to this side. The largest shift is cut off at each edge,
# and the rest is averaged over blocks.
_SIDE, _SHIFT, _POOL = 32, 2, 2
_SHIFTS = range(2 * _SHIFT + 1)
_FEATURES = ((_SIDE - 2 * _SHIFT) // _POOL) ** 2 * 3
# Number of nearest lesions in the ratio.
_NEIGHBOURS = 5
# Shifts are tried only on this many images that are nearest without a shift,
# and on the nearest image of each of the nearest lesions. The tests show that
# copies with the largest shift are among them.
_CANDIDATES = 256
_CHUNK = 16  # images at a time
_READ_AT_ONCE = 512
# Images of a bank that are compared at once. A larger bank is searched in
# blocks, each with as many candidates, so no image is found less well.
_BLOCK = 2**15


@dataclasses.dataclass(frozen=True)
class Bank:
  """Descriptions of the real images that new ones are compared with.

  Attributes:
    pixels: `[N, F]`, from `describe`; may be in a file.
    features: `[N, F']`; None without a space of features.
    ids: str `[N]`, the image's id.
    groups: str `[N]`, the lesion or patient.
  """

  pixels: np.ndarray
  features: np.ndarray | None
  ids: np.ndarray
  groups: np.ndarray


def make_bank(
  source: Sequence[dict[str, Any]],
  space: feature_spaces.Features | None,
  description: str,
) -> Bank:
  """Describes all images of a split; few are in memory at a time.

  Args:
    source: the records, from `prepared.Dataset.split`.
    space: the space of features; None: by pixels only.
    description: the text of the progress bar.
  """
  found, ids, groups = [], [], []
  # In a file without a name, because it may be larger than the memory.
  with tempfile.TemporaryFile() as file:
    pixels = np.memmap(file, np.float32, 'w+', shape=(len(source), _FEATURES))
  with progress.bar(total=len(source), desc=description, unit='image') as bar:
    for start in range(0, len(source), _READ_AT_ONCE):
      stop = min(start + _READ_AT_ONCE, len(source))
      records = [source[i] for i in range(start, stop)]
      images = np.stack([record['image'] for record in records])
      pixels[start:stop] = describe(images)
      if space is not None:
        found.append(feature_spaces.extract(space, images))
      ids += [record['id'].decode() for record in records]
      groups += [record['group'].decode() for record in records]
      bar.update(len(records))
  return Bank(
    pixels,
    np.concatenate(found) if found else None,
    np.array(ids),
    np.array(groups),
  )


@jax.jit
def _reduce(images: jax.Array) -> jax.Array:
  images = images.astype(jnp.float32) / 255
  shape = (len(images), _SIDE, _SIDE, images.shape[-1])
  return jax.image.resize(images, shape, 'linear', antialias=True)


def _window(reduced: jax.Array, top: int, left: int) -> jax.Array:
  """Describes a window of reduced images `[B, _SIDE, _SIDE, C]`: `[B, F]`."""
  size = _SIDE - 2 * _SHIFT
  x = reduced[:, top : top + size, left : left + size]
  n = size // _POOL
  x = x.reshape(len(x), n, _POOL, n, _POOL, -1).mean((2, 4))
  return x.reshape(len(x), -1)


def describe(images: np.ndarray) -> np.ndarray:
  """Turns uint8 `[B, H, W, 3]` into the vectors `[B, F]` that are compared."""
  return np.concatenate(
    [
      np.asarray(
        _window(_reduce(images[i : i + _READ_AT_ONCE]), _SHIFT, _SHIFT)
      )
      for i in range(0, len(images), _READ_AT_ONCE)
    ]
  )


def _square_distances(a: jax.Array, b: jax.Array) -> jax.Array:
  """Squared distances of `[..., N, F]` and `[..., M, F]`: `[..., N, M]`."""
  products = jnp.einsum('...nf,...mf->...nm', a, b)
  squares = (a**2).sum(-1)[..., :, None] + (b**2).sum(-1)[..., None, :]
  return jnp.maximum(squares - 2 * products, 0)


@flax.struct.dataclass
class Nearest:
  """The nearest images of a bank, one of each lesion, the nearest first.

  Attributes:
    distances: float32 `[B, k]`; infinite if there are fewer than k lesions.
    indices: int32 `[B, k]`, positions in the bank.
  """

  distances: np.ndarray
  indices: np.ndarray

  @property
  def ratio(self) -> np.ndarray:
    """The memorisation ratio `[B]`: 0 for a copy, 1 if all are equally far."""
    found = np.isfinite(self.distances)
    mean = np.where(found, self.distances, 0).sum(1) / found.sum(1)
    return self.distances[:, 0] / np.where(mean > 0, mean, 1)


def _first_of_each(squares: jax.Array, groups: jax.Array) -> jax.Array:
  """Keeps the least distance of each group, the others become infinite.

  An image that occurs twice counts once.
  """
  number = jnp.arange(squares.shape[1])
  a, b = squares[:, :, None], squares[:, None]
  before = (b < a) | ((b == a) & (number < number[:, None]))
  same = groups[:, :, None] == groups[:, None]
  return jnp.where((before & same).any(-1), jnp.inf, squares)


@jax.jit
def _take(squares: jax.Array, found: jax.Array, groups: jax.Array) -> Nearest:
  """The nearest images of different groups among those `found`, `[B, M]`."""
  squares = _first_of_each(squares, groups[found])
  best, order = jax.lax.top_k(-squares, min(_NEIGHBOURS, squares.shape[1]))
  return Nearest(
    jnp.sqrt(jnp.abs(best)), jnp.take_along_axis(found, order, axis=1)
  )


def _nearest_of_groups(squares: jax.Array, groups: jax.Array) -> jax.Array:
  """The nearest image of each of the nearest groups: `[B, N]` to `[B, k]`."""
  n = len(groups)
  # [G, B]; infinite where there is no such group.
  least = jax.ops.segment_min(squares.T, groups, n)
  is_least = least[groups] == squares.T
  number = jnp.where(is_least, jnp.arange(n)[:, None], n)
  first = jax.ops.segment_min(number, groups, n)
  _, nearest = jax.lax.top_k(-least.T, min(_NEIGHBOURS, n))
  found = jnp.take_along_axis(first.T, nearest, axis=1)
  # With fewer groups than neighbours an image occurs twice.
  return jnp.minimum(found, n - 1)


def _candidates(
  variants: jax.Array, bank: jax.Array, groups: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Squared distances and indices `[B, M]` of the images near any variant.

  These are the nearest images, and also the nearest image of each of the
  nearest groups, because the nearest images may all be of one group.
  """
  squares = _square_distances(variants, bank).min(0)  # [B, N]
  _, found = jax.lax.top_k(-squares, min(_CANDIDATES, len(bank)))
  found = jnp.concatenate([found, _nearest_of_groups(squares, groups)], axis=1)
  return jnp.take_along_axis(squares, found, axis=1), found


@jax.jit
def _nearest(
  variants: jax.Array, bank: jax.Array, groups: jax.Array
) -> Nearest:
  """The nearest images to any of the variants `[V, B, F]`."""
  return _take(*_candidates(variants, bank, groups), groups)


def number_groups(groups: np.ndarray) -> np.ndarray:
  """Numbers the groups from 0, int32 `[N]`."""
  return np.unique(groups, return_inverse=True)[1].astype(np.int32)


def _search(
  search: Callable[[int, jax.Array, np.ndarray], Nearest],
  count: int,
  bank: np.ndarray,
  groups: np.ndarray,
  bar: tqdm.tqdm | None = None,
) -> Nearest:
  """Searches a bank of any size, a block at a time.

  Args:
    search: finds the nearest images of a block for the images from a start on,
      at most `_CHUNK`, given the block and the numbers of its groups.
    count: the number of images.
    bank: `[N, F]`.
    groups: `[N]`.
    bar: the progress bar, of `count` images.
  """
  numbers, found = number_groups(groups), [[] for _ in range(0, count, _CHUNK)]
  num_blocks = -(-len(bank) // _BLOCK)
  for start in range(0, len(bank), _BLOCK):
    stop = min(start + _BLOCK, len(bank))
    block = jnp.asarray(bank[start:stop])
    for chunk, i in zip(found, range(0, count, _CHUNK)):
      near = jax.device_get(search(i, block, numbers[start:stop]))
      chunk.append(near.replace(indices=near.indices + start))
      if bar is not None:
        bar.update(min(_CHUNK, count - i) / num_blocks)
  merged = [_merge(chunk, numbers) for chunk in found]
  return jax.tree.map(lambda *xs: np.concatenate(xs), *merged)


def _merge(parts: Sequence[Nearest], groups: np.ndarray) -> Nearest:
  """The nearest of what was found in the blocks of a bank."""
  if len(parts) == 1:
    return parts[0]
  joined = jax.tree.map(lambda *xs: np.concatenate(xs, 1), *parts)
  squares = joined.distances**2
  return jax.device_get(_take(squares, joined.indices, groups))


def nearest_features(
  variants: np.ndarray, bank: np.ndarray, groups: np.ndarray
) -> Nearest:
  """Finds the nearest images in a space of features.

  Args:
    variants: `[V, B, F]`, features of V variants of each image.
    bank: `[N, F]`.
    groups: the lesion of each image in the bank, `[N]`.

  Returns:
    The five nearest images of different lesions, by the nearest variant.
  """

  def search(i, block, numbers):
    return _nearest(variants[:, i : i + _CHUNK], block, numbers)

  return _search(search, variants.shape[1], bank, groups)


@jax.jit
def _nearest_shifted(
  images: jax.Array, bank: jax.Array, groups: jax.Array
) -> Nearest:
  """Finds the nearest images; `images` are all symmetries, `[8, B, ...]`."""
  flat = images.reshape(-1, *images.shape[2:])

  def windows(top, left):
    return _window(flat, top, left).reshape(*images.shape[:2], -1)

  _, found = _candidates(windows(_SHIFT, _SHIFT), bank, groups)
  close = bank[found]  # [B, candidates, F]
  shifted = jnp.concatenate([windows(i, j) for i in _SHIFTS for j in _SHIFTS])
  squares = _square_distances(shifted.swapaxes(0, 1), close).min(1)
  return _take(squares, found, groups)


def nearest_pixels(
  images: np.ndarray,
  bank: np.ndarray,
  groups: np.ndarray,
  description: str = '',
) -> Nearest:
  """Finds the nearest images by pixels, over symmetries and shifts.

  Args:
    images: uint8 `[B, S, S, 3]`.
    bank: `[N, F]`, from `describe`.
    groups: the lesion of each image in the bank, `[N]`.
    description: the text of the progress bar; without one there is no bar.

  Returns:
    The five nearest images of different lesions.
  """

  def search(i, block, numbers):
    forms = images_lib.symmetries(images[i : i + _CHUNK])
    reduced = jnp.stack([_reduce(form) for form in forms])
    return _nearest_shifted(reduced, block, numbers)

  with progress.bar(
    total=len(images), desc=description, unit='image', disable=not description
  ) as bar:
    return _search(search, len(images), bank, groups, bar)
