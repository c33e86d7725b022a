"""Whether new images are copies of training images.

Two questions, two answers.

*Is this image a copy?* Its closeness ratio: the distance to the nearest
training image over the mean distance to the nearest five, of different lesions:
several photographs of one are all near its copy. It is 0 for a copy, and near 1
for an image that is as far from its nearest as from others, in a crowded part
of the space as in an empty one (after Carlini et al. 2023, section 4.2, who use
fifty; five tell held-out images and shifted copies better apart). Below which
ratio an image is called a copy is learned from held-out images, which can not
be copies.

*Does the model know the training images better than others?* The share of new
images that are closer to the training than to the held-out images. Had the
model not been trained on the former, both kinds were interchangeable, and the
expected share is that of the training images among all. How far chance alone
moves the share is computed exactly, by permuting which lesions are in training.
(The data-copying test of Meehan et al. 2020 compares distances of samples and
held-out images instead, so that merely blurred samples pass for copies.)

Distances of pixels are blind to the square's eight symmetries and to shifts of
up to a sixteenth of the side, and nearly so to noise and compression.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from dermvq_jax import progress
from dermvq_jax.data import images as images_lib
from dermvq_jax.evaluation import feature_spaces as features_lib

# Distances are between images of this side, cut off by the greatest shift on
# each side and then averaged over blocks.
_SIDE, _SHIFT, _BLOCK = 32, 2, 2
_SHIFTS = range(2 * _SHIFT + 1)
# Nearest training images that the ratio is of.
_NEIGHBOURS = 5
# Those without a shift are found first; among so many images, and the first of
# the nearest lesions, the shifted are looked for. A copy shifted the farthest
# is among them, as tests show.
_CANDIDATES = 256
_CHUNK = 16  # images at a time
_READ_AT_ONCE = 512
# A ratio is called low when it is this much below those of nearly all held-out
# images. Of 999 real ones one is, and all copies that the tests try are.
_QUANTILE, _MARGIN = 0.01, 0.75
_NUM_PERMUTATIONS = 10_000
_QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1)  # that are told


@jax.jit
def _reduce(images: jax.Array) -> jax.Array:
  images = images.astype(jnp.float32) / 255
  shape = (len(images), _SIDE, _SIDE, images.shape[-1])
  return jax.image.resize(images, shape, 'linear', antialias=True)


def _window(reduced: jax.Array, top: int, left: int) -> jax.Array:
  """`[B, _SIDE, _SIDE, C]` to the descriptors of a window, `[B, F]`."""
  size = _SIDE - 2 * _SHIFT
  x = reduced[:, top : top + size, left : left + size]
  n = size // _BLOCK
  x = x.reshape(len(x), n, _BLOCK, n, _BLOCK, -1).mean((2, 4))
  return x.reshape(len(x), -1)


def describe(images: np.ndarray) -> np.ndarray:
  """What pixel distances are between: uint8 `[B, H, W, 3]` to `[B, F]`."""
  return np.asarray(_window(_reduce(images), _SHIFT, _SHIFT))


def _square_distances(a: jax.Array, b: jax.Array) -> jax.Array:
  """`[..., N, F]` and `[..., M, F]` to `[..., N, M]`."""
  products = jnp.einsum('...nf,...mf->...nm', a, b)
  squares = (a**2).sum(-1)[..., :, None] + (b**2).sum(-1)[..., None, :]
  return jnp.maximum(squares - 2 * products, 0)


@flax.struct.dataclass
class Nearest:
  """The nearest of a bank, nearest first, one of each lesion.

  Attributes:
    distances: float32 `[B, k]`; infinite where there are fewer lesions near.
    indices: int32 `[B, k]`, into the bank.
  """

  distances: np.ndarray
  indices: np.ndarray

  @property
  def ratio(self) -> np.ndarray:
    """The closeness ratio `[B]`: 0 of a copy, 1 of one far from all."""
    there = np.isfinite(self.distances)
    mean = np.where(there, self.distances, 0).sum(1) / there.sum(1)
    return self.distances[:, 0] / np.where(mean > 0, mean, 1)


def _first_of_each(squares: jax.Array, groups: jax.Array) -> jax.Array:
  """Infinity for all but the nearest of each group; all `[B, M]`.

  The same image twice counts once.
  """
  number = jnp.arange(squares.shape[1])
  a, b = squares[:, :, None], squares[:, None]
  before = (b < a) | ((b == a) & (number < number[:, None]))
  same = groups[:, :, None] == groups[:, None]
  return jnp.where((before & same).any(-1), jnp.inf, squares)


def _take(squares: jax.Array, found: jax.Array, groups: jax.Array) -> Nearest:
  """The nearest of different groups, of those `found`, `[B, M]`."""
  squares = _first_of_each(squares, groups[found])
  best, order = jax.lax.top_k(-squares, min(_NEIGHBOURS, squares.shape[1]))
  return Nearest(
    jnp.sqrt(jnp.abs(best)), jnp.take_along_axis(found, order, axis=1)
  )


def _nearest_of_groups(squares: jax.Array, groups: jax.Array) -> jax.Array:
  """The nearest image of each of the nearest groups: `[B, N]` to `[B, k]`."""
  n = len(groups)
  least = jax.ops.segment_min(
    squares.T, groups, n
  )  # [G, B]; inf where no group
  is_least = least[groups] == squares.T
  number = jnp.where(is_least, jnp.arange(n)[:, None], n)
  first = jax.ops.segment_min(number, groups, n)
  _, nearest = jax.lax.top_k(-least.T, min(_NEIGHBOURS, n))
  found = jnp.take_along_axis(first.T, nearest, axis=1)
  return jnp.minimum(found, n - 1)  # with fewer groups, any image once more


def _candidates(
  variants: jax.Array, bank: jax.Array, groups: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Square distances and indices `[B, M]` of the nearest by any of `[V, B, F]`.

  The nearest images, and the nearest one of each of the nearest groups: images
  of a single group may fill the former.
  """
  squares = _square_distances(variants, bank).min(0)  # [B, N]
  _, found = jax.lax.top_k(-squares, min(_CANDIDATES, len(bank)))
  found = jnp.concatenate([found, _nearest_of_groups(squares, groups)], axis=1)
  return jnp.take_along_axis(squares, found, axis=1), found


@jax.jit
def _nearest(
  variants: jax.Array, bank: jax.Array, groups: jax.Array
) -> Nearest:
  """Nearest over all variants `[V, B, F]` of the images."""
  return _take(*_candidates(variants, bank, groups), groups)


def _numbers(groups: np.ndarray) -> np.ndarray:
  return np.unique(groups, return_inverse=True)[1].astype(np.int32)


def nearest_features(
  variants: np.ndarray, bank: np.ndarray, groups: np.ndarray
) -> Nearest:
  """Nearest in any space of features.

  Args:
    variants: `[V, B, F]`, features of V forms of each image.
    bank: `[N, F]`.
    groups: lesion of each of the bank, `[N]`.

  Returns:
    The five nearest of different lesions, by the form that is nearest.
  """
  numbers = _numbers(groups)
  parts = [
    jax.device_get(_nearest(variants[:, i : i + _CHUNK], bank, numbers))
    for i in range(0, variants.shape[1], _CHUNK)
  ]
  return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


@jax.jit
def _nearest_shifted(
  images: jax.Array, bank: jax.Array, groups: jax.Array
) -> Nearest:
  """`images`: the eight symmetries of some, reduced, `[8, B, ...]`."""
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
  description: str = 'nearest images',
) -> Nearest:
  """Nearest by pixels, over symmetries and shifts.

  Args:
    images: uint8 `[B, S, S, 3]`.
    bank: `[N, F]`, from `describe`.
    groups: lesion of each of the bank, `[N]`.
    description: of the progress bar.

  Returns:
    The five nearest of different lesions.
  """
  bank, numbers = jnp.asarray(bank), _numbers(groups)
  parts = []
  with progress.bar(total=len(images), desc=description, unit='image') as bar:
    for i in range(0, len(images), _CHUNK):
      forms = images_lib.symmetries(images[i : i + _CHUNK])
      reduced = jnp.stack([_reduce(form) for form in forms])
      parts.append(jax.device_get(_nearest_shifted(reduced, bank, numbers)))
      bar.update(len(forms[0]))
  return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def threshold(held_out_ratios: np.ndarray) -> float:
  """The ratio below which an image is called a copy.

  Three quarters of the first percentile of held-out images' ratios.
  """
  return float(_MARGIN * np.quantile(held_out_ratios, _QUANTILE))


def num_false_alarms(held_out_ratios: np.ndarray, groups: np.ndarray) -> int:
  """How many held-out images are called copies by what others have taught.

  Args:
    held_out_ratios: `[N]`.
    groups: lesion of each, `[N]`, two at least; the threshold for one half of
      them is learned from the other.
  """
  even = _numbers(groups) % 2 == 0
  return sum(
    int((held_out_ratios[half] < threshold(held_out_ratios[~half])).sum())
    for half in (even, ~even)
  )


def share_test(
  nearest_groups: np.ndarray,
  train_groups: np.ndarray,
  held_out_groups: np.ndarray,
  seed: int = 0,
) -> dict[str, float]:
  """Whether images are closer to the training images than chance has it.

  Args:
    nearest_groups: of each new image, the group (lesion) of the nearest image,
      training or held-out, `[B]`.
    train_groups: group of each training image.
    held_out_groups: group of each held-out image; never one of the former.
    seed: of the permutations.

  Returns:
    `share_closer_to_train`, `expected_share`, `p_value` (one-sided, of a
    permutation test that moves whole groups between training and held-out).
  """
  groups, counts = np.unique(nearest_groups, return_counts=True)
  closer = counts[np.isin(groups, train_groups)].sum()
  num_train = len(np.unique(train_groups))
  num_held_out = len(np.unique(held_out_groups))
  rng = np.random.default_rng(seed)
  # Groups that are next to no new image do not matter. Of the others a
  # hypergeometric number is in training; which ones is a matter of shuffling.
  numbers = rng.hypergeometric(
    num_train, num_held_out, len(groups), _NUM_PERMUTATIONS
  )
  permuted = [rng.permutation(counts)[:number].sum() for number in numbers]
  extreme = (np.asarray(permuted) >= closer).sum()
  return {
    'share_closer_to_train': float(closer / len(nearest_groups)),
    'expected_share': num_train / (num_train + num_held_out),
    'p_value': float((1 + extreme) / (1 + _NUM_PERMUTATIONS)),
  }


def ratio_test(ratios: np.ndarray, held_out_ratios: np.ndarray) -> float:
  """P-value that ratios are no lower than held-out ones (Mann-Whitney)."""
  return float(
    scipy.stats.mannwhitneyu(ratios, held_out_ratios, alternative='less').pvalue
  )


@dataclasses.dataclass(frozen=True)
class Bank:
  """Real images that new ones are compared with, without their pixels.

  Attributes:
    pixels: `[N, F]`, of `describe`.
    features: `[N, F']`, or None without a space of features.
    ids: str `[N]`.
    groups: str `[N]`, of lesions or patients.
  """

  pixels: np.ndarray
  features: np.ndarray | None
  ids: np.ndarray
  groups: np.ndarray


def make_bank(
  source: Sequence[dict[str, Any]],
  space: features_lib.Features | None,
  description: str,
) -> Bank:
  """Describes all records of an image dataset; few are in memory at a time."""
  pixels, found, ids, groups = [], [], [], []
  with progress.bar(total=len(source), desc=description, unit='image') as bar:
    for start in range(0, len(source), _READ_AT_ONCE):
      stop = min(start + _READ_AT_ONCE, len(source))
      records = [source[i] for i in range(start, stop)]
      images = np.stack([record['image'] for record in records])
      pixels.append(describe(images))
      if space is not None:
        found.append(features_lib.extract(space, images))
      ids += [record['id'].decode() for record in records]
      groups += [record['group'].decode() for record in records]
      bar.update(len(records))
  return Bank(
    np.concatenate(pixels),
    np.concatenate(found) if found else None,
    np.array(ids),
    np.array(groups),
  )


def _in_spaces(
  images: np.ndarray,
  space: features_lib.Features | None,
  banks: dict[str, Bank],
  name: str,
) -> Iterator[tuple[str, dict[str, Nearest]]]:
  """By pixels, then by features: the nearest in each bank."""
  yield (
    'pixels',
    {
      key: nearest_pixels(
        images, bank.pixels, bank.groups, f'{name}: nearest {key}'
      )
      for key, bank in banks.items()
    },
  )
  if space is not None:
    forms = features_lib.extract(
      space, images, f'{name}: turned', symmetries=True
    )
    yield (
      'features',
      {
        key: nearest_features(forms, bank.features, bank.groups)
        for key, bank in banks.items()
      },
    )


def _quantiles(values: np.ndarray) -> dict[str, float]:
  return {str(q): float(np.quantile(values, q)) for q in _QUANTILES}


def measure(
  samples: np.ndarray,
  held_out: np.ndarray,
  banks: dict[str, Bank],
  space: features_lib.Features | None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Whether samples are copies of training images.

  Args:
    samples: uint8 `[B, H, W, 3]`.
    held_out: uint8 `[N, H, W, 3]`, held-out images as the VQ-VAE decodes them,
      in the order of their bank.
    banks: `train` and `held_out`, the real images.
    space: of features, if there is one.

  Returns:
    The result for `run`'s `memorisation`, and of each space the arrays
    `<space>_<what>` `[B]`: `ratio`, `copied`, and of the nearest image of
    either bank `<bank>_index`, `<bank>_id`, `<bank>_distance`.
  """
  spaces, arrays = {}, {}
  near_held_out = dict(
    _in_spaces(held_out, space, {'train': banks['train']}, 'held-out images')
  )
  for name, near in _in_spaces(samples, space, banks, 'samples'):
    ratios, expected = near['train'].ratio, near_held_out[name]['train'].ratio
    limit = threshold(expected)
    copied = ratios < limit
    distances = {key: found.distances[:, 0] for key, found in near.items()}
    first = {key: found.indices[:, 0] for key, found in near.items()}
    groups = {key: banks[key].groups[index] for key, index in first.items()}
    spaces[name] = {
      'threshold': limit,
      'num_copied': int(copied.sum()),
      'num_held_out_copied': num_false_alarms(
        expected, banks['held_out'].groups
      ),
      'ratio_quantiles': _quantiles(ratios),
      'held_out_ratio_quantiles': _quantiles(expected),
      'ratio_p_value': ratio_test(ratios, expected),
      **share_test(
        np.where(
          distances['train'] < distances['held_out'],
          groups['train'],
          groups['held_out'],
        ),
        banks['train'].groups,
        banks['held_out'].groups,
      ),
    }
    arrays |= {f'{name}_ratio': ratios, f'{name}_copied': copied}
    for key, index in first.items():
      arrays[f'{name}_{key}_index'] = index
      arrays[f'{name}_{key}_id'] = banks[key].ids[index]
      arrays[f'{name}_{key}_distance'] = distances[key]
  result = {
    'num_samples': len(samples),
    'num_train': len(banks['train'].ids),
    'num_held_out': len(banks['held_out'].ids),
    'spaces': spaces,
  }
  return result, arrays
