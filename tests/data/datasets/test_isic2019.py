"""Tests of mistakes in archives of ISIC 2019; test_datasets has the basics."""

import fabricate
import pytest

from dermvq_jax.data.datasets import builder, isic

PREFIX = 'ISIC_2019_Training_'
TRUTH = f'{PREFIX}GroundTruth.csv'
METADATA = f'{PREFIX}Metadata.csv'


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'archive'
  folder.mkdir()
  fabricate.isic2019(folder)
  return folder


def check_error(folder, match):
  fabricate.check_error('isic2019/smoke', folder, match)


@pytest.mark.parametrize('name', [f'{PREFIX}Input.zip', TRUTH, METADATA])
def test_missing_files_are_named(folder, name):
  (folder / name).unlink()
  check_error(folder, rf'archive has no {name}.*; download it ')


def test_the_duplicates_of_ham10000_are_one_group(folder, tmp_path):
  (a, b), *_ = isic.DUPLICATE_IMAGES
  names = [a, b, *(f'ISIC_{i:07d}' for i in range(2, 10))]
  fabricate.write_zip(folder / f'{PREFIX}Input.zip', names)
  labels = dict.fromkeys(names, 'nv')
  truth = fabricate.one_hot(fabricate.ISIC2019_COLUMNS, labels)
  (folder / TRUTH).write_text(truth)
  rows = [(name, f'HAM_{i // 3}') for i, name in enumerate(reversed(names))]
  rows[-1] = (a, '')
  table = fabricate.table(('image', 'lesion_id'), rows)
  (folder / METADATA).write_text(table)
  records = builder.make('isic2019/smoke', tmp_path).read_records(folder)
  group_of = {record.id: record.group for record in records}
  assert group_of[a] == group_of[b] == group_of[names[2]] == 'HAM_2'
  assert group_of[names[3]] == 'HAM_2'
  assert group_of[names[4]] == 'HAM_1'


@pytest.mark.parametrize(
  ('file', 'old', 'new', 'match'),
  [
    (TRUTH, 'SCC', 'XYZ', 'lacks the columns SCC'),
    (TRUTH, '1.0', '0.0', 'line 2: ISIC_0000000 has 0.0, .* 1 once and 0 oth'),
    (
      TRUTH,
      '0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0',
      '0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0',
      r'has 1 image of the class UNK \(ISIC_0000000\), which no training',
    ),
    (METADATA, 'lesion_id', 'lesion', 'lacks the columns lesion_id'),
    (METADATA, 'BCN_ak1', '../x', r"lesion_id '\.\./x' is not made of letters"),
    (
      METADATA,
      'ISIC_0000000',
      'ISIC_9',
      r'Metadata.csv lacks 1 image \(ISIC_0000000\); download it again',
    ),
  ],
)
def test_bad_tables(folder, file, old, new, match):
  fabricate.edit(folder / file, old, new)
  check_error(folder, match)
