import collections
import itertools

import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.data import augment

_IMAGE = np.random.default_rng(0).integers(1, 256, (20, 20, 3), np.uint8)


def _rng(seed=0):
  return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def _input_stays_as_it_is():
  before = _IMAGE.copy()
  yield
  np.testing.assert_array_equal(_IMAGE, before)


def _symmetries(image):
  """The eight symmetries by definition: transposed or not, flipped or not."""
  for transpose, down, right in itertools.product([False, True], repeat=3):
    turned = image.transpose(1, 0, 2) if transpose else image
    yield turned[:: -1 if down else 1, :: -1 if right else 1]


def test_flip_and_turn_gives_all_symmetries_equally_often():
  rng, n = _rng(), 1600
  known = {x.tobytes(): i for i, x in enumerate(_symmetries(_IMAGE))}
  assert len(known) == 8
  counts = collections.Counter(
    known[augment.flip_and_turn(_IMAGE, rng).tobytes()] for _ in range(n)
  )
  assert len(counts) == 8
  chi_squared = sum((c - n / 8) ** 2 / (n / 8) for c in counts.values())
  assert chi_squared < 24.3  # 7 degrees of freedom, p = 0.001


def _holes(image):
  """Which pixels are black, [H, W]."""
  return np.all(image == 0, axis=-1)


def test_one_hole_is_a_box_inside_the_image():
  sides, corners = set(), set()
  for seed in range(400):
    out = augment.coarse_cutout(_IMAGE, _rng(seed), 1, 0.1, 0.2)
    hole = _holes(out)
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    assert hole[box].all()
    np.testing.assert_array_equal(out[~hole], _IMAGE[~hole])
    # A box that the border cuts off would have shorter sides.
    sides |= {len(rows), len(columns)}
    corners |= {('top', rows[0]), ('bottom', rows[-1])}
  assert sides == {2, 3}  # 0.1 to 0.2 of 20 pixels, rounded down
  assert {('top', 0), ('bottom', 19)} <= corners  # up to the very border


def test_number_of_holes():
  # Each hole has one pixel, so there are at most as many pixels as holes.
  counts = collections.Counter(
    int(_holes(augment.coarse_cutout(_IMAGE, _rng(s), 3, 0.01, 0.05)).sum())
    for s in range(600)
  )
  assert sorted(counts) == [1, 2, 3]
  assert min(counts.values()) > 150


def test_holes_of_images_that_are_not_square():
  image = np.full((10, 40, 3), 9, np.uint8)
  hole = _holes(augment.coarse_cutout(image, _rng(), 1, 0.5, 0.5))
  assert (hole.any(1).sum(), hole.any(0).sum()) == (5, 20)


def test_a_hole_may_be_the_whole_image():
  assert not augment.coarse_cutout(_IMAGE, _rng(), 1, 1.0, 1.0).any()


def test_rgb_shift_is_one_shift_a_channel_within_the_limit():
  image = np.full((4, 5, 3), 128, np.uint8)
  shifts = []
  for seed in range(500):
    out = augment.rgb_shift(image, _rng(seed), 20)
    assert (out.dtype, out.shape) == (np.uint8, image.shape)
    assert np.all(out == out[0, 0])  # the same everywhere
    shifts.append(out[0, 0].astype(int) - 128)
  shifts = np.array(shifts)
  assert (shifts.min(), shifts.max()) == (-20, 20)
  assert np.abs(shifts.mean(0)).max() < 2  # uniform: deviation 11.5 / sqrt(500)
  np.testing.assert_allclose(shifts.std(0), 20 / 3**0.5, rtol=0.1)
  assert np.abs(np.corrcoef(shifts.T) - np.eye(3)).max() < 0.2


def test_rgb_shift_is_clipped():
  image = np.stack([np.zeros((8, 8)), np.full((8, 8), 255)], -1)
  image = np.uint8(image[..., [0, 1, 0]])
  for seed in range(50):
    out = augment.rgb_shift(image, _rng(seed), 20)
    assert out[..., [0, 2]].max() <= 20
    assert out[..., 1].min() >= 235


# The transformation of records.


def _record():
  return {'image': _IMAGE, 'label': 3}


def test_nothing_is_on_by_default():
  record = _record()
  out = augment.Augment().random_map(record, _rng())
  assert out.keys() == {'image', 'label'}
  np.testing.assert_array_equal(out['image'], _IMAGE)


def test_records_without_an_image_are_left_alone():
  everything = augment.Augment(
    flips=True, rgb_shift_probability=1.0, cutout_probability=1.0
  )
  record = {'codes': np.arange(4), 'label': 3}
  assert everything.random_map(record, _rng()) is record


ON = {
  'flips': dict(flips=True),
  'rgb_shift': dict(rgb_shift_probability=1.0),
  'cutout': dict(cutout_probability=1.0),
  'all': dict(flips=True, rgb_shift_probability=1.0, cutout_probability=1.0),
}


@pytest.mark.parametrize('target', [augment.CLEAN, augment.AUGMENTED])
@pytest.mark.parametrize('fields', ON.values(), ids=ON)
def test_random_map(fields, target):
  transformation = augment.Augment(cutout_target=target, **fields)
  record = _record()
  out = transformation.random_map(record, _rng(1))
  assert record.keys() == {'image', 'label'} and record['image'] is _IMAGE
  assert (out['image'].shape, out['image'].dtype) == (_IMAGE.shape, np.uint8)
  assert out['label'] == 3
  assert np.any(out['image'] != _IMAGE)
  # The result depends only on the generator.
  again = transformation.random_map(_record(), _rng(1))
  np.testing.assert_array_equal(out['image'], again['image'])
  others = [
    transformation.random_map(_record(), _rng(seed))['image']
    for seed in range(2, 12)
  ]
  assert any(np.any(other != out['image']) for other in others)


@pytest.mark.parametrize('probability', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('name', ['rgb_shift', 'cutout'])
def test_probabilities(name, probability):
  transformation = augment.Augment(**{f'{name}_probability': probability})
  rng, n = _rng(), 600
  changed = [
    np.any(transformation.random_map(_record(), rng)['image'] != _IMAGE)
    for _ in range(n)
  ]
  assert abs(np.mean(changed) - probability) < 0.06


def test_clean_target_is_the_image_before_the_cutout():
  transformation = augment.Augment(
    flips=True, rgb_shift_probability=1.0, cutout_probability=0.5
  )
  cut = 0
  for seed in range(40):
    out = transformation.random_map(_record(), _rng(seed))
    hole = _holes(out['image'])
    cut += hole.any()
    # Outside the holes, the target is what the model sees.
    np.testing.assert_array_equal(out['image'][~hole], out['target'][~hole])
    assert not _holes(out['target']).any()
  assert 10 < cut < 30


def test_with_a_clean_target_every_record_has_one():
  transformation = augment.Augment(cutout_probability=1e-9)
  out = transformation.random_map(_record(), _rng())
  np.testing.assert_array_equal(out['target'], out['image'])


def test_there_is_no_augmented_target():
  transformation = augment.Augment(
    cutout_probability=1.0, cutout_target=augment.AUGMENTED
  )
  out = transformation.random_map(_record(), _rng())
  assert 'target' not in out
  assert _holes(out['image']).any()


def test_unknown_target():
  with pytest.raises(errors.UserError, match="'blurred'.*'clean'"):
    augment.Augment(cutout_target='blurred')


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('rgb_shift_probability', 1.5),
    ('rgb_shift_limit', -1),
    ('cutout_probability', -0.1),
    ('cutout_max_holes', 0),
    ('cutout_min_side', 0.0),
    ('cutout_min_side', 0.3),  # above cutout_max_side
    ('cutout_max_side', 1.1),
  ],
)
def test_values_out_of_range(name, value):
  with pytest.raises(errors.UserError, match=f'config.augment.{name} is'):
    augment.Augment(**{name: value})


def test_cutout_does_not_change_the_other_augmentations():
  """The same generator gives the same flips and colours."""
  plain = augment.Augment(flips=True, rgb_shift_probability=0.5)
  both = augment.Augment(
    flips=True, rgb_shift_probability=0.5, cutout_probability=1.0
  )
  for seed in range(10):
    a = plain.random_map(_record(), _rng(seed))
    b = both.random_map(_record(), _rng(seed))
    np.testing.assert_array_equal(a['image'], b['target'])
