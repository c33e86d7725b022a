"""Tests of prepared datasets, damaged ones and those of strangers too."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.data import pipeline, prepared
from dermvq_jax.data.datasets import builder, synthetic_dermoscopy

IMAGES = 'synthetic_dermoscopy/smoke'
VERSION = str(synthetic_dermoscopy.Builder.VERSION)
CONDITIONS = {
  'label': list(builder.CLASS_NAMES),
  **{
    name: list(values)
    for name, values in synthetic_dermoscopy.Builder.conditions.items()
  },
}


@pytest.fixture
def data_dir(smoke_run, tmp_path):
  return shutil.copytree(smoke_run / 'data', tmp_path / 'data')


def codes_of(data_dir):
  [folder] = (data_dir / 'codes').iterdir()
  return f'codes/{folder.name}'


def test_facts_of_images(smoke_run):
  facts = prepared.Dataset(IMAGES, smoke_run / 'data').facts
  assert json.loads(json.dumps(facts)) == facts
  variance = facts.pop('train_variance')
  assert 0 < variance < 0.25
  assert set(facts.pop('fingerprint')) == {'train', 'val', 'test'}
  assert facts == {
    'dataset': IMAGES,
    'class_names': list(builder.CLASS_NAMES),
    'conditions': CONDITIONS,
    'num_train': 114,
    'num_val': 13,
    'num_test': 13,
    'image_size': 16,
    'untrained_classes': [],
  }


def test_facts_of_codes(smoke_run):
  dataset = codes_of(smoke_run / 'data')
  facts = prepared.Dataset(dataset, smoke_run / 'data').facts
  assert json.loads(json.dumps(facts)) == facts
  assert 'images_fingerprint' in facts
  del facts['images_fingerprint']
  assert facts == {
    'dataset': dataset,
    'class_names': list(builder.CLASS_NAMES),
    'conditions': CONDITIONS,
    'num_train': 114,
    'num_val': 13,
    'num_test': 13,
    'codebook_size': 32,
    'grid': [4, 4],
    'num_levels': 1,
    'images': IMAGES,
    'copies': 1,
    'vqvae_digest': dataset.partition('/')[2],
  }


def test_examples(smoke_run):
  source = prepared.Dataset(IMAGES, smoke_run / 'data').split('test')
  assert len(source) == 13
  example = source[3]
  assert example['image'].shape == (16, 16, 3)
  assert example['image'].dtype == np.uint8
  assert 0 <= example['label'] < 7
  assert isinstance(example['id'], bytes)
  data_dir = str(smoke_run / 'data')
  codes = prepared.Dataset(codes_of(smoke_run / 'data'), data_dir).split('test')
  assert codes[0]['codes'].shape == (4, 4)
  assert codes[0]['codes'].dtype == np.int32


def test_reads_without_tensorflow_and_without_the_datasets_code(smoke_run):
  code = f"""
import sys
from dermvq_jax.data import prepared
dataset = prepared.Dataset({IMAGES!r}, {str(smoke_run / 'data')!r})
source = dataset.split('val')
source[0]['image']
print(sorted({{'tensorflow', 'dermvq_jax.data.datasets.synthetic_dermoscopy'}}
      & set(sys.modules)))
"""
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == '[]'


@pytest.mark.parametrize(
  ('dataset', 'message'),
  [
    ('ham10000/64', 'dermvq prepare --dataset=ham10000/64'),
    ('synthetic_dermoscopy/65', 'dermvq prepare'),
    ('codes/0123456789abcdef', 'dermvq encode --workdir=WORKDIR'),
  ],
)
def test_not_prepared(smoke_run, dataset, message):
  made = prepared.Dataset(dataset, smoke_run / 'data')  # This reads nothing.
  for use in (
    made.check,
    lambda: made.facts,
    lambda: made.description,
    lambda: made.split('val'),
    lambda: made.labels('val'),
  ):
    with pytest.raises(errors.UserError, match=message) as e:
      use()
    assert f'not prepared in {smoke_run}/data' in str(e.value)


def test_names_in_a_folder(data_dir):
  codes = codes_of(data_dir)
  shutil.copytree(data_dir / codes, data_dir / f'{codes}_x3')
  (data_dir / f'{codes}_x5').mkdir()  # Not prepared.
  prefix = codes[:12]
  assert prepared.names_in(data_dir, prefix) == [codes, f'{codes}_x3']
  assert prepared.names_in(data_dir, 'codes/none') == []
  assert prepared.names_in(data_dir / 'missing', prefix) == []


def test_no_such_split(smoke_run):
  with pytest.raises(errors.UserError, match="no split 'all'; .*train"):
    prepared.Dataset(IMAGES, smoke_run / 'data').split('all')


def test_data_dir_that_is_missing_or_a_file(tmp_path):
  file = tmp_path / 'file'
  file.write_text('')
  for data_dir in (tmp_path / 'missing', file):
    with pytest.raises(errors.UserError, match='not prepared'):
      prepared.Dataset(IMAGES, data_dir).check()


def test_newest_version_counts(data_dir):
  folder = data_dir / IMAGES
  for version in ('1.10.0', '1.9.0'):
    new = shutil.copytree(folder / VERSION, folder / version)
    file = new / 'dataset_info.json'
    info = json.loads(file.read_text()) | {'version': version}
    file.write_text(json.dumps(info))
  (folder / '1.10.0' / prepared.MADE_BY).write_text(
    json.dumps({'command': 'newest', 'date': '', 'versions': {}})
  )
  assert prepared.Dataset(IMAGES, data_dir).made_by['command'] == 'newest'


@pytest.mark.parametrize('name', ['incomplete.ABC_1.0.0', 'notes', '1.0.0.bak'])
def test_other_folders_are_not_versions(data_dir, name):
  """A killed `dermvq prepare --overwrite` leaves such folders."""
  folder = data_dir / IMAGES
  shutil.copytree(folder / VERSION, folder / name)
  assert prepared.Dataset(IMAGES, data_dir).facts['num_val'] == 13
  shutil.rmtree(folder / VERSION)
  with pytest.raises(errors.UserError, match='not prepared'):
    prepared.Dataset(IMAGES, data_dir).check()


# Damage, and datasets from strangers.


def records_file(folder, split):
  [file] = folder.glob(f'*-{split}.array_record-*')
  return file


@pytest.mark.parametrize('damage', ['cut', 'empty', 'gone', 'flipped'])
def test_a_damaged_file_is_one_line(data_dir, damage):
  folder = data_dir / IMAGES / VERSION
  file = records_file(folder, 'train')
  data = bytearray(file.read_bytes())
  if damage == 'cut':
    file.write_bytes(data[: len(data) // 2])
  elif damage == 'empty':
    file.write_bytes(b'')
  elif damage == 'gone':
    file.unlink()
  else:
    data[5000] ^= 4
    file.write_bytes(data)
  source = prepared.Dataset(IMAGES, data_dir).split('train')
  with pytest.raises(errors.UserError, match=r'record \d+ of 114 in') as e:
    for i in range(len(source)):
      _ = source[i]
  assert str(folder) in str(e.value) and '\n' not in str(e.value)
  # The pipeline raises the same error.
  with pytest.raises(errors.UserError, match=r'record \d+ of 114 in'):
    list(pipeline.eval_batches(source, batch_size=8, keys=('image',)))
  assert len(prepared.Dataset(IMAGES, data_dir).split('val')) == 13


@pytest.mark.parametrize(
  'name', ['dataset_info.json', 'features.json', 'metadata.json']
)
def test_a_damaged_description_is_one_line(data_dir, name):
  file = data_dir / IMAGES / VERSION / name
  file.write_text(file.read_text()[:20])
  with pytest.raises(errors.UserError, match='damaged') as e:
    prepared.Dataset(IMAGES, data_dir).check()
  assert '\n' not in str(e.value)


def test_a_missing_description_is_one_line(data_dir):
  (data_dir / IMAGES / VERSION / 'features.json').unlink()
  with pytest.raises(errors.UserError, match='missing or damaged'):
    prepared.Dataset(IMAGES, data_dir).check()


_REAL = 'tensorflow_datasets.core.features.text_feature.Text'


@pytest.mark.parametrize(
  'feature',
  [
    {'pythonClassName': 'stranger.X', 'text': {}},
    {'python_class_name': 'stranger.X', 'text': {}},
    {
      'pythonClassName': _REAL,
      'sequence': {'feature': {'pythonClassName': 'stranger.X'}},
    },
  ],
)
def test_a_dataset_can_not_have_code_imported(
  data_dir, tmp_path, monkeypatch, feature
):
  """TFDS imports the module of any feature that it does not know."""
  (tmp_path / 'stranger.py').write_text('raise SystemExit("it ran")')
  monkeypatch.syspath_prepend(tmp_path)
  file = data_dir / IMAGES / VERSION / 'features.json'
  content = json.loads(file.read_text())
  content['featuresDict']['features']['group'] = feature
  legacy = {'type': 'stranger.X', 'content': {}}
  for written in (content, legacy, [legacy]):
    file.write_text(json.dumps(written))
    with pytest.raises(errors.UserError, match='not written by dermvq'):
      prepared.Dataset(IMAGES, data_dir).check()
  assert 'stranger' not in sys.modules


def _edit(file, change):
  content = json.loads(file.read_text())
  change(content)
  file.write_text(json.dumps(content))


_DEEP = '{"a": ' * 100_000 + '1' + '}' * 100_000


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('features.json', None),
    ('features.json', lambda j: j['featuresDict']['features'].pop('label')),
    ('features.json', lambda j: j['featuresDict']['features'].pop('id')),
    ('features.json', lambda j: j['featuresDict']['features'].pop('image')),
    ('metadata.json', lambda j: j.update(train_variance='x')),
    ('metadata.json', lambda j: j.update(train_variance=float('nan'))),
    ('metadata.json', lambda j: j.pop('train_variance')),
    ('metadata.json', lambda j: j.update(fingerprint=[1])),
    ('metadata.json', lambda j: j.update(conditions=5)),
    (
      'dataset_info.json',
      lambda j: [s.update(shardLengths=['0']) for s in j['splits']],
    ),
    ('dataset_info.json', lambda j: j.update(fileFormat='tfrecord')),
  ],
)
def test_odd_descriptions_are_one_line(data_dir, name, change):
  file = data_dir / IMAGES / VERSION / name
  if change:
    _edit(file, change)
  else:
    file.write_text(_DEEP)
  with pytest.raises(errors.UserError, match='damaged') as e:
    dataset = prepared.Dataset(IMAGES, data_dir)
    dataset.check()
    dataset.split('val')
  assert '\n' not in str(e.value)


def test_metadata_cannot_replace_what_is_counted(data_dir):
  before = prepared.Dataset(IMAGES, data_dir).facts
  file = data_dir / IMAGES / VERSION / 'metadata.json'
  _edit(file, lambda j: j.update(num_train=1, class_names=['x'], dataset='y'))
  assert prepared.Dataset(IMAGES, data_dir).facts == before
