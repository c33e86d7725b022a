"""Tests of mistakes in archives of PAD-UFES-20; test_datasets has the rest."""

import fabricate
import pytest

from dermvq_jax.data.datasets import builder

DATASET = 'pad_ufes_20/smoke'


@pytest.fixture
def folder(tmp_path):
  fabricate.pad_ufes_20(tmp_path / 'mine')
  return tmp_path / 'mine'


def test_conditions(folder, tmp_path):
  records = builder.make(DATASET, tmp_path).read_records(folder)
  by_id = {record.id: record for record in records}
  first, second = by_id['PAT_ack0_0'], by_id['PAT_ack1_1']
  unknown = {'age': '', 'sex': '', 'localization': '', 'skin_type': ''}
  assert first.conditions == unknown
  assert second.extra_fields['age_approx'] == 56
  assert second.conditions == {
    'age': '50-59',
    'sex': 'female',
    'localization': 'forearm',
    'skin_type': 'II',
  }


@pytest.mark.parametrize(
  ('old', 'new', 'match'),
  [
    ('ACK', 'BOD', "line 2: unknown diagnostic 'BOD'; it must be one of ACK"),
    ('56', 'old', "line 3: age 'old' is not a number up to 99; fix it"),
    ('2.0', 'II', "line 3: fitspatrick 'II' is not a number up to 6"),
    ('2.0', '7', "line 3: fitspatrick '7' is not a number up to 6"),
    ('FOREARM', 'TAIL', "PAT_ack1_1 has localization 'tail'; it must be one"),
    ('PAT_ack0_0.png', 'a b.png', "line 2: img_id 'a b' is not made of"),
    ('PAT_ack0_0.png', 'PAT_9.png', r'1 metadata row .* \(PAT_9\) and 1 image'),
    ('region', 'site', 'metadata.csv lacks the columns region; use the publ'),
  ],
)
def test_bad_tables(folder, old, new, match):
  fabricate.edit(folder / 'metadata.csv', old, new)
  fabricate.check_error(DATASET, folder, match)


def test_the_table_is_missing(folder):
  (folder / 'metadata.csv').unlink()
  fabricate.check_error(
    DATASET, folder, 'has no metadata.csv; download it from'
  )
