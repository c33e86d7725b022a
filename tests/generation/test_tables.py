"""CSV tables and file names."""

import pytest
from pictures import read_csv

from dermvq_jax.generation import tables


def test_formulas_are_disarmed_and_numbers_are_not(tmp_path):
  values = ['=cmd()', '+1+1', '@x', '-x', ' =1', 'a=b', '-1.5', '-inf', -2.5]
  rows = [{'name': value} for value in values]
  tables.write_csv(tmp_path / 'a.csv', rows)
  written = [row['name'] for row in read_csv(tmp_path / 'a.csv')]
  assert written[:5] == ["'" + value for value in values[:5]]
  assert written[5:] == ['a=b', '-1.5', '-inf', '-2.5']


@pytest.mark.parametrize(
  ('name', 'written'),
  [
    ('x;=1+2.png', "x;'=1+2.png"),
    ('x, -1+2;"=3', "x,' -1+2;'\"=3"),
    ('a|@x', "a|'@x"),
    ('"=1', '\'"=1'),
    ('\uff1d1+2', "'\uff1d1+2"),
    ('\ufeff=1', "'\ufeff=1"),
    # Nothing starts a new line or cell, or moves a cursor.
    ('\t=1', '\\t=1'),
    ('y\n=1+2.png', 'y\\n=1+2.png'),
    ('y\r=1', 'y\\r=1'),
    ('\x1b]0;owned\x07', '\\x1b]0;owned\\x07'),
    ('nv\u202e', 'nv\\u202e'),
    ('\udcff', '\\udcff'),
    ('a-b;c-d, e', 'a-b;c-d, e'),
    ('ISIC_0024306', 'ISIC_0024306'),
    ('Müller 漢字', 'Müller 漢字'),
  ],
)
def test_names_are_inert(tmp_path, name, written):
  tables.write_csv(tmp_path / 'a.csv', [{'name': name, 'other': 1}])
  [row] = read_csv(tmp_path / 'a.csv')
  assert row == {'name': written, 'other': '1'}
  assert len((tmp_path / 'a.csv').read_bytes().split(b'\n')) == 3


def test_different_names_have_different_files():
  names = ['a/b', 'a_b', 'A?B', 'c', 'a_b_2', '..', '']
  stems = tables.file_stems(names)
  assert stems == ['a_b', 'a_b_2', 'A_B_3', 'c', 'a_b_2_2', '_', '__2']
