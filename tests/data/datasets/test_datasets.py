"""Tests that every dataset of images keeps its contract, on made-up files."""

import collections
import pathlib

import fabricate
import numpy as np
import pytest
import test_ham10000

from dermvq_jax import errors, main
from dermvq_jax.data import datasets, prepare, prepared
from dermvq_jax.data.datasets import builder

SPLITS = ('train', 'val', 'test')


def ham10000(folder):
  rows = test_ham10000.make_rows()
  test_ham10000.write_archive(folder, rows)
  return [
    fabricate.Example(
      row['image_id'],
      row['dx'],
      # Duplicates are of class nv and change groups; test_ham10000 tests that.
      row['lesion_id'] if row['dx'] != 'nv' else '',
      fabricate.pixels(row['image_id']),
    )
    for row in rows
  ]


ARCHIVES = {
  'ham10000': ('ham10000/smoke', ham10000),
  'class folders': ('image_folder/smoke', fabricate.class_folders),
  'listed images': ('image_folder/smoke', fabricate.listed_images),
  'isic2018': ('isic2018/smoke', fabricate.isic2018),
  'isic2019': ('isic2019/smoke', fabricate.isic2019),
  'isic_archive': ('isic_archive/smoke', fabricate.isic_archive),
  'pad_ufes_20': ('pad_ufes_20/smoke', fabricate.pad_ufes_20),
  'ph2': ('ph2/smoke', fabricate.ph2),
  'dermamnist': ('dermamnist/28', fabricate.dermamnist),
}


_ROOT = pathlib.Path(__file__).parents[3]


def dataset_modules():
  """Names of the modules whose Builder makes a dataset of images."""
  names = []
  for path in sorted(pathlib.Path(datasets.__file__).parent.glob('*.py')):
    try:
      builder.make(path.stem, '/nowhere')
    except errors.UserError as e:
      if 'has no config' in str(e):
        names.append(path.stem)
  return names


@pytest.fixture(scope='module', params=ARCHIVES)
def archive(request, tmp_path_factory):
  """Dataset, data_dir, expected examples by id, prepared records by split."""
  dataset, write = ARCHIVES[request.param]
  folder = tmp_path_factory.mktemp('archive')
  expected = write(folder)
  before = sorted(folder.rglob('*'))
  data_dir = tmp_path_factory.mktemp('data')
  prepare.run(dataset, data_dir, folder)
  assert sorted(folder.rglob('*')) == before  # nothing is unpacked there
  examples = {
    split: list(prepared.Dataset(dataset, data_dir).split(split))
    for split in SPLITS
  }
  return dataset, data_dir, {e.id: e for e in expected}, examples


def test_every_dataset_is_in_the_table_of_layouts():
  text = (_ROOT / 'docs/how_to/prepare.md').read_text()
  table = [line for line in text.splitlines() if line.startswith('| ')]
  for name in dataset_modules():
    assert any(f'--dataset={name}/' in line for line in table), name


def test_every_dataset_has_an_archive_here():
  tested = {dataset.partition('/')[0] for dataset, _ in ARCHIVES.values()}
  # Its images are drawn; it has tests of its own.
  assert tested | {'synthetic_dermoscopy'} == set(dataset_modules())


def test_examples_are_those_of_the_archive(archive):
  dataset, data_dir, expected, examples = archive
  names = prepared.Dataset(dataset, data_dir).facts['class_names']
  assert names == sorted({e.label for e in expected.values()})
  found = [e for split in SPLITS for e in examples[split]]
  assert len(found) == len(expected)
  assert {e['id'].decode() for e in found} == set(expected)
  for example in found:
    truth = expected[example['id'].decode()]
    assert names[example['label']] == truth.label
    assert truth.group in ('', example['group'].decode())
    assert example['image'].dtype == np.uint8
    np.testing.assert_array_equal(example['image'], truth.pixels)


def test_splits_are_leak_free_and_have_every_class(archive):
  _, _, expected, examples = archive
  splits_of = collections.defaultdict(set)
  for split in SPLITS:
    for example in examples[split]:
      splits_of[example['group']].add(split)
  assert all(len(found) == 1 for found in splits_of.values())
  classes = {split: {e['label'] for e in examples[split]} for split in SPLITS}
  assert classes['train'] == classes['val'] == classes['test']
  if all(e.split for e in expected.values()):
    for split in SPLITS:
      for example in examples[split]:
        assert expected[example['id'].decode()].split == split
  else:
    assert len(examples['train']) > 0.7 * len(expected)


def test_facts(archive):
  dataset, data_dir, _, examples = archive
  facts = prepared.Dataset(dataset, data_dir).facts
  for split in SPLITS:
    assert facts[f'num_{split}'] == len(examples[split])
  train = np.stack([e['image'] for e in examples['train']])
  assert facts['image_size'] == train.shape[1] == train.shape[2]
  np.testing.assert_allclose(facts['train_variance'], (train / 255).var())


@pytest.mark.parametrize('name', dataset_modules())
def test_the_help_lists_it(name, capsys):
  with pytest.raises(SystemExit):
    main.main(['prepare', '--help'])
  assert name in capsys.readouterr().out


@pytest.mark.parametrize('dataset', sorted({d for d, _ in ARCHIVES.values()}))
def test_without_its_files(dataset, tmp_path):
  """One line says what to provide; nothing is written."""
  name = dataset.partition('/')[0]
  with pytest.raises(errors.UserError) as e:
    prepare.run(dataset, tmp_path / 'data')
  assert str(e.value).startswith(f'{name} needs files that you provide. ')
  assert '--manual_dir=FOLDER' in str(e.value) and '\n' not in str(e.value)
  (tmp_path / 'archive').mkdir()
  (tmp_path / 'archive' / 'notes.txt').write_text('another folder')
  with pytest.raises(errors.UserError, match=' has n') as e:
    prepare.run(dataset, tmp_path / 'data', tmp_path / 'archive')
  assert '\n' not in str(e.value)
  assert not list((tmp_path / 'data').rglob('*'))


@pytest.mark.parametrize('name', dataset_modules())
def test_sizes(name):
  sizes = {'28': 28, '64': 64, '128': 128, '224': 224}
  if name != 'dermamnist':
    sizes = {'64': 64, '128': 128, '256': 256, 'smoke': 16}
  configs = builder.make(f'{name}/64', '/nowhere').BUILDER_CONFIGS
  assert {c.name: c.size for c in configs} == sizes
