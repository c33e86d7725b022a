"""Tests that the pictures are stable and that classes differ."""

import collections
import hashlib

import numpy as np
import pytest

from dermvq_jax.data.datasets import builder
from dermvq_jax.data.datasets import synthetic_dermoscopy as synthetic

NAME = 'synthetic_dermoscopy/smoke'


@pytest.mark.parametrize('size', [16, 24, 64, 128, 256])
@pytest.mark.parametrize('label', ['nv', 'bcc'])
def test_render_gives_uint8_images_that_use_the_range(size, label):
  image = synthetic.render(5, label, size)
  assert image.dtype == np.uint8
  assert image.shape == (size, size, 3)
  assert image.max() > 150
  assert image.std() > 10


@pytest.mark.parametrize('label', builder.CLASS_NAMES)
def test_render_depends_on_its_arguments_alone(label):
  first = synthetic.render(7, label, 32)
  np.random.seed(0)
  synthetic.render(8, label, 64)
  np.testing.assert_array_equal(synthetic.render(7, label, 32), first)
  for other in (
    synthetic.render(8, label, 32),
    synthetic.render(7, label, 32, seed=1),
  ):
    assert np.abs(other.astype(float) - first).mean() > 2


def _halved(image):
  size = len(image) // 2
  blocks = image.astype(float).reshape(size, 2, size, 2, 3)
  return blocks.mean((1, 3))


@pytest.mark.parametrize('small', [32, 64, 128])
@pytest.mark.parametrize('label', builder.CLASS_NAMES)
def test_all_sizes_show_the_same_picture(label, small):
  for index in range(3):
    image = synthetic.render(index, label, small).astype(float)
    larger = _halved(synthetic.render(index, label, 2 * small))
    other = synthetic.render(index + 50, label, small)
    difference = np.abs(image - larger)
    assert difference.mean() < 2.0
    assert difference.mean() < 0.2 * np.abs(image - other).mean()


def _features(image):
  """Colours of rings around the centre, with their fine and coarse contrast."""
  x = image.astype(float) / 255
  axis = np.linspace(-1, 1, len(x))
  radius = np.hypot(axis[:, None], axis)
  rings = [(radius >= a) & (radius < a + 0.25) for a in (0, 0.25, 0.5, 0.75)]
  outer = x[radius > 0.75].mean(0)
  detail = np.abs(np.diff(x, axis=0))[:, 1:] + np.abs(np.diff(x, axis=1))[1:]
  return np.concatenate(
    [x[ring].mean(0) - outer for ring in rings]
    + [x[ring].std(0) for ring in rings]
    + [detail[ring[1:, 1:]].mean(0) for ring in rings]
  )


def test_a_linear_classifier_tells_the_classes_apart():
  labels = [synthetic.label_of(i) for i in range(500)]
  features = np.stack(
    [
      _features(synthetic.render(i, label, 32))
      for i, label in enumerate(labels)
    ]
  )
  features = (features - features.mean(0)) / features.std(0)
  features = np.concatenate([features, np.ones((len(features), 1))], 1)
  targets = np.array([builder.CLASS_NAMES.index(label) for label in labels])
  one_hot = np.eye(len(builder.CLASS_NAMES))[targets]
  train, test = slice(0, 350), slice(350, None)
  x = features[train]
  weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ one_hot[train])
  accuracy = np.mean((features[test] @ weights).argmax(1) == targets[test])
  assert accuracy > 0.6  # The most frequent class alone gives 0.24.


def test_labels_follow_the_documented_shares():
  assert set(synthetic.CLASS_SHARES) == set(builder.CLASS_NAMES)
  assert sum(synthetic.CLASS_SHARES.values()) == pytest.approx(1)
  assert min(synthetic.CLASS_SHARES.values()) >= 0.08
  for count in (synthetic.NUM_SMOKE_IMAGES, synthetic.NUM_IMAGES):
    found = collections.Counter(map(synthetic.label_of, range(count)))
    for label, share in synthetic.CLASS_SHARES.items():
      assert found[label] == pytest.approx(share * count, abs=3)


def _prepare(data_dir):
  dataset = builder.make(NAME, data_dir)
  dataset.download_and_prepare(file_format='array_record')
  return dataset


def _digests(folder):
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob('*.array_record*')
  }


def test_the_prepared_dataset_is_complete_stable_and_leak_free(tmp_path):
  dataset = _prepare(tmp_path / 'a')
  groups, ids = {}, []
  for split in ('train', 'val', 'test'):
    examples = list(dataset.as_data_source(split))
    assert {int(e['label']) for e in examples} == set(range(7))
    groups[split] = {e['group'] for e in examples}
    ids += [e['id'] for e in examples]
  assert len(ids) == len(set(ids)) == synthetic.NUM_SMOKE_IMAGES
  assert sum(map(len, groups.values())) == len(set().union(*groups.values()))

  example = dataset.as_data_source('train')[0]
  index = int(example['id'].decode().split('_')[-1])
  label = builder.CLASS_NAMES[int(example['label'])]
  np.testing.assert_array_equal(
    example['image'], synthetic.render(index, label, 16)
  )
  assert 0.005 < dataset.info.metadata['train_variance'] < 0.1

  _prepare(tmp_path / 'b')
  digests = _digests(tmp_path / 'a')
  assert digests
  assert digests == _digests(tmp_path / 'b')


def test_configs_have_their_documented_sizes():
  sizes = {c.name: (c.size, c.num_images) for c in builder_configs()}
  assert sizes == {
    'smoke': (16, 140),
    '64': (64, 2000),
    '128': (128, 2000),
    '256': (256, 2000),
  }


def builder_configs():
  return synthetic.Builder.BUILDER_CONFIGS
