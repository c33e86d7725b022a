"""Tests of folders with one's own images; test_datasets has the basics."""

import os
import shutil

import fabricate
import pytest
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.data import prepare, prepared
from dermvq_jax.data.datasets import builder

DATASET = 'image_folder/smoke'


@pytest.fixture
def folder(tmp_path):
  """A folder for each class."""
  fabricate.class_folders(tmp_path / 'mine')
  return tmp_path / 'mine'


@pytest.fixture
def listed(tmp_path):
  """A folder with a metadata.csv."""
  folder = tmp_path / 'mine'
  folder.mkdir()
  fabricate.listed_images(folder)
  return folder


def check_error(folder, match):
  fabricate.check_error(DATASET, folder, match)


def test_another_folder_brings_other_classes(folder, tmp_path):
  data_dir = tmp_path / 'data'
  prepare.run(DATASET, data_dir, folder)
  (folder / 'mel').rename(folder / 'melanoma')
  prepare.run(DATASET, data_dir, folder, overwrite=True)
  names = ['basal cell', 'melanoma', 'nv']
  assert prepared.Dataset(DATASET, data_dir).facts['class_names'] == names
  made = builder.make(DATASET, data_dir)  # It reads the stored names.
  assert made.info.features['label'].names == names


def test_png_and_capitals(folder, tmp_path):
  with Image.open(folder / 'mel' / '3.jpg') as image:
    image.save(folder / 'mel' / 'IMG 1 (2).PNG')
  records = builder.make(DATASET, tmp_path).read_records(folder)
  assert len(records) == 31
  assert 'mel_IMG 1 (2)' in {record.id for record in records}


def test_unlisted_images_are_reported(listed, tmp_path, capsys):
  prepare.run(DATASET, tmp_path / 'data', listed)
  err = capsys.readouterr().err
  assert 'does not list 1 of 31 images; they are left out' in err


@pytest.mark.parametrize('kind', ['folder', 'listed'])
def test_images_that_are_not_read_are_named(request, tmp_path, capsys, kind):
  images = request.getfixturevalue(kind)
  beside = next(images.rglob('*.jpg')).parent
  for name in ('a.heic', 'b.GIF', 'notes.txt', '._c.heic'):
    (beside / name).write_bytes(b'x')
  builder.make(DATASET, tmp_path / 'data').read_records(images)
  err = capsys.readouterr().err
  [line] = [line for line in err.splitlines() if 'not JPEG' in line]
  assert '2 images left out' in line
  assert 'a.heic' in line and 'b.GIF' in line and 'notes' not in line


def test_synthetic_images_are_for_training(listed, tmp_path):
  """Synthetic images do not change the splits of the others."""
  prepare.run(DATASET, tmp_path / 'data', listed)
  names = [f'synthetic_a_{i:05d}' for i in range(30)]
  fabricate.write_folder(listed / 'a', names)
  path = listed / 'metadata.csv'
  real, *rows = [row.split(',') for row in path.read_text().split()]
  rows = [[*row, 'false'] for row in rows]
  rows += [['a', '', name, 'true'] for name in names]
  path.write_text(fabricate.table([*real, 'synthetic'], rows))
  prepare.run(DATASET, tmp_path / 'both', listed)
  for split in ('train', 'val', 'test'):
    before, after = (
      {e['id'] for e in prepared.Dataset(DATASET, data_dir).split(split)}
      for data_dir in (tmp_path / 'data', tmp_path / 'both')
    )
    new = {name.encode() for name in names} if split == 'train' else set()
    assert after == before | new


def test_synthetic_images_in_class_folders(tmp_path):
  """Files from `dermvq sample` may be copied into the real images' folder."""
  folder = tmp_path / 'images'
  for label in 'ab':
    fabricate.write_folder(folder / label, [f'{i}' for i in range(20)])
    fabricate.write_folder(
      folder / label, [f'synthetic_{label}_{i:05d}' for i in range(20)]
    )
  prepare.run(DATASET, tmp_path / 'data', folder)
  ids = {
    split: [
      e['id'] for e in prepared.Dataset(DATASET, tmp_path / 'data').split(split)
    ]
    for split in ('train', 'val', 'test')
  }
  assert sum(b'synthetic' in name for name in ids['train']) == 40
  assert all(
    b'synthetic' not in name for split in ('val', 'test') for name in ids[split]
  )
  assert len(ids['val']) == len(ids['test']) == 4


def test_synthetic_images_alone_have_all_splits(listed, tmp_path):
  path = listed / 'metadata.csv'
  header, *rows = [row.split(',') for row in path.read_text().split()]
  rows = [[*row, 'true'] for row in rows]
  path.write_text(fabricate.table([*header, 'synthetic'], rows))
  prepare.run(DATASET, tmp_path / 'data', listed)
  assert len(prepared.Dataset(DATASET, tmp_path / 'data').split('val')) > 0


def test_synthetic_is_true_or_false(listed):
  path = listed / 'metadata.csv'
  header, *rows = [row.split(',') for row in path.read_text().split()]
  rows = [[*row, 'maybe'] for row in rows]
  path.write_text(fabricate.table([*header, 'synthetic'], rows))
  check_error(listed, "line 2: synthetic is 'maybe'; give true or false")


# A folder for each class.


def test_an_empty_class(folder):
  (folder / 'scc').mkdir()
  check_error(folder, 'no JPEG.* image in .*/scc; put the images of that class')


def test_folders_of_splits_are_not_classes(folder):
  shutil.copytree(folder, folder.with_name('two') / 'train')
  check_error(
    folder.with_name('two'), '/train has the name of a split, not of a class'
  )


def test_a_folder_that_a_zip_program_added_is_no_class(folder):
  shutil.copytree(folder, folder.with_name('two') / 'mine')
  match = 'two has only one folder, mine, .*; if those are the classes, give'
  check_error(folder.with_name('two'), match)


def test_sub_folders_of_classes_are_searched(folder, tmp_path, capsys):
  for patient in ('p1', 'p2'):
    fabricate.write_folder(folder / 'mel' / patient / 'left' / 'arm', ['3'])
  (folder / 'mel' / 'p1' / 'again').symlink_to(folder / 'mel')
  fabricate.write_zip(folder / 'nv' / 'more.zip', ['y/8'])
  records = builder.make(DATASET, tmp_path).read_records(folder)
  ids = {r.id for r in records if len(r.id.split('_')) > 2}
  assert ids == {'mel_p1_left_arm_3', 'mel_p2_left_arm_3', 'nv_y_8'}
  assert len(records) == 33
  assert '3 of 33 images are in sub-folders' in capsys.readouterr().err


def test_accents_of_other_systems(tmp_path):
  """Macs write an accented letter in a name as two characters."""
  one, two = 'n\u00e4vus', 'na\u0308vus'
  found = []
  for name in (one, two):
    fabricate.write_folder(tmp_path / name / name, [f'{name} 1', 'x'])
    made = builder.make(DATASET, tmp_path)
    records = made.read_records(tmp_path / name)
    found.append([(r.id, r.label, r.group) for r in records])
  assert found[0] == found[1]
  assert found[0][0] == (f'{one}_{one} 1', one, f'{one}_{one} 1')


@pytest.mark.parametrize('there', ['\u00e4', 'a\u0308'])
@pytest.mark.parametrize('listed', ['\u00e4', 'a\u0308'])
def test_accents_of_a_table_from_another_system(tmp_path, there, listed):
  fabricate.write_folder(tmp_path / 'mine' / there, [f'n{there}vus'])
  table = f'image;label\n{listed}/n{listed}vus;n{listed}vus\n'
  (tmp_path / 'mine' / 'metadata.csv').write_text(table)
  made = builder.make(DATASET, tmp_path)
  [record] = made.read_records(tmp_path / 'mine')
  assert (record.id, record.label) == ('\u00e4_n\u00e4vus', 'n\u00e4vus')


def test_no_folders(tmp_path):
  fabricate.write_folder(tmp_path / 'mine', ['a', 'b'])
  check_error(tmp_path / 'mine', 'neither a metadata.csv nor folders; sort')


@pytest.mark.parametrize('name', ['a,b', 'a=1', '-', 'mel '])
def test_class_names(folder, name):
  (folder / 'mel').rename(folder / name)
  check_error(folder, f"/{name}: '{name}' cannot be the name of a class")


def test_two_images_with_the_same_id(folder):
  path = folder / 'mel' / '3.jpg'
  shutil.copy(path, path.with_suffix('.jpeg'))
  check_error(folder, 'mel/3.jpeg and .*mel/3.jpg would both have the id mel_3')


def test_too_few(folder):
  for path in folder.glob('*/[4-9].jpg'):
    path.unlink()
  check_error(folder, 'are too few: the splits test, val would be empty')


def test_what_operating_systems_leave_is_skipped(folder, tmp_path):
  """A memory stick from a Mac, and the small copies of a NAS device."""
  before = builder.make(DATASET, tmp_path).read_records(folder)
  for path in list(folder.glob('*/*.jpg')):
    path.with_name(f'._{path.name}').write_bytes(b'Mac OS X')
  for name in ('@eaDir', '$RECYCLE.BIN', 'System Volume Information', '.x'):
    fabricate.write_folder(folder / name, ['thumb'])
    fabricate.write_folder(folder / 'mel' / name, ['thumb'])
  (folder / 'mel' / 'Thumbs.db').write_bytes(b'')
  assert builder.make(DATASET, tmp_path).read_records(folder) == before


def test_every_unreadable_file_is_named(folder, capsys):
  """In one list at the end, each with the reason."""
  for name in ('mel/3', 'mel/7', 'nv/0', 'basal cell/5'):
    (folder / f'{name}.jpg').write_text('<html>')
  match = 'jpg is unreadable .*; 3 more cannot be used either, see above'
  with pytest.raises(errors.UserError, match=match) as e:
    prepare.run(DATASET, folder.with_name('data'), folder)
  assert '\n' not in str(e.value)
  listed = capsys.readouterr().err.splitlines()
  assert sum('unreadable' in line for line in listed) == 3
  for name in ('mel/3', 'mel/7', 'nv/0', 'basal cell/5'):
    assert any(f'{name}.jpg' in line for line in [*listed, str(e.value)])
  assert not list(folder.with_name('data').rglob('*'))


@pytest.mark.parametrize('with_table', [False, True])
def test_a_name_that_is_not_utf8(folder, with_table):
  if with_table:
    table = fabricate.table(('image', 'label'), [('x', 'mel')])
    (folder / 'metadata.csv').write_text(table)
  path = folder / 'mel' / '3.jpg'
  try:
    path.rename(path.with_name(os.fsdecode(b'L\xe4sion.jpg')))
  except OSError:
    pytest.skip('this file system has no such names')
  check_error(folder, r'mel/L\\xe4sion.jpg is not UTF-8; rename the file')
  path = folder / 'nv' / '1.jpg'
  path.rename(path.with_name(os.fsdecode(b'\xe4.jpg')))
  check_error(folder, 'is not UTF-8; .*; 2 names are like this')


def test_no_image(folder):
  (folder / 'mel' / '3.jpg').write_text('<html>')
  check_error(folder, 'mel/3.jpg is unreadable')


# A metadata.csv.


def test_words_for_unknown_patients_are_not_a_group(listed, tmp_path):
  path = listed / 'metadata.csv'
  header, *rows = [row.split(',') for row in path.read_text().split()]
  rows = [
    [label, ('NA', 'p1')[i % 2], image]
    for i, (label, _, image) in enumerate(rows)
  ]
  path.write_text(fabricate.table(header, rows))
  records = builder.make(DATASET, tmp_path).read_records(listed)
  own = {record.group for record in records if record.group == record.id}
  assert len(own) == len(rows) / 2
  assert {record.group for record in records} == own | {'group_p1'}


@pytest.mark.parametrize(
  ('old', 'new', 'match'),
  [
    ('label,', 'dx,', 'metadata.csv lacks the columns label; give it a header'),
    ('label,', 'dx,', r'--label_column .*first line has dx, group, image'),
    ('a,,ISIC_0000000', 'a,,../ISIC_0000000', "image '../ISIC.* is neither"),
    ('a,,ISIC_0000000', 'a,,/ISIC_0000000', "image '/ISIC.* is neither"),
    ('a,,ISIC_0000000', 'a,,x/ISIC_0000000', r'an image \(x/ISIC_0000000\)'),
    ('a,,ISIC_0000000', r'a,,C:\ISIC_0', r"line 2: image 'C:.*is neither"),
    ('a,,ISIC_0000000', 'a,,', "line 2: image '' is neither"),
    ('a,,ISIC_0000000', ',,ISIC_0000000', "line 2: label: '' cannot be the"),
    ('a,,ISIC_0000000', 'a/b,,ISIC_0000000', "line 2: label: 'a/b' cannot"),
    ('a,,ISIC_0000000', 'a,,ISIC_9', r'1 row .* without an image \(ISIC_9\)'),
    ('a,,ISIC_0000000', 'a,,ISIC_0000002', 'ISIC_0000002 is there twice'),
    (
      'a,,ISIC_0000000',
      'a,,ISIC_0000001',
      'are both .*ISIC_0000001.jpg; keep one row',
    ),
  ],
)
def test_bad_tables(listed, old, new, match):
  fabricate.edit(listed / 'metadata.csv', old, new)
  check_error(listed, match)


def test_a_row_that_fits_two_images(listed):
  (listed / 'z').mkdir()
  shutil.copy(listed / 'ISIC_0000010.jpg', listed / 'z')
  check_error(listed, r'ISIC_0000010 .* could be .* or .*/z/ISIC.*; rename one')


def test_columns_with_other_names(listed, tmp_path):
  table = listed / 'metadata.csv'
  expected = builder.make(DATASET, tmp_path).read_records(listed)
  fabricate.edit(table, 'label,group,image', 'dx,patient,image_file')
  columns = {'image': 'image_file', 'label': 'dx', 'group': 'patient'}
  made = builder.make(DATASET, tmp_path, columns)
  found = made.read_records(listed)
  for a, b in zip(expected, found, strict=True):
    assert (a.id, a.label, a.group) == (b.id, b.label, b.group)
  made = builder.make(DATASET, tmp_path, columns | {'group': 'lesion'})
  with pytest.raises(errors.UserError, match='lacks the columns lesion'):
    made.read_records(listed)
  with pytest.raises(
    errors.UserError, match='ham10000 takes no --group_column'
  ):
    builder.make('ham10000/64', tmp_path, columns)


def test_a_column_with_the_name_of_a_renamed_one_is_not_read(listed, tmp_path):
  table = listed / 'metadata.csv'
  expected = builder.make(DATASET, tmp_path).read_records(listed)
  lines = table.read_text().splitlines()
  lines = [f'{lines[0]},dx', *(f'other{line},a' for line in lines[1:])]
  table.write_text('\n'.join(lines))
  made = builder.make(DATASET, tmp_path, {'label': 'dx'})
  records = made.read_records(listed)
  assert {record.label for record in records} == {'a'}
  assert [r.id for r in records] == [r.id for r in expected]


def test_columns_need_a_table(folder, tmp_path):
  made = builder.make(DATASET, tmp_path, {'label': 'dx'})
  with pytest.raises(errors.UserError, match='has no metadata.csv'):
    made.read_records(folder)


@pytest.mark.parametrize('separator', ['/', '\\'])
def test_paths_in_a_table(listed, tmp_path, separator):
  """Files in two folders may have the same name."""
  for name in ('z1', 'z2'):
    fabricate.write_folder(listed / name, ['same'])
    with (listed / 'metadata.csv').open('a') as f:
      f.write(f'b,,{name}{separator}same.jpg\n')
  records = builder.make(DATASET, tmp_path).read_records(listed)
  sources = {r.id: r.source for r in records if r.id.startswith('z')}
  assert sources == {
    f'{name}_same': listed / name / 'same.jpg' for name in ('z1', 'z2')
  }


def test_a_table_beside_folders_of_classes_is_named(folder, tmp_path, capsys):
  (folder / 'patients.csv').write_text('image,patient\n')
  builder.make(DATASET, tmp_path).read_records(folder)
  err = capsys.readouterr().err
  assert (
    'patients.csv is not read; to use its labels and groups, name it' in err
  )


def test_a_source_that_changed_is_noticed(folder, tmp_path):
  """Otherwise a table of patients that came later would have no effect."""
  data_dir = tmp_path / 'data'
  prepare.run(DATASET, data_dir, folder)
  prepare.run(DATASET, data_dir, folder)
  prepare.run(DATASET, data_dir)
  rows = [f'{p.name},{p.parent.name},p1' for p in folder.rglob('*.jpg')]
  table = '\n'.join(['image,label,group', *rows])
  (folder / 'metadata.csv').write_text(table)
  with pytest.raises(errors.UserError, match='from other files.*--overwrite'):
    prepare.run(DATASET, data_dir, folder)


def test_what_was_prepared_is_counted(folder, tmp_path):
  made = prepare.run(DATASET, tmp_path, folder)
  head, *classes, total, groups = prepare.summary(made).splitlines()
  assert head.split() == ['train', 'val', 'test']
  assert [line.split()[-3:] for line in classes] == [['8', '1', '1']] * 3
  assert [line[:10].strip() for line in classes] == ['basal cell', 'mel', 'nv']
  assert total.split() == ['images', '24', '3', '3']
  assert 'each image is a group of its own' in groups
  (made.data_path / 'made_by.json').unlink()
  lines = prepare.summary(made).splitlines()
  assert [line.split() for line in lines] == [head.split(), total.split()]


def test_files_are_left_out_by_their_path(folder, tmp_path, monkeypatch):
  """As `dermvq score` names them, also relative to the current folder."""
  monkeypatch.chdir(folder.parent)
  first, second, *_ = sorted((folder / 'mel').iterdir())
  table = tmp_path / 'scores.csv'
  relative = second.relative_to(folder.parent)
  table.write_text(f'image,flagged\n{first},yes\n{relative},yes\n')
  made = prepare.run(DATASET, tmp_path / 'data', folder, leave_out=table)
  assert len(made.left_out) == 2
  dataset = prepared.Dataset(DATASET, tmp_path / 'data')
  ids = {
    record['id']
    for split in dataset.facts['fingerprint']
    for record in dataset.split(split)
  }
  assert not ids & {name.encode() for name in made.left_out}
