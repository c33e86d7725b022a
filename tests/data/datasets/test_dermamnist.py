"""Tests of mistakes in DermaMNIST's files; test_datasets has the basics."""

import zipfile

import fabricate
import numpy as np
import pytest

from dermvq_jax.data.datasets import builder, dermamnist


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'archive'
  folder.mkdir()
  return folder


def check_error(folder, match, dataset='dermamnist/28'):
  fabricate.check_error(dataset, folder, match)


def test_larger_images(folder, tmp_path):
  np.savez(folder / 'dermamnist_64.npz', **fabricate.dermamnist_arrays(64))
  dataset = builder.make('dermamnist/64', tmp_path)
  first, *_ = dataset.read_records(folder)
  assert dataset.read_image(first).shape == (64, 64, 3)


def test_another_size(folder):
  fabricate.dermamnist(folder)
  check_error(folder, 'no dermamnist_64.npz; download it', 'dermamnist/64')


class Evil:
  """An object that ends the tests if it is unpickled."""

  def __reduce__(self):
    return (pytest.exit, ('was run',))


def swap(name, value):
  return lambda arrays: arrays | {name: value}


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    (
      lambda arrays: {k: v for k, v in arrays.items() if k != 'val_images'},
      'val_images is unreadable .*no item named',
    ),
    (
      lambda _: fabricate.dermamnist_arrays(64),
      r'train_images are uint8 \[14, 64, 64, 3\], not uint8 \[images, 28',
    ),
    (
      swap('test_images', np.zeros((7, 28, 28, 3), np.float32)),
      r'test_images are float32 \[7, 28, 28, 3\], not uint8',
    ),
    (
      swap('val_images', np.zeros((7, 28, 28), np.uint8)),
      r'val_images are uint8 \[7, 28, 28\], not',
    ),
    (
      swap('val_images', np.zeros((0, 28, 28, 3), np.uint8)),
      r'val_images are uint8 \[0, 28, 28, 3\], not',
    ),
    (
      swap('train_labels', np.zeros((13, 1), np.uint8)),
      r'train_labels are uint8 \[13, 1\], not one whole number for each of 14',
    ),
    (
      swap('train_labels', np.zeros((14, 7), np.uint8)),
      r'train_labels are uint8 \[14, 7\], not',
    ),
    (
      swap('train_labels', np.zeros((14, 1))),
      r'train_labels are float64 \[14, 1\], not',
    ),
    (
      swap('test_labels', np.arange(1, 8)[:, None]),
      'test_labels has 7, but the classes are 0 to 6',
    ),
    (
      swap('test_labels', -np.arange(7)),
      'test_labels has -6, but the classes are 0 to 6',
    ),
    (
      swap('test_labels', np.array([[Evil()]] * 7)),
      r'test_labels are object \[7, 1\], not',
    ),
    (
      swap('train_images', np.array([Evil()])),
      r'train_images are object \[1\], not',
    ),
  ],
)
def test_bad_arrays(folder, change, match):
  arrays = change(fabricate.dermamnist_arrays())
  np.savez_compressed(folder / 'dermamnist.npz', **arrays)
  check_error(folder, match)


@pytest.mark.parametrize(
  ('damage', 'match'),
  [
    (lambda data: b'<html>', 'is unreadable .*not a zip'),
    (lambda data: data[: len(data) // 2], 'is unreadable .*not a zip'),
    (lambda data: data[:20000] + bytes(99) + data[20099:], 'is unreadable'),
  ],
)
def test_a_damaged_file(folder, damage, match):
  fabricate.dermamnist(folder)
  path = folder / 'dermamnist.npz'
  path.write_bytes(damage(path.read_bytes()))
  check_error(folder, match)


def test_an_absurdly_large_array(folder, monkeypatch):
  """The header is enough to refuse an array; nothing else is read."""
  fabricate.dermamnist(folder)
  path = folder / 'dermamnist.npz'
  header = {'descr': '|u1', 'fortran_order': False}
  header['shape'] = (10**6, 28, 28, 3)
  with (
    zipfile.ZipFile(path, 'w') as archive,
    archive.open('train_images.npy', 'w') as file,
  ):
    np.lib.format.write_array_header_1_0(file, header)
  monkeypatch.setattr(np, 'load', None)
  limit = f'{dermamnist.MAX_ARRAY_BYTES:,}'
  check_error(folder, f'train_images would take more than {limit} bytes')
