"""Tests that copies are found, and nothing else."""

import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.data import images, prepared
from dermvq_jax.data.datasets import synthetic_dermoscopy
from dermvq_jax.evaluation import feature_spaces, memorisation
from dermvq_jax.generation import generate

NUM_COPIES = 30


def compress(image, quality):
  file = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(
    file, 'JPEG', quality=quality
  )
  return np.asarray(Image.open(file))


def shift(image, down, right):
  """Moves an image; what comes in repeats the edge."""
  n = max(abs(down), abs(right))
  wide = np.pad(image, ((n, n), (n, n), (0, 0)), 'edge')
  size = len(image)
  return wide[n - down : n - down + size, n - right : n - right + size]


# What makes of a training image one that is still the same lesion.
COPIES = {
  'same': lambda x: x,
  'jpeg': lambda x: compress(x, 60),
  'coarse jpeg': lambda x: compress(x, 20),
  'flipped': lambda x: x[:, ::-1],
  'turned': lambda x: np.rot90(x),
  'shifted by 1': lambda x: shift(x, 1, -1),
  'shifted by 3': lambda x: shift(x, -3, 2),
  'shifted by 4': lambda x: shift(x, 4, 4),
  'all of it': lambda x: compress(shift(np.rot90(x[::-1]), -2, 3), 60),
  'noisy': lambda x: np.uint8(
    np.clip(x + np.random.default_rng(0).normal(0, 8, x.shape), 0, 255)
  ),
}


NUM = {'train': 320, 'val': 100, 'test': 100}


def synthetic():
  """Generated images."""
  label_of = synthetic_dermoscopy.label_of
  return [
    synthetic_dermoscopy.render(i, label_of(i), 64)
    for i in range(sum(NUM.values()))
  ]


def real():
  """Some of the real images, of different lesions."""
  folder = os.environ.get('DERMVQ_HAM10000_DIR')
  if not folder:
    pytest.skip('DERMVQ_HAM10000_DIR is not set')
  files = sorted(pathlib.Path(folder).glob('*/*.jpg'))
  files = files[:: len(files) // sum(NUM.values())][: sum(NUM.values())]
  return [images.read_square(file, 64) for file in files]


@pytest.fixture(scope='module', params=[synthetic, real])
def splits(request):
  """Training, held-out, and other held-out images that set the bar."""
  made = np.stack(request.param())
  parts = np.split(made, np.cumsum(list(NUM.values()))[:-1])
  return dict(zip(NUM, parts))


@pytest.fixture(scope='module')
def bank(splits):
  return memorisation.describe(splits['train'])


def nearest(images, bank):
  """In a bank of one image a lesion."""
  return memorisation.nearest_pixels(images, bank, np.arange(len(bank)))


@pytest.fixture(scope='module')
def threshold(splits, bank):
  found = nearest(splits['val'], bank)
  return memorisation.threshold(found.ratio)


@pytest.mark.parametrize('kind', COPIES)
def test_copies_are_found(splits, bank, threshold, kind):
  copies = np.stack([COPIES[kind](x) for x in splits['train'][:NUM_COPIES]])
  found = nearest(copies, bank)
  assert (found.ratio < threshold).all()
  np.testing.assert_array_equal(found.indices[:, 0], np.arange(NUM_COPIES))


def test_held_out_images_are_not(splits, bank, threshold):
  found = nearest(splits['test'], bank)
  assert not (found.ratio < threshold).any()
  assert (np.diff(found.distances, axis=1) >= 0).all()


def test_each_image_is_its_own_nearest(splits, bank):
  """Also where it is shifted as far as is looked, and turned."""
  turned = np.stack(
    [np.rot90(shift(x, 4, -4), 3) for x in splits['train'][:NUM_COPIES]]
  )
  found = nearest(turned, bank)
  np.testing.assert_array_equal(found.indices[:, 0], np.arange(NUM_COPIES))
  assert np.median(found.ratio) < 0.05  # What came in is cut off again.


def test_copies_of_lesions_with_many_photographs(splits, bank, threshold):
  """Each of the lesions has six, a little shifted and brighter."""
  lesions = splits['train'][:NUM_COPIES]
  more = [
    shift(np.minimum(x, 255 - i) + np.uint8(i), i % 3 - 1, i % 2)
    for x in lesions
    for i in range(1, 6)
  ]
  whole = np.concatenate([bank, memorisation.describe(np.stack(more))])
  groups = np.concatenate(
    [np.arange(len(bank)), np.repeat(np.arange(NUM_COPIES), 5)]
  )
  copies = np.stack([COPIES['jpeg'](x) for x in lesions])
  found = memorisation.nearest_pixels(copies, whole, groups)
  assert (found.ratio < threshold).all()
  np.testing.assert_array_equal(groups[found.indices[:, 0]], range(NUM_COPIES))
  assert all(len(set(groups[row])) == 5 for row in found.indices)
  # As images of different lesions they would hide each other.
  hidden = nearest(copies, whole).ratio
  assert np.median(hidden) > 1.5 * np.median(found.ratio)


def brightness(x):
  """Some features: means of a 4x4 grid."""
  n = x.shape[1] // 4
  return x.reshape(len(x), 4, n, 4, n, 3).mean((2, 4)).reshape(len(x), -1)


def banks_of(splits):
  def records(name):
    return [
      {'image': x, 'id': b'%s%d' % (name, i), 'group': b'%s%d' % (name, i)}
      for i, x in enumerate(splits[name.decode()])
    ]

  return {
    'train': memorisation.make_bank(records(b'train'), brightness, 'train'),
    'held_out': memorisation.make_bank(records(b'val'), brightness, 'val'),
  }


def test_measure_finds_planted_copies(splits):
  """Among new images, in both spaces, and says of which they are."""
  planted = [COPIES['jpeg'](x)[::-1] for x in splits['train'][:NUM_COPIES]]
  new = np.concatenate([planted, splits['test']])
  result, arrays = memorisation.measure(
    new, splits['val'], banks_of(splits), brightness
  )
  for space in ('pixels', 'features'):
    row = result['spaces'][space]
    assert row['num_copied'] == NUM_COPIES
    assert row['num_held_out_copied'] == 0
    assert arrays[f'{space}_copied'][:NUM_COPIES].all()
    ids = arrays[f'{space}_train_id'][:NUM_COPIES]
    assert ids.tolist() == [f'train{i}' for i in range(NUM_COPIES)]
  assert result['num_samples'] == len(new)
  # If nothing but copies is made, that is all too clear.
  copies, _ = memorisation.measure(
    np.stack(planted), splits['val'], banks_of(splits), None
  )
  assert list(copies['spaces']) == ['pixels']
  row = copies['spaces']['pixels']
  assert row['share_closer_to_train'] == 1
  assert row['ratio_p_value'] < 1e-6


def test_measure_is_quiet_on_held_out_images(splits):
  result, _ = memorisation.measure(
    splits['test'], splits['val'], banks_of(splits), brightness
  )
  for row in result['spaces'].values():
    assert row['num_copied'] == 0
    assert row['p_value'] > 0.01
    assert row['ratio_p_value'] > 0.01
    assert row['expected_share'] == len(splits['train']) / (
      len(splits['train']) + len(splits['val'])
    )


# Parts.


def test_ratio_by_hand():
  points = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [50.0]])
  alone = np.arange(7)
  # Two forms of each image: the nearer one counts.
  forms = np.array([[[0.5], [100.0]], [[100.0], [1.0]]])
  found = memorisation.nearest_features(forms, points, alone)
  np.testing.assert_allclose(found.distances[0], [0.5, 0.5, 1.5, 2.5, 3.5])
  np.testing.assert_allclose(found.distances[1], [0, 1, 1, 2, 3], atol=1e-6)
  np.testing.assert_allclose(found.ratio, [0.5 / 1.7, 0], atol=1e-6)
  same = memorisation.nearest_features(forms, np.zeros((9, 1)), np.arange(9))
  assert np.isfinite(same.ratio).all()
  few = memorisation.nearest_features(forms, points[:2], alone[:2])
  np.testing.assert_array_equal(np.isfinite(few.distances).sum(1), 2)
  np.testing.assert_allclose(few.ratio, [1, 0], atol=1e-6)


@pytest.mark.parametrize('photographs', [255, 256, 300])
def test_a_lesion_with_more_photographs_than_candidates(photographs):
  """By features and by pixels, its copy is found."""
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (16, 16, 3)).repeat(4, 0).repeat(4, 1)
  noisy = [np.clip(x + rng.normal(0, 2, x.shape), 0, 255) for _ in range(20)]
  near = [noisy[i % 20] for i in range(photographs)]
  far = rng.integers(0, 256, (40, 16, 16, 3)).repeat(4, 1).repeat(4, 2)
  bank = memorisation.describe(np.uint8([*near, *far]))
  groups = np.array(['one'] * photographs + [f'{i}' for i in range(len(far))])
  copy = np.uint8(x)[None, ::-1]
  by_features = np.stack(
    [memorisation.describe(f) for f in images.symmetries(copy)]
  )
  for found in (
    memorisation.nearest_pixels(copy, bank, groups),
    memorisation.nearest_features(by_features, bank, groups),
  ):
    assert groups[found.indices[0, 0]] == 'one'
    assert len(set(groups[found.indices[0]])) == 5
    assert found.ratio[0] < 0.1


def test_ratio_of_lesions_by_hand():
  """Of a lesion its nearest image counts."""
  points = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [50.0]])
  forms = np.array([[[0.4]]])
  groups = np.array(list('aaabbcd'))
  found = memorisation.nearest_features(forms, points, groups)
  np.testing.assert_allclose(
    found.distances, [[0.4, 2.6, 4.6, 49.6, np.inf]], rtol=1e-5
  )
  np.testing.assert_array_equal(found.indices[0, :4], [0, 3, 5, 6])
  np.testing.assert_allclose(found.ratio, [0.4 / 14.3], rtol=1e-5)
  # Each is as near as the other: one of them.
  tied = memorisation.nearest_features(
    forms, np.zeros((9, 1)), np.array(list('aabbccdde'))
  )
  np.testing.assert_array_equal(tied.indices[0], [0, 2, 4, 6, 8])
  one = memorisation.nearest_features(forms, points, np.zeros(7))
  np.testing.assert_allclose(one.ratio, [1])


def test_share_test_is_exact(monkeypatch):
  """Of independent data the p-value is uniform; of copies it is small."""
  monkeypatch.setattr(memorisation, '_NUM_PERMUTATIONS', 1000)
  rng = np.random.default_rng(0)
  groups = np.arange(60)
  values = []
  for seed in range(60):
    order = rng.permutation(groups)
    # Few groups are next to many images.
    nearest = rng.choice(groups, 80, p=rng.dirichlet(np.ones(60)))
    found = memorisation.share_test(nearest, order[:40], order[40:], seed)
    assert found['expected_share'] == 40 / 60
    share = np.isin(nearest, order[:40]).mean()
    assert found['share_closer_to_train'] == pytest.approx(share)
    values.append(found['p_value'])
  assert 0.35 < np.mean(values) < 0.65
  assert np.mean(np.array(values) < 0.1) < 0.25
  found = memorisation.share_test(groups[:40], groups[:40], groups[40:])
  assert found['p_value'] < 2e-3


def test_share_test_by_hand():
  """Two groups of three, one in training by chance: p is 1/3 and 1."""
  args = np.array(['a', 'b']), np.array(['c'])
  found = memorisation.share_test(np.array(['c', 'c', 'c']), *args)
  assert found['p_value'] == 1 and found['share_closer_to_train'] == 0
  found = memorisation.share_test(np.array(['a', 'b']), *args)
  assert found['p_value'] == pytest.approx(1 / 3, abs=0.02)


def test_groups_count_as_one():
  """Ten images of each lesion tell no more than one of each."""
  few = np.array(['a', 'b', 'c'])
  one = memorisation.share_test(few, few, np.array(['x', 'y']))
  ten = memorisation.share_test(
    np.repeat(few, 10), np.repeat(few, 10), np.array(['x', 'y'])
  )
  assert ten['p_value'] == pytest.approx(one['p_value'], abs=0.02)
  assert ten['expected_share'] == one['expected_share'] == 0.6


def test_threshold():
  assert memorisation.threshold(np.linspace(0.5, 1.5, 101)) == pytest.approx(
    0.75 * 0.51
  )


def test_false_alarms_by_hand():
  """The threshold for a half of the lesions comes from the other one."""
  groups = np.array(list('abab'))
  ratios = np.array([1.0, 4.0, 2.0, 8.0])  # of a: 1 and 2, of b: 4 and 8
  assert memorisation.threshold(ratios[1::2]) == pytest.approx(0.75 * 4.04)
  # Both of a are below 3.03; none of b is below 0.76.
  assert memorisation.num_false_alarms(ratios, groups) == 2
  assert memorisation.num_false_alarms(np.ones(4), groups) == 0


def test_symmetries_are_the_eight():
  x = np.arange(2 * 3 * 3 * 1).reshape(2, 3, 3, 1)
  forms = images.symmetries(x)
  assert len({form[0].tobytes() for form in forms}) == 8
  np.testing.assert_array_equal(forms[0], x)


# dermvq sample --reject_memorised.


def test_sample_drops_copies(smoke_run, tmp_path, caplog, monkeypatch):
  from dermvq_jax import inference

  source = prepared.open_split(
    'synthetic_dermoscopy/smoke', smoke_run / 'data', 'train'
  )
  model = inference.load(smoke_run)
  made = model.sample(['mel'] * 2 + ['nv'] * 2)
  made[1], made[2] = source[4]['image'], source[5]['image'][::-1]
  monkeypatch.setattr(inference.Model, 'sample', lambda *_, **__: made)
  caplog.set_level('INFO')
  out, counts = tmp_path / 'out', {'mel': 2, 'nv': 2}
  generate.sample(smoke_run, out, counts=counts, reject_memorised=0.05)
  assert 'Dropped 2 of 4' in caplog.text
  # The others keep their numbers, from which they can be made again.
  names = sorted(path.name for path in out.rglob('*_0*.png'))
  assert names == ['synthetic_mel_00000.png', 'synthetic_nv_00001.png']
  rows = (out / 'metadata.csv').read_text().splitlines()
  assert len(rows) == 3 and rows[0].endswith('reject_memorised')
  with pytest.raises(errors.UserError, match='every image.*lower'):
    generate.sample(
      smoke_run, tmp_path / 'none', counts=counts, reject_memorised=1.0
    )
  assert not (tmp_path / 'none').exists()


# Features.


def test_extract_symmetries_and_chunks(monkeypatch):
  x = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
  expected = np.stack([brightness(form) for form in images.symmetries(x)])
  monkeypatch.setattr(feature_spaces, '_CHUNK', 3)
  found = feature_spaces.extract(brightness, x, symmetries=True)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  np.testing.assert_allclose(feature_spaces.extract(brightness, x), expected[0])
