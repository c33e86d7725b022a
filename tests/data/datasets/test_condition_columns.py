"""Columns of a user's table that become conditions."""

import fabricate
import pytest

from dermvq_jax import errors, main
from dermvq_jax.data import conditions, prepare, prepared
from dermvq_jax.data.datasets import builder, condition_columns

DATASET = 'image_folder/smoke'
SPLITS = ('train', 'val', 'test')


@pytest.fixture
def listed(tmp_path):
  """A folder whose table has the columns Sex and age."""
  (tmp_path / 'mine').mkdir()
  fabricate.images_with_conditions(tmp_path / 'mine')
  return tmp_path / 'mine'


def read(listed, columns, **others):
  columns = {'condition': columns, **others}
  made = builder.make(DATASET, listed / 'data', columns)
  return made, made.read_records(listed)


def test_columns_become_conditions(listed, tmp_path, capsys):
  rows = fabricate.images_with_conditions(listed)
  argv = ['prepare', f'--dataset={DATASET}', f'--manual_dir={listed}']
  argv += [f'--data_dir={tmp_path}/data', '--condition-columns=Sex,age:10']
  assert main.main(argv) == 0
  dataset = prepared.Dataset(DATASET, tmp_path / 'data')
  known = dataset.facts['conditions']
  ages = ['0-9', '10-19', '20-29', '30-39', '40-49']
  assert known == {'label': ['a', 'b'], 'sex': ['female', 'male'], 'age': ages}
  records = {r['id'].decode(): r for s in SPLITS for r in dataset.split(s)}
  assert len(records) == len(rows)
  for image, _, _, sex, age in rows:
    # NA, unknown and blanks are null, never values of their own.
    null = {'NA': 2, '': 2}
    assert records[image]['sex'] == {'female': 0, 'male': 1, **null}[sex]
    expected = 5 if age == 'unknown' else age // 10
    assert records[image]['age'] == expected
  lines = capsys.readouterr().out.splitlines()
  table = [line.split() for line in lines]
  number = sum(r['sex'] == 1 for r in map(dict, dataset.split('train')))
  start = table.index(['by', 'sex'])
  assert table[start + 2][:2] == ['male', str(number)]
  assert table[start + 3][:2] == ['not', 'known']


def test_the_codes_have_the_values_of_the_images(conditioned_run):
  names = prepared.names_in(conditioned_run / 'data', 'codes/')
  images, codes = (
    prepared.Dataset(name, conditioned_run / 'data')
    for name in (DATASET, *names)
  )
  assert codes.facts['conditions'] == images.facts['conditions']
  for split in SPLITS:
    of_image = {r['id']: r for r in images.split(split)}
    records = list(codes.split(split))
    assert len(records) == len(of_image) * (2 if split == 'train' else 1)
    for record in records:
      for name in ('label', 'sex', 'age'):
        assert record[name] == of_image[record['id']][name]


def test_samples_can_be_prepared_again(listed):
  """`dermvq sample` writes the names of ranges, and blanks."""
  table = listed / 'metadata.csv'
  fabricate.edit(table, ',unknown\n', ',40-49\n')
  made, records = read(listed, 'age:10')
  assert records[0].conditions == {'age': '40-49'}
  assert made.conditions['age'][-1] == '40-49'


def test_other_columns_need_another_preparation(listed, tmp_path):
  columns = {'condition': 'Sex'}
  prepare.run(DATASET, tmp_path / 'data', listed, columns=columns)
  prepare.run(DATASET, tmp_path / 'data', listed, columns=columns)
  with pytest.raises(errors.UserError, match='or other columns, .*overwrite'):
    prepare.run(DATASET, tmp_path / 'data', listed)
  prepare.run(DATASET, tmp_path / 'data', listed, overwrite=True)
  dataset = prepared.Dataset(DATASET, tmp_path / 'data')
  assert list(dataset.facts['conditions']) == ['label']


@pytest.mark.parametrize(
  ('columns', 'message'),
  [
    ('agee', 'lacks the columns agee; .*; did you mean age\\?$'),
    ('Sex,sex', '^--condition_columns has sex twice'),
    ('Sex,', "'Sex,'; give names of columns, such as sex,age:10"),
    ('age:0', "'age:0'; give names"),
    ('age:old', "'age:old'; give names"),
    ('seed', "column 'seed' cannot be a condition, .*; rename"),
    ('_', "column '_' cannot be a condition"),
    ('label', "column 'label' cannot be a condition, because 'label' means"),
    ('Sex:10', r"line 2: Sex 'male' is not a number of at least 0; fix it"),
  ],
)
def test_wrong_columns(listed, columns, message):
  with pytest.raises(errors.UserError, match=message) as error:
    read(listed, columns)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('label', ['Sex', 'sex'])
def test_a_column_has_one_use(listed, label):
  with pytest.raises(errors.UserError, match='column Sex is used already'):
    read(listed, 'age:10,Sex', label=label)


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    ('"a,b"', "line 2: Sex 'a,b' cannot be the name of a value"),
    ('x' * 61, 'cannot be the name of a value; use at most 60'),
    ('Female', "the column Sex has 'Female' and 'female'; write one"),
  ],
)
def test_wrong_values(listed, value, message):
  fabricate.edit(listed / 'metadata.csv', ',male,', f',{value},')
  with pytest.raises(errors.UserError, match=message):
    read(listed, 'Sex')


def test_a_column_without_known_values_and_one_with_too_many():
  column = condition_columns.ConditionColumn('age', 'Age')
  with pytest.raises(errors.UserError, match='no row has a known Age; leave'):
    column.names(['', ''])
  with pytest.raises(errors.UserError, match='101 values.*give Age:10 if'):
    column.names(map(str, range(101)))
  assert conditions.is_range(
    condition_columns.ConditionColumn('age', 'Age', 10).name_of('33')
  )


def test_folders_of_classes_have_no_columns(tmp_path):
  fabricate.class_folders(tmp_path / 'mine')
  with pytest.raises(errors.UserError, match='no metadata.csv, so there are'):
    read(tmp_path / 'mine', 'sex')


def test_only_image_folder_takes_columns(tmp_path):
  with pytest.raises(
    errors.UserError, match='takes no --condition_columns: its'
  ):
    builder.make('ham10000/smoke', tmp_path, {'condition': 'sex'})
