"""Tests of mistakes in folders of PH2; test_datasets has the basics."""

import shutil

import fabricate
import pytest

from dermvq_jax.data.datasets import builder

DATASET = 'ph2/smoke'


@pytest.fixture
def folder(tmp_path):
  fabricate.ph2(tmp_path / 'mine')
  return tmp_path / 'mine'


def test_histological_diagnoses(folder, tmp_path):
  records = builder.make(DATASET, tmp_path).read_records(folder)
  found = [r.extra_fields['histological_diagnosis'] for r in records]
  assert found == ['', '', 'Melanoma'] * 10


@pytest.mark.parametrize(
  ('old', 'new', 'match'),
  [
    ('0 ||  0 | T', '3 ||  0 | T', "line 2: .* IMD000 is '3'; it must be one"),
    ('0 ||  0 | T || 4 ||', '', "line 2: .* of IMD000 is ''; it must be one"),
    ('IMD001', 'IMD000', 'line 3: IMD000 is there twice; keep one row'),
    ('IMD001', 'IMD900', r'row without an image \(IMD900\) and 1 image with'),
  ],
)
def test_bad_tables(folder, old, new, match):
  fabricate.edit(folder / 'PH2_dataset.txt', old, new)
  fabricate.check_error(DATASET, folder, match)


def test_another_folder(folder):
  (folder / 'PH2_dataset.txt').write_text('Legends:\n0 - Common Nevus')
  fabricate.check_error(DATASET, folder, 'has no rows like .. IMD003 .. ')
  (folder / 'PH2_dataset.txt').unlink()
  fabricate.check_error(DATASET, folder, 'has no PH2_dataset.txt; give the fol')


def test_no_images(folder):
  shutil.rmtree(folder / 'PH2 Dataset images')
  fabricate.check_error(DATASET, folder, 'has a table but no images; download')
