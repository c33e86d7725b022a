"""Tests that the nearest real images are found."""

import numpy as np
import pytest

from dermvq_jax.data import images
from dermvq_jax.evaluation import nearest_images


def brightness(x):
  """The means of a 4x4 grid."""
  n = x.shape[1] // 4
  return x.reshape(len(x), 4, n, 4, n, 3).mean((2, 4)).reshape(len(x), -1)


def test_ratio_by_hand():
  points = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [50.0]])
  alone = np.arange(7)
  # Two forms of each image: the nearer one counts.
  forms = np.array([[[0.5], [100.0]], [[100.0], [1.0]]])
  found = nearest_images.nearest_features(forms, points, alone)
  np.testing.assert_allclose(found.distances[0], [0.5, 0.5, 1.5, 2.5, 3.5])
  np.testing.assert_allclose(found.distances[1], [0, 1, 1, 2, 3], atol=1e-6)
  np.testing.assert_allclose(found.ratio, [0.5 / 1.7, 0], atol=1e-6)
  same = nearest_images.nearest_features(forms, np.zeros((9, 1)), np.arange(9))
  assert np.isfinite(same.ratio).all()
  few = nearest_images.nearest_features(forms, points[:2], alone[:2])
  np.testing.assert_array_equal(np.isfinite(few.distances).sum(1), 2)
  np.testing.assert_allclose(few.ratio, [1, 0], atol=1e-6)


@pytest.mark.parametrize('photographs', [255, 256, 300])
def test_a_lesion_with_more_photographs_than_candidates(photographs):
  """The copy of an image is found by features and by pixels."""
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (16, 16, 3)).repeat(4, 0).repeat(4, 1)
  noisy = [np.clip(x + rng.normal(0, 2, x.shape), 0, 255) for _ in range(20)]
  near = [noisy[i % 20] for i in range(photographs)]
  far = rng.integers(0, 256, (40, 16, 16, 3)).repeat(4, 1).repeat(4, 2)
  bank = nearest_images.describe(np.uint8([*near, *far]))
  groups = np.array(['one'] * photographs + [f'{i}' for i in range(len(far))])
  copy = np.uint8(x)[None, ::-1]
  by_features = np.stack(
    [nearest_images.describe(f) for f in images.symmetries(copy)]
  )
  for found in (
    nearest_images.nearest_pixels(copy, bank, groups),
    nearest_images.nearest_features(by_features, bank, groups),
  ):
    assert groups[found.indices[0, 0]] == 'one'
    assert len(set(groups[found.indices[0]])) == 5
    assert found.ratio[0] < 0.1


def test_ratio_of_lesions_by_hand():
  """Only the nearest image of a lesion counts."""
  points = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [50.0]])
  forms = np.array([[[0.4]]])
  groups = np.array(list('aaabbcd'))
  found = nearest_images.nearest_features(forms, points, groups)
  np.testing.assert_allclose(
    found.distances, [[0.4, 2.6, 4.6, 49.6, np.inf]], rtol=1e-5
  )
  np.testing.assert_array_equal(found.indices[0, :4], [0, 3, 5, 6])
  np.testing.assert_allclose(found.ratio, [0.4 / 14.3], rtol=1e-5)
  # All are equally near: the first one counts.
  tied = nearest_images.nearest_features(
    forms, np.zeros((9, 1)), np.array(list('aabbccdde'))
  )
  np.testing.assert_array_equal(tied.indices[0], [0, 2, 4, 6, 8])
  one = nearest_images.nearest_features(forms, points, np.zeros(7))
  np.testing.assert_allclose(one.ratio, [1])


def records(name, pictures):
  return [
    {'image': x, 'id': b'%s%d' % (name, i), 'group': b'%s%d' % (name, i // 2)}
    for i, x in enumerate(pictures)
  ]


def test_make_bank_holds_all_records_in_order(monkeypatch):
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (7, 16, 16, 3), np.uint8)
  monkeypatch.setattr(nearest_images, '_READ_AT_ONCE', 3)
  bank = nearest_images.make_bank(records(b'a', pictures), brightness, '')
  np.testing.assert_allclose(bank.features, brightness(pictures), rtol=1e-6)
  np.testing.assert_array_equal(bank.pixels, nearest_images.describe(pictures))
  assert bank.ids.tolist() == ['a0', 'a1', 'a2', 'a3', 'a4', 'a5', 'a6']
  assert bank.groups.tolist() == ['a0', 'a0', 'a1', 'a1', 'a2', 'a2', 'a3']
  by_pixels = nearest_images.make_bank(records(b'a', pictures), None, '')
  assert by_pixels.features is None


def test_symmetries_are_the_eight():
  x = np.arange(2 * 3 * 3 * 1).reshape(2, 3, 3, 1)
  forms = images.symmetries(x)
  assert len({form[0].tobytes() for form in forms}) == 8
  np.testing.assert_array_equal(forms[0], x)


def test_a_bank_is_searched_in_blocks(monkeypatch):
  """Blocks find what is found at once, over symmetries, shifts and lesions."""
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (40, 16, 16, 3)).repeat(4, 1).repeat(4, 2)
  pictures = np.uint8(pictures)
  groups = np.array([f'{i // 2}' for i in range(40)])
  bank = nearest_images.describe(pictures)
  new = np.stack([pictures[33][::-1], np.roll(pictures[2], 4, 0)])
  at_once = nearest_images.nearest_pixels(new, bank, groups)
  assert at_once.indices[:, 0].tolist() == [33, 2]
  monkeypatch.setattr(nearest_images, '_BLOCK', 15)
  found = nearest_images.nearest_pixels(new, bank, groups)
  np.testing.assert_array_equal(found.indices, at_once.indices)
  np.testing.assert_allclose(found.distances, at_once.distances, atol=1e-4)
