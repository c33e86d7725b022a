"""Whether new images are copies of training images.

This module answers two questions.

*Is this image a copy?* The answer is its **memorisation ratio**: the distance
to the nearest training image, divided by the mean distance to the five nearest
lesions. Only the nearest photograph of a lesion counts, because all photographs
of one lesion are close to its copy. The ratio is 0 for a copy. It is near 1 for
an image whose nearest lesions are about equally far, whether that part of the
space is crowded or empty. (After Carlini et al. 2023, section 4.2, who use
fifty neighbours; with five, held-out images and shifted copies are easier to
tell apart.) An image is flagged as a copy if its ratio is below a threshold,
which is learned from held-out images, because they cannot be copies.

*Does the model know the training images better than others?* The answer is the
share of new images that are closer to a training image than to a held-out
image. If the model had not seen the training images, training and held-out
images would be interchangeable, and this share would be the share of training
images among all of them. A permutation test, which exchanges training and
held-out lesions, shows how far the share moves by chance alone. (The
data-copying test of Meehan et al. 2020 compares the distances of samples with
the distances of held-out images, so it takes blurred samples for copies.)
"""

from collections.abc import Iterator

import numpy as np
import scipy.stats

from dermvq_jax.evaluation import feature_spaces, nearest_images, results

# The threshold is this fraction of this quantile of held-out images' ratios.
# It flags one of 999 real images, and every copy in the tests.
_QUANTILE, _MARGIN = 0.01, 0.75
_NUM_PERMUTATIONS = 10_000
_QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1)  # reported


def threshold(held_out_ratios: np.ndarray) -> float:
  """The memorisation ratio below which an image is flagged as a copy.

  It is three quarters of the first percentile of the held-out images' ratios.
  """
  return float(_MARGIN * np.quantile(held_out_ratios, _QUANTILE))


def num_false_alarms(held_out_ratios: np.ndarray, groups: np.ndarray) -> int:
  """How many held-out images are flagged as copies.

  The threshold for each half of the lesions is learned from the other half.

  Args:
    held_out_ratios: `[N]`.
    groups: the lesion of each, `[N]`; at least two lesions.
  """
  even = nearest_images.number_groups(groups) % 2 == 0
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
  """Tests whether images are closer to training images than by chance.

  The permutation test moves entire groups between training and held-out images;
  it is one-sided.

  Args:
    nearest_groups: for each new image the group (lesion) of the nearest image,
      training or held-out, `[B]`.
    train_groups: the group of each training image.
    held_out_groups: the group of each held-out image; none is in
      `train_groups`.
    seed: the seed of the permutations.

  Returns:
    `share_closer_to_train`, `expected_share` and `p_value`, see
    `results.SpaceMemorisation`.
  """
  groups, counts = np.unique(nearest_groups, return_counts=True)
  closer = counts[np.isin(groups, train_groups)].sum()
  num_train = len(np.unique(train_groups))
  num_held_out = len(np.unique(held_out_groups))
  rng = np.random.default_rng(seed)
  # Groups that are nearest to no new image do not matter. The number of the
  # others that are in training is hypergeometric; shuffling chooses which.
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
  """P-value of ratios that are lower than held-out ones (Mann-Whitney)."""
  return float(
    scipy.stats.mannwhitneyu(ratios, held_out_ratios, alternative='less').pvalue
  )


def _in_spaces(
  images: np.ndarray,
  space: feature_spaces.Features | None,
  banks: dict[str, nearest_images.Bank],
  name: str,
) -> Iterator[tuple[str, dict[str, nearest_images.Nearest]]]:
  """Yields the nearest images in each bank: by pixels, then by features."""
  yield (
    'pixels',
    {
      key: nearest_images.nearest_pixels(
        images, bank.pixels, bank.groups, f'{name}: nearest {key}'
      )
      for key, bank in banks.items()
    },
  )
  if space is not None:
    forms = feature_spaces.extract(
      space, images, f'{name}: features', symmetries=True
    )
    yield (
      'features',
      {
        key: nearest_images.nearest_features(forms, bank.features, bank.groups)
        for key, bank in banks.items()
      },
    )


def _quantiles(values: np.ndarray) -> dict[str, float]:
  return {str(q): float(np.quantile(values, q)) for q in _QUANTILES}


def measure(
  samples: np.ndarray,
  held_out: np.ndarray,
  banks: dict[str, nearest_images.Bank],
  space: feature_spaces.Features | None,
) -> tuple[results.MemorisationResult, dict[str, np.ndarray]]:
  """Measures whether samples are copies of training images.

  Args:
    samples: uint8 `[B, H, W, 3]`.
    held_out: the held-out images, encoded and decoded, in the order of their
      bank, uint8 `[N, H, W, 3]`.
    banks: `train` and `held_out`, the real images.
    space: the space of features; None: by pixels only.

  Returns:
    The result, and arrays `[B]` for each space, `pixels` or `features`:
    `<space>_ratio`, `<space>_copied` (whether the sample is flagged), and for
    the nearest image in each bank `<space>_<bank>_index`, `_id`, `_distance`.
  """
  spaces, arrays = {}, {}
  near_held_out = dict(
    _in_spaces(held_out, space, {'train': banks['train']}, 'held-out images')
  )
  for name, near in _in_spaces(samples, space, banks, 'samples'):
    ratios = near['train'].ratio
    held_out_ratios = near_held_out[name]['train'].ratio
    limit = threshold(held_out_ratios)
    copied = ratios < limit
    distances = {key: found.distances[:, 0] for key, found in near.items()}
    first = {key: found.indices[:, 0] for key, found in near.items()}
    groups = {key: banks[key].groups[index] for key, index in first.items()}
    spaces[name] = results.SpaceMemorisation(
      threshold=limit,
      num_copied=int(copied.sum()),
      num_held_out_copied=num_false_alarms(
        held_out_ratios, banks['held_out'].groups
      ),
      ratio_quantiles=_quantiles(ratios),
      held_out_ratio_quantiles=_quantiles(held_out_ratios),
      ratio_p_value=ratio_test(ratios, held_out_ratios),
      **share_test(
        np.where(
          distances['train'] < distances['held_out'],
          groups['train'],
          groups['held_out'],
        ),
        banks['train'].groups,
        banks['held_out'].groups,
      ),
    )
    arrays |= {f'{name}_ratio': ratios, f'{name}_copied': copied}
    for key, index in first.items():
      arrays[f'{name}_{key}_index'] = index
      arrays[f'{name}_{key}_id'] = banks[key].ids[index]
      arrays[f'{name}_{key}_distance'] = distances[key]
  result = results.MemorisationResult(
    num_samples=len(samples),
    num_train=len(banks['train'].ids),
    num_held_out=len(banks['held_out'].ids),
    spaces=spaces,
  )
  return result, arrays
