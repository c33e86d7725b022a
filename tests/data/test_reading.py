"""Tests of reading files in several processes."""

import os
import signal
import zipfile

import fabricate
import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.data import images, prepare, reading
from dermvq_jax.data.datasets import archives

_SIZE = 16


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
  monkeypatch.setattr(reading, '_BATCH', 2)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Twelve images, some in a zip; two of them are damaged."""
  folder = tmp_path_factory.mktemp('images')
  fabricate.write_folder(folder, [f'{i}' for i in range(8)])
  fabricate.write_zip(folder / 'more.zip', 'abcd', 'in/')
  (folder / '3.jpg').write_text('<html>')
  with zipfile.ZipFile(folder / 'more.zip', 'a') as archive:
    archive.writestr('in/e.jpg', b'x')
  return list(archives.list_files(folder, ('.jpg',)))


def outcomes(squares):
  """The pixels and PNG files, or the messages."""
  return [
    (s.pixels.tobytes(), s.png) if isinstance(s, reading.Square) else str(s)
    for s in squares
  ]


def test_processes_do_not_change_what_is_read(files):
  one, two = (outcomes(reading.read(files, _SIZE, n)) for n in (1, 2))
  assert one == two
  assert len(one) == 13
  damaged = [text for text in one if isinstance(text, str)]
  assert len(damaged) == 2
  assert '/3.jpg is unreadable' in damaged[0]
  assert 'more.zip/in/e.jpg is unreadable' in damaged[1]


def test_pixels_and_png_are_the_same(files, tmp_path):
  first, *_ = reading.read(files, _SIZE, 2)
  np.testing.assert_array_equal(
    first.pixels, images.read_square(files[0], _SIZE)
  )
  (tmp_path / 'a.png').write_bytes(first.png)
  np.testing.assert_array_equal(
    images.read_square(tmp_path / 'a.png', _SIZE), first.pixels
  )


def test_a_worker_that_is_killed_is_made_up_for(files, monkeypatch):
  started = []

  class Worker(reading._Worker):
    def __init__(self):
      super().__init__()
      started.append(self._process)

  expected = outcomes(reading.read(files, _SIZE, 1))
  monkeypatch.setattr(reading, '_Worker', Worker)
  squares = reading.read(files, _SIZE, 2)
  found = [next(squares)]
  for process in started:
    os.kill(process.pid, signal.SIGKILL)
  assert outcomes([*found, *squares]) == expected
  assert all(process.poll() is not None for process in started)


def test_a_reader_that_is_closed_leaves_no_process(files, monkeypatch):
  started = []

  class Worker(reading._Worker):
    def __init__(self):
      super().__init__()
      started.append(self._process)

  monkeypatch.setattr(reading, '_Worker', Worker)
  squares = reading.read(files, _SIZE, 1 + 1)
  next(squares)
  squares.close()
  assert len(started) == 2
  assert all(process.poll() is not None for process in started)


def test_workers_end_with_the_process_that_asks(files):
  worker = reading._Worker()
  [square] = worker.read(files[:1], _SIZE)
  assert isinstance(square, reading.Square)
  worker._process.stdin.close()
  assert worker._process.wait(timeout=60) == 0
  with pytest.raises((OSError, ValueError)):
    worker.read(files[:1], _SIZE)


def test_few_images_are_read_here():
  assert reading.num_workers(50) == 1
  assert reading.num_workers(10**6) >= 1
  assert reading.num_workers(10**6, 3) == 3
  assert reading.num_workers(10**6, 1) == 1


def test_all_unreadable_files_are_named(files, capsys):
  squares = reading.read(files, _SIZE, 1)
  with pytest.raises(errors.UserError, match='3.jpg is unre.*; 1 more cannot'):
    while True:
      reading.take(squares)
  assert 'in/e.jpg is unreadable' in capsys.readouterr().err


def test_processes_do_not_change_the_records(tmp_path, monkeypatch):
  monkeypatch.setattr(reading, '_MIN_IMAGES', 1)
  fabricate.class_folders(tmp_path / 'mine')
  contents = []
  for workers in (1, 2):
    data_dir = tmp_path / f'data{workers}'
    made = prepare.run(
      'image_folder/smoke', data_dir, tmp_path / 'mine', max_workers=workers
    )
    files = sorted(p for p in made.data_path.iterdir() if 'record' in p.name)
    contents.append([(p.name, p.read_bytes()) for p in files])
    contents[-1].append(made.info.metadata['fingerprint'])
    contents[-1].append(made.info.metadata['train_variance'])
  assert contents[0] == contents[1]
  assert len(contents[0]) == 5
