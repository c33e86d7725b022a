"""Tests that copies are found, and only copies."""

import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from dermvq_jax import errors, inference
from dermvq_jax.data import images
from dermvq_jax.data.datasets import synthetic_dermoscopy
from dermvq_jax.evaluation import memorisation, nearest_images
from dermvq_jax.generation import samples
from dermvq_jax.runs import run as run_lib

NUM_COPIES = 30


def compress(image, quality):
  file = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(
    file, 'JPEG', quality=quality
  )
  return np.asarray(Image.open(file))


def shift(image, down, right):
  """Moves an image; the pixels that come in repeat the edge."""
  n = max(abs(down), abs(right))
  wide = np.pad(image, ((n, n), (n, n), (0, 0)), 'edge')
  size = len(image)
  return wide[n - down : n - down + size, n - right : n - right + size]


# Changes of a training image that leave it the same lesion.
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
  """Training images, held-out images, and others that set the threshold."""
  made = np.stack(request.param())
  parts = np.split(made, np.cumsum(list(NUM.values()))[:-1])
  return dict(zip(NUM, parts))


@pytest.fixture(scope='module')
def bank(splits):
  return nearest_images.describe(splits['train'])


def nearest(images, bank):
  """Finds the nearest images in a bank with one image of each lesion."""
  return nearest_images.nearest_pixels(images, bank, np.arange(len(bank)))


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


def test_held_out_images_are_not_flagged(splits, bank, threshold):
  found = nearest(splits['test'], bank)
  assert not (found.ratio < threshold).any()
  assert (np.diff(found.distances, axis=1) >= 0).all()


def test_each_image_is_its_own_nearest(splits, bank):
  """Even if the copy is turned, and shifted as far as the search goes."""
  turned = np.stack(
    [np.rot90(shift(x, 4, -4), 3) for x in splits['train'][:NUM_COPIES]]
  )
  found = nearest(turned, bank)
  np.testing.assert_array_equal(found.indices[:, 0], np.arange(NUM_COPIES))
  assert np.median(found.ratio) < 0.05  # The edge that came in is cut off.


def test_copies_of_lesions_with_many_photographs(splits, bank, threshold):
  """Each lesion has six photographs, which differ in shift and brightness."""
  lesions = splits['train'][:NUM_COPIES]
  more = [
    shift(np.minimum(x, 255 - i) + np.uint8(i), i % 3 - 1, i % 2)
    for x in lesions
    for i in range(1, 6)
  ]
  whole = np.concatenate([bank, nearest_images.describe(np.stack(more))])
  groups = np.concatenate(
    [np.arange(len(bank)), np.repeat(np.arange(NUM_COPIES), 5)]
  )
  copies = np.stack([COPIES['jpeg'](x) for x in lesions])
  found = nearest_images.nearest_pixels(copies, whole, groups)
  assert (found.ratio < threshold).all()
  np.testing.assert_array_equal(groups[found.indices[:, 0]], range(NUM_COPIES))
  assert all(len(set(groups[row])) == 5 for row in found.indices)
  # If they counted as different lesions, they would hide each other.
  hidden = nearest(copies, whole).ratio
  assert np.median(hidden) > 1.5 * np.median(found.ratio)


def brightness(x):
  """The means of a 4x4 grid."""
  n = x.shape[1] // 4
  return x.reshape(len(x), 4, n, 4, n, 3).mean((2, 4)).reshape(len(x), -1)


def banks_of(splits):
  def records(name):
    return [
      {'image': x, 'id': b'%s%d' % (name, i), 'group': b'%s%d' % (name, i)}
      for i, x in enumerate(splits[name.decode()])
    ]

  return {
    'train': nearest_images.make_bank(records(b'train'), brightness, 'train'),
    'held_out': nearest_images.make_bank(records(b'val'), brightness, 'val'),
  }


def test_measure_finds_planted_copies(splits):
  """Copies among new images are found in both spaces, with their originals."""
  planted = [COPIES['jpeg'](x)[::-1] for x in splits['train'][:NUM_COPIES]]
  new = np.concatenate([planted, splits['test']])
  result, arrays = memorisation.measure(
    new, splits['val'], banks_of(splits), brightness
  )
  for space in ('pixels', 'features'):
    row = result.spaces[space]
    assert row.num_copied == NUM_COPIES
    assert row.num_held_out_copied == 0
    assert arrays[f'{space}_copied'][:NUM_COPIES].all()
    ids = arrays[f'{space}_train_id'][:NUM_COPIES]
    assert ids.tolist() == [f'train{i}' for i in range(NUM_COPIES)]
  assert result.num_samples == len(new)
  # If all new images are copies, the tests leave no doubt.
  copies, _ = memorisation.measure(
    np.stack(planted), splits['val'], banks_of(splits), None
  )
  assert list(copies.spaces) == ['pixels']
  row = copies.spaces['pixels']
  assert row.share_closer_to_train == 1
  assert row.ratio_p_value < 1e-6


def test_measure_is_quiet_on_held_out_images(splits):
  result, _ = memorisation.measure(
    splits['test'], splits['val'], banks_of(splits), brightness
  )
  for row in result.spaces.values():
    assert row.num_copied == 0
    assert row.p_value > 0.01
    assert row.ratio_p_value > 0.01
    assert row.expected_share == len(splits['train']) / (
      len(splits['train']) + len(splits['val'])
    )


# Parts.


def test_share_test_is_exact(monkeypatch):
  """The p-value is uniform for independent data and small for copies."""
  monkeypatch.setattr(memorisation, '_NUM_PERMUTATIONS', 1000)
  rng = np.random.default_rng(0)
  groups = np.arange(60)
  values = []
  for seed in range(60):
    order = rng.permutation(groups)
    # A few groups are nearest to many images.
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
  """Two of three groups are in training, so p is 1/3 or 1."""
  args = np.array(['a', 'b']), np.array(['c'])
  found = memorisation.share_test(np.array(['c', 'c', 'c']), *args)
  assert found['p_value'] == 1 and found['share_closer_to_train'] == 0
  found = memorisation.share_test(np.array(['a', 'b']), *args)
  assert found['p_value'] == pytest.approx(1 / 3, abs=0.02)


def test_groups_count_as_one():
  """Ten images of each lesion give the same evidence as one of each."""
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
  """The threshold for each half of the lesions comes from the other half."""
  groups = np.array(list('abab'))
  ratios = np.array([1.0, 4.0, 2.0, 8.0])  # a has 1 and 2, b has 4 and 8
  assert memorisation.threshold(ratios[1::2]) == pytest.approx(0.75 * 4.04)
  # Both ratios of a are below 3.03; none of b is below 0.76.
  assert memorisation.num_false_alarms(ratios, groups) == 2
  assert memorisation.num_false_alarms(np.ones(4), groups) == 0


# dermvq sample --reject_memorised.


def test_sample_drops_copies(smoke_run, tmp_path, caplog, monkeypatch):
  run = run_lib.Run(smoke_run)
  records = run.images.split('train')
  made = inference.Model(run).sample(['mel'] * 3 + ['nv'] * 3)
  made[1], made[3] = records[4]['image'], records[5]['image'][::-1]

  def sample_codes(_, labels, *, ids, **__):
    return np.array(ids) + 3 * (labels == max(labels))

  monkeypatch.setattr(inference.Model, 'sample_codes', sample_codes)
  monkeypatch.setattr(inference.Model, 'decode', lambda _, codes: made[codes])
  caplog.set_level('INFO')
  out, counts = tmp_path / 'out', {'mel': 2, 'nv': 2}
  samples.sample(run, out, counts=counts, reject_memorised=0.05)
  assert 'Dropped 2 of 6 images that look copied' in caplog.text
  # The others keep their numbers, from which they can be made again.
  names = sorted(path.name for path in out.rglob('*_0*.png'))
  assert names == [
    *('synthetic_mel_00000.png', 'synthetic_mel_00002.png'),
    *('synthetic_nv_00001.png', 'synthetic_nv_00002.png'),
  ]
  rows = (out / 'metadata.csv').read_text().splitlines()
  assert len(rows) == 5 and rows[0].endswith('reject_memorised')
  monkeypatch.setattr(
    inference.Model, 'decode', lambda _, codes: made[:1].repeat(len(codes), 0)
  )
  with pytest.raises(errors.UserError, match='every image.*lower'):
    samples.sample(
      run, tmp_path / 'none', counts={'mel': 1}, reject_memorised=1.0
    )
  assert sorted(p.name for p in tmp_path.iterdir()) == ['out']
