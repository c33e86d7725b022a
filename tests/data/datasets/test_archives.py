"""Tests of archives; the tests of the datasets have more."""

import zipfile

import fabricate
import pytest

from dermvq_jax import errors
from dermvq_jax.data.datasets import archives


def read(file):
  return archives.read_table(file, 'image', ('image',), lambda *_: None)


def zipped(path, data):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('t.csv', data)
  return zipfile.Path(path, 't.csv')


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


def test_a_part_is_a_folder_or_otherwise_a_zip(tmp_path):
  fabricate.write_zip(tmp_path / 'part.zip', ['a', 'b'], 'part/')
  find = (tmp_path, 'part', archives.JPEG_SUFFIXES, 'the place')
  assert set(archives.find_part(*find)) == {'a', 'b'}
  fabricate.write_folder(tmp_path / 'part' / 'part', ['c'])
  assert set(archives.find_part(*find)) == {'c'}
