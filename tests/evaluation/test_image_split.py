"""Tests that a split is read once, and of the values computed from it."""

import collections

import numpy as np
import pytest

from dermvq_jax.evaluation import image_split, nearest_images


class Records:
  """Records of random images that count how often they are read."""

  def __init__(self, count, seed):
    rng = np.random.default_rng(seed)
    self.images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    self.reads = collections.Counter()

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    self.reads[index] += 1
    return {
      'image': self.images[index],
      'label': index % 3,
      'id': b'id%d' % index,
      'group': b'group%d' % (index // 2),
    }


class Negative:
  """A model whose reconstructions are negatives; it counts them."""

  def __init__(self):
    self.count = 0

  def reconstruct(self, images):
    self.count += len(images)
    return 255 - images


class Brightness:
  """A space of features that counts its images."""

  def __init__(self):
    self.count = 0

  def __call__(self, images):
    self.count += len(images)
    return images.reshape(len(images), -1, 3).mean(1)


def test_each_thing_is_computed_once():
  records, model, space = Records(5, 0), Negative(), Brightness()
  split = image_split.ImageSplit('val', records, model)
  assert (len(split), split.name) == (5, 'val')
  assert not records.reads  # Nothing is read before it is needed.
  for _ in range(2):
    np.testing.assert_array_equal(split.images, records.images)
    np.testing.assert_array_equal(split.labels, [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(split.reconstructions, 255 - records.images)
    np.testing.assert_allclose(
      split.features(space),
      records.images.reshape(5, -1, 3).mean(1),
      rtol=1e-6,
    )
    np.testing.assert_array_equal(split.image(3), records.images[3])
    image_split.make_bank([split], space)
  assert records.reads == dict.fromkeys(range(5), 1)
  assert model.count == space.count == 5
  # Each space has its own features.
  other = Brightness()
  split.features(other)
  assert (space.count, other.count) == (5, 5)


@pytest.mark.parametrize('space', [None, Brightness()])
def test_bank_of_several_splits(space):
  both = [Records(5, 0), Records(4, 1)]
  splits = [image_split.ImageSplit('', r, None) for r in both]
  bank = image_split.make_bank(splits, space)
  images = np.concatenate([r.images for r in both])
  np.testing.assert_array_equal(bank.pixels, nearest_images.describe(images))
  assert bank.ids.tolist() == [f'id{i}' for i in [*range(5), *range(4)]]
  assert bank.groups[[0, 4, 8]].tolist() == ['group0', 'group2', 'group1']
  if space is None:
    assert bank.features is None
  else:
    np.testing.assert_allclose(bank.features, space(images), rtol=1e-6)


def test_split_that_is_not_in_memory():
  records, space = Records(5, 0), Brightness()
  split = image_split.ImageSplit('train', records, None, in_memory=False)
  bank = image_split.make_bank([split], space)
  in_memory = image_split.ImageSplit('train', records, None)
  expected = image_split.make_bank([in_memory], space)
  for name in ('pixels', 'features', 'ids', 'groups'):
    np.testing.assert_array_equal(getattr(bank, name), getattr(expected, name))
  records.reads.clear()
  np.testing.assert_array_equal(split.image(2), records.images[2])
  assert records.reads == {2: 1}
