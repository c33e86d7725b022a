"""Tests of mistakes in archives of ISIC 2018; test_datasets has the basics."""

import shutil

import fabricate
import pytest

from dermvq_jax.data.datasets import builder, isic

PREFIX = 'ISIC2018_Task3_'


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'archive'
  folder.mkdir()
  fabricate.isic2018(folder)
  return folder


def check_error(folder, match):
  fabricate.check_error('isic2018/smoke', folder, match)


@pytest.mark.parametrize(
  'name',
  [
    'Training_Input.zip',
    'Training_GroundTruth.zip',
    'Training_LesionGroupings.csv',
    'Validation_Input',
    'Validation_GroundTruth.csv',
    'Test_Input.zip',
    'Test_GroundTruth.zip',
  ],
)
def test_missing_files_are_named(folder, name):
  path = folder / (PREFIX + name)
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  stem = PREFIX + name.partition('.')[0]
  match = rf'archive has no {stem}\..*download it .*challenge\.isic-archive'
  check_error(folder, match)


def test_known_duplicates_are_one_group(folder, tmp_path):
  (a, b), *_ = isic.DUPLICATE_IMAGES
  names = {'ISIC_0000000': a, 'ISIC_0000004': b}
  shutil.unpack_archive(folder / f'{PREFIX}Training_GroundTruth.zip', folder)
  shutil.unpack_archive(folder / f'{PREFIX}Training_Input.zip', folder)
  table = f'{PREFIX}Training_GroundTruth'
  for old, new in names.items():
    path = folder / f'{PREFIX}Training_Input' / f'{old}.jpg'
    path.rename(path.with_stem(new))
    fabricate.edit(folder / table / f'{table}.csv', old, new)
    fabricate.edit(folder / f'{PREFIX}Training_LesionGroupings.csv', old, new)
  records = builder.make('isic2018/smoke', tmp_path).read_records(folder)
  group_of = {record.id: record.group for record in records}
  assert group_of[a] == group_of[b]


GROUPINGS = f'{PREFIX}Training_LesionGroupings.csv'
TRUTH = f'{PREFIX}Validation_GroundTruth.csv'


@pytest.mark.parametrize(
  ('file', 'old', 'new', 'match'),
  [
    (GROUPINGS, 'image,', 'name,', 'lacks the columns image; use the publi'),
    (GROUPINGS, 'HAM_akiec0', '', "line 2: lesion_id '' is not made of"),
    (
      GROUPINGS,
      'ISIC_0000000',
      'ISIC_0009999',
      r'lacks 1 image \(ISIC_0000000\); download it again',
    ),
    (TRUTH, 'BKL', 'XYZ', 'lacks the columns BKL'),
    (TRUTH, '1.0', '0.0', 'line 2: ISIC_0000100 has 0.0, .* 1 once and 0 oth'),
    (TRUTH, '0.0', '1.0', 'line 2: ISIC_0000100 has 1.0, .* 1 once and 0 oth'),
    (TRUTH, '0.0', '0.5', 'line 2: ISIC_0000100 has 0.5, .* 1 once and 0 oth'),
    (TRUTH, '0.0', 'no', 'line 2: ISIC_0000100 has no, .* 1 once and 0 oth'),
    (TRUTH, 'ISIC_0000100', '../x', r"line 2: image '\.\./x' is not made of"),
    (TRUTH, 'ISIC_0000100', 'ISIC_0000101', 'ISIC_0000101 is there twice'),
    (
      TRUTH,
      'ISIC_0000100',
      'ISIC_9',
      r'1 metadata row without an image \(ISIC_9\) and 1 image without meta.*'
      r'\(ISIC_0000100\); .*of ISIC2018_Task3_Validation_Input\.zip from',
    ),
  ],
)
def test_bad_tables(folder, file, old, new, match):
  fabricate.edit(folder / file, old, new)
  check_error(folder, match)


def test_a_zip_that_leaves_its_folder(folder):
  fabricate.write_zip(folder / f'{PREFIX}Test_Input.zip', ['../ISIC_0000200'])
  check_error(folder, r'Test_Input\.zip has the member .*, which would be unp')
