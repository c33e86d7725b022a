"""Tests of archives; the tests of the datasets have more."""

import zipfile

import fabricate
import pytest

from dermvq_jax import errors
from dermvq_jax.data.datasets import archives


def read(file):
  return archives.read_table(file, 'image', ('image',), lambda *_: None)


def read_text(tmp_path, text):
  """Reads a table with the columns image, label and, perhaps, group."""
  path = tmp_path / 'metadata.csv'
  path.write_text(text)
  return archives.read_table(
    path,
    'image',
    ('image', 'label'),
    lambda *_: None,
    optional=('group',),
    may_be_unknown=('group',),
  )


def zipped(path, data):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('t.csv', data)
  return zipfile.Path(path, 't.csv')


UNKNOWN = ['', 'NA', 'n/a', 'NaN', 'null', 'None', '<NA>', 'unknown', ' - ']


@pytest.mark.parametrize('word', UNKNOWN)
def test_words_for_what_is_not_known(tmp_path, word):
  rows = read_text(tmp_path, f'image,label,group\na,none,{word}\nb,x,nail\n')
  assert [row['group'] for row in rows.values()] == ['', 'nail']
  assert [row['label'] for row in rows.values()] == ['none', 'x']


def test_a_row_with_too_many_values(tmp_path):
  text = 'image,label,group\na,nv,1\nb,melanoma, in situ,2\n'
  match = (
    r'metadata\.csv, line 3: there are 4 values for 3 columns; put a value'
  )
  with pytest.raises(errors.UserError, match=match):
    read_text(tmp_path, text)
  quoted = text.replace('melanoma, in situ', '"melanoma, in situ"')
  assert read_text(tmp_path, quoted)['b']['label'] == 'melanoma, in situ'


@pytest.mark.parametrize('header', ['image,label,label', 'image,label, label '])
def test_a_column_that_is_there_twice(tmp_path, header):
  match = r'metadata\.csv, line 1: the column label is there twice; remove or'
  with pytest.raises(errors.UserError, match=match):
    read_text(tmp_path, f'{header}\na,nv,mel\n')


def test_columns_in_any_capitals(tmp_path):
  rows = read_text(tmp_path, 'IMAGE,Label,Label2,GROUP \na,x,y,p\n')
  assert rows['a'] == {'image': 'a', 'label': 'x', 'group': 'p'}
  # The right capitals come first, if both are there.
  rows = read_text(tmp_path, 'Image,LABEL,label,Image2\na,y,x,b\n')
  assert rows['a'] == {'image': 'a', 'label': 'x', 'group': ''}
  match = 'line 1: the column label is there twice'
  with pytest.raises(errors.UserError, match=match):
    read_text(tmp_path, 'image,LABEL,Label\na,x,y\n')


def test_renamed_columns_in_any_capitals(tmp_path):
  path = tmp_path / 'metadata.csv'
  path.write_text('image,Dx,Label\na,x,y\n')
  columns = ('image', 'label')
  check = (path, 'image', columns, lambda *_: None)
  rows = archives.read_table(*check, renamed={'label': 'dx'})
  assert rows['a'] == {'image': 'a', 'label': 'x'}
  with pytest.raises(errors.UserError, match='lacks the columns diagnosis;'):
    archives.read_table(*check, renamed={'label': 'diagnosis'})


@pytest.mark.parametrize('first', ['', 'sep=\t\n'])
def test_tabs(tmp_path, first):
  text = first + 'image\tlabel\na\tx, y; z\n'
  assert read_text(tmp_path, text)['a']['label'] == 'x, y; z'


def test_rows_without_names(tmp_path):
  path = tmp_path / 'pairs.csv'
  path.write_text('a,b\nx,y\nx,y\n')
  rows = archives.read_table(path, None, ('a', 'b'), lambda *_: None)
  assert [*rows.values()] == [{'a': 'x', 'b': 'y'}] * 2


def test_folders_at_any_depth_and_links_in_circles(tmp_path):
  deep = tmp_path / 'a' / 'b' / 'c' / 'd' / 'e'
  fabricate.write_folder(deep, ['x'])
  fabricate.write_zip(deep / 'y.zip', ['p/q/r/s/y'])
  (deep / 'up').symlink_to(tmp_path / 'a')
  (tmp_path / 'elsewhere').symlink_to(deep)
  found = archives.list_files(tmp_path, ('.jpg',))
  assert [file.name for file in found] == ['x.jpg', 'x.jpg', 'y.jpg', 'y.jpg']


def test_columns_without_names_and_short_rows(tmp_path):
  rows = read_text(tmp_path, 'image,label,,group,\n\na,x,7,,\nb,x\n')
  assert [*rows.values()] == [
    {'image': image, 'label': 'x', 'group': ''} for image in 'ab'
  ]


def test_a_quote_that_is_not_closed(tmp_path):
  with pytest.raises(errors.UserError, match=r'metadata\.csv, line 4: '):
    read_text(tmp_path, 'image,label,notes\na,x,"6 mm\nb,x,\nc,x,\n')


@pytest.mark.parametrize('first', ['', 'sep=;\n', '"sep=;"\r\n'])
def test_semicolons(tmp_path, first):
  text = first + 'image;label;group\na;x, y;1,5\n'
  assert read_text(tmp_path, text)['a'] == {
    'image': 'a',
    'label': 'x, y',
    'group': '1,5',
  }
  line = 4 if first else 3
  with pytest.raises(
    errors.UserError, match=f'line {line}: there are 4 values'
  ):
    read_text(tmp_path, text + 'b;x;1;5\n')


def test_a_table_that_is_too_large(tmp_path, monkeypatch):
  monkeypatch.setattr(archives, 'MAX_TABLE_BYTES', 1000)
  table = 'image\n' + 'a' * 994
  assert len(read(zipped(tmp_path / 'a.zip', table))) == 1
  with pytest.raises(errors.UserError, match='more than 1,000 bytes'):
    read(zipped(tmp_path / 'b.zip', table + 'a'))


def test_a_damaged_table_in_a_zip(tmp_path):
  file = zipped(tmp_path / 'a.zip', 'image\nname\n')
  data = bytearray((tmp_path / 'a.zip').read_bytes())
  start = data.index(b't.csv') + len(b't.csv')
  data[start : start + 8] = bytes(8)
  (tmp_path / 'a.zip').write_bytes(data)
  with pytest.raises(errors.UserError, match=r'a\.zip.t\.csv is unreadable'):
    read(file)


def test_a_zip_whose_members_lie_outside(tmp_path):
  zipped(tmp_path / 'a.zip', 'image\nname\n')
  data = bytearray((tmp_path / 'a.zip').read_bytes())
  place = data.rindex(b'PK\5\6') + 16  # of the list of members
  data[place : place + 4] = (100_000).to_bytes(4, 'little')
  (tmp_path / 'a.zip').write_bytes(data)
  with pytest.raises(errors.UserError, match=r'a\.zip.* (unreadable|intact)'):
    read(next(archives.list_files(tmp_path, ['.csv'])))


def test_a_part_is_a_folder_or_otherwise_a_zip(tmp_path):
  fabricate.write_zip(tmp_path / 'part.zip', ['a', 'b'], 'part/')
  find = (tmp_path, 'part', archives.JPEG_SUFFIXES, 'the place')
  assert set(archives.find_part(*find)) == {'a', 'b'}
  fabricate.write_folder(tmp_path / 'part' / 'part', ['c'])
  assert set(archives.find_part(*find)) == {'c'}
