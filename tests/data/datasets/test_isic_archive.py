"""Tests of folders that the ISIC Archive's tool writes; the traps in them."""

import fabricate
import numpy as np
import pytest

from dermvq_jax.data.datasets import builder, isic

DATASET = 'isic_archive/smoke'


@pytest.fixture
def rows():
  """Eight rows of a metadata.csv, each its own lesion and patient."""
  _, rows = fabricate.isic_archive_rows()
  return [
    row | {'lesion_id': f'IL_{i}', 'patient_id': f'IP_{i}', 'image_type': ''}
    for i, row in enumerate(rows[:8])
  ]


@pytest.fixture
def read(tmp_path):
  """Writes rows and returns the records by id."""

  def read(rows, **columns):
    fabricate.write_isic_archive(tmp_path / 'mine', rows)
    made = builder.make(DATASET, tmp_path / 'data', columns)
    return {r.id: r for r in made.read_records(tmp_path / 'mine')}

  return read


def groups_of(records):
  return [record.group for _, record in sorted(records.items())]


def test_groups_are_patients_then_lesions_then_images(rows, read):
  rows[1]['patient_id'] = rows[0]['patient_id']
  rows[2]['patient_id'] = ''
  rows[3] |= {'patient_id': 'unknown', 'lesion_id': 'IL_2'}
  for row in rows[4:6]:  # Blank ids are not one patient.
    row |= {'patient_id': '', 'lesion_id': 'NA'}
  ids = [row['isic_id'] for row in rows]
  assert groups_of(read(rows)) == [
    *('IP_0', 'IP_0', 'IL_2', 'IL_2'),
    *(ids[4], ids[5], 'IP_6', 'IP_7'),
  ]


def test_a_lesion_belongs_to_the_patient_of_any_of_its_images(rows, read):
  rows[0] |= {'patient_id': '', 'lesion_id': 'IL_1'}
  # A lesion of two patients, by mistake.
  rows[2] |= {'lesion_id': 'IL_3'}
  assert groups_of(read(rows))[:4] == ['IP_1', 'IP_1', 'IP_2', 'IP_2']


def test_known_duplicates_are_one_group(rows, read, tmp_path):
  rows[0]['isic_id'], rows[1]['isic_id'] = isic.DUPLICATE_IMAGES[0]
  table = fabricate.table(
    ('image_name_1', 'image_name_2'),
    [
      (rows[2]['isic_id'], rows[3]['isic_id']),
      (rows[2]['isic_id'], rows[4]['isic_id']),
      ('ISIC_1111111', rows[5]['isic_id']),
    ],
  )
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'ISIC_2020_Training_Duplicates.csv').write_text(table)
  records = read(rows)
  found = [records[row['isic_id']].group for row in rows]
  assert found == ['IP_0', 'IP_0', 'IP_2', 'IP_2', 'IP_2', *found[5:]]
  assert len(set(found)) == 5


def test_what_is_left_out_is_counted(rows, read, capsys):
  rows[0]['image_type'] = 'clinical: close-up'
  rows[1]['image_type'] = 'clinical: close-up'
  rows[2]['image_manipulation'] = 'synthetic'
  rows[3]['diagnosis_3'] = ''
  rows = [{'image_manipulation': ''} | row for row in rows]
  assert len(read(rows)) == 4
  err = capsys.readouterr().err
  assert '2 of 8 images are not dermoscopic but clinical: close-up;' in err
  assert '1 of 8 images are synthetic; they are left out' in err
  assert '1 of 8 images have no diagnosis_3; they are left out' in err


def test_any_column_is_the_label(rows, read):
  labels = {r.label for r in read(rows, label='diagnosis_1').values()}
  assert labels == {'Benign'}
  for row in rows:
    row['anatom_site_general'] = 'head/neck'
  records = read(rows, label='anatom_site_general').values()
  assert {r.label for r in records} == {'head-neck'}
  assert {r.conditions['localization'] for r in records} == {'head/neck'}


def test_conditions(rows, read, capsys):
  rows[0] |= {'age_approx': '85', 'sex': 'male', 'fitzpatrick_skin_type': 'VI'}
  rows[1] |= {'age_approx': '5.0', 'anatom_site_general': 'left knee'}
  rows[2] |= {'age_approx': '', 'sex': 'unknown', 'fitzpatrick_skin_type': ''}
  records = [record for _, record in sorted(read(rows).items())]
  assert records[0].conditions['age'] == '80-89'
  assert records[0].conditions['sex'] == 'male'
  assert records[0].conditions['skin_type'] == 'VI'
  assert records[0].extra_fields['attribution'] == 'A hospital, B'
  assert records[1].conditions['age'] == '0-9'
  assert records[1].conditions['localization'] == ''
  assert records[1].extra_fields['age_approx'] == 5
  for name in ('age', 'sex', 'skin_type'):
    assert records[2].conditions[name] == ''
  assert np.isnan(records[2].extra_fields['age_approx'])
  err = capsys.readouterr().err
  assert "1 images have anatom_site_general 'left knee'; it counts as" in err


def test_images_of_another_download_are_left_out(rows, read, tmp_path, capsys):
  fabricate.write_folder(tmp_path / 'mine', ['ISIC_5555555'])
  assert len(read(rows)) == 8
  assert 'does not list 1 of 9 images; they are left' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'isic_id': '../x'}, r"line 2: isic_id '\.\./x' is not made of letters"),
    ({'patient_id': 'a b'}, "line 2: patient_id 'a b' is not made of"),
    ({'age_approx': 'old'}, "line 2: age_approx 'old' is not a number from 0"),
    ({'isic_id': 'ISIC_0000001'}, 'line 3: isic_id ISIC_0000001 is there twi'),
    ({'diagnosis_3': 'Nevus!'}, "'Nevus!' cannot be the name of a class, or d"),
    ({'diagnosis_3': '?!'}, r"'\?!' cannot be the name of a class"),
  ],
)
def test_bad_rows(rows, tmp_path, changes, match):
  rows[0] |= changes
  fabricate.write_folder(tmp_path / 'mine', ['x'])
  fabricate.write_isic_archive(
    tmp_path / 'mine', [r for r in rows if '/' not in r['isic_id']]
  )
  table = fabricate.table(list(rows[0]), [r.values() for r in rows])
  (tmp_path / 'mine' / 'metadata.csv').write_text(table)
  fabricate.check_error(DATASET, tmp_path / 'mine', match)


def test_bad_folders(rows, read, tmp_path):
  folder = tmp_path / 'mine'
  read(rows)
  (folder / 'ISIC_0000003.jpg').unlink()
  fabricate.check_error(
    DATASET, folder, r'1 row of .* \(ISIC_0000003\); run the same isic command'
  )
  fabricate.edit(folder / 'metadata.csv', 'diagnosis_3', 'diagnosis')
  fabricate.check_error(DATASET, folder, 'lacks the columns diagnosis_3; name')
  (folder / 'metadata.csv').unlink()
  fabricate.check_error(DATASET, folder, 'has no metadata.csv; give the folder')


def test_no_image_is_left(rows, read, tmp_path):
  for row in rows:
    row['image_type'] = 'RCM: tile'
  fabricate.write_isic_archive(tmp_path / 'mine', rows)
  match = 'lists no dermoscopic image with a diagnosis_3; choose'
  fabricate.check_error(DATASET, tmp_path / 'mine', match)
