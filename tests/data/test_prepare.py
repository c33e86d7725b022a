"""Tests of preparing datasets: all files or none, and the user's messages."""

import errno
import fcntl
import io
import logging
import os
import pathlib
import subprocess
import sys

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds

from dermvq_jax import errors
from dermvq_jax.data import prepare, prepared
from dermvq_jax.data.datasets import builder

NUM_IMAGES = 140


class Toy(builder.ImageBuilder, skip_registration=True):
  """Flat images, each its own group; every tenth raises `trouble`."""

  name = 'toy'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [builder.ImageConfig(name='smoke', size=4)]
  value = 1
  trouble = None

  def read_records(self, folder):
    assert folder is None
    return [
      builder.Record(
        id=f'{i:03d}',
        label=builder.CLASS_NAMES[i % 7],
        group=f'group{i:03d}',
        source=i,
      )
      for i in range(NUM_IMAGES)
    ]

  def read_image(self, record):
    if record.source % 10 == 9 and type(self).trouble:
      raise type(self).trouble
    value = type(self).value * record.source % 256
    return np.full((4, 4, 3), value, np.uint8)


@pytest.fixture
def toy(monkeypatch, tmp_path):
  """Makes `prepare.run` know 'toy/smoke'; returns a data_dir."""
  monkeypatch.setattr(Toy, 'value', 1)
  monkeypatch.setattr(Toy, 'trouble', None)
  monkeypatch.setattr(
    builder, 'make', lambda _, d, columns: Toy(config='smoke', data_dir=d)
  )
  return tmp_path / 'data'


def prepare_toy(data_dir, **kwargs):
  return prepare.run('toy/smoke', data_dir, **kwargs)


def files_in(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file())


# Preparation.


def test_a_dataset_is_on_the_disk_before_it_has_its_name(toy, monkeypatch):
  synced, named = set(), {}
  fsync, rename = os.fsync, os.rename

  def record_sync(descriptor):
    synced.add(os.fstat(descriptor).st_ino)
    fsync(descriptor)

  def record_rename(old, new):
    if os.path.basename(new) == '1.0.0':
      parts = [pathlib.Path(old), *pathlib.Path(old).rglob('*')]
      named.update({p.name: p.stat().st_ino in synced for p in parts})
      synced.clear()
    rename(old, new)

  monkeypatch.setattr(os, 'fsync', record_sync)
  monkeypatch.setattr(os, 'rename', record_rename)
  made = prepare_toy(toy)
  assert named.keys() > {'features.json', 'dataset_info.json'}
  assert len(named) > 7 and all(named.values()), named
  assert os.stat(made.data_path.parent).st_ino in synced


def test_prepare_and_read(toy):
  made = prepare_toy(toy)
  assert made.info.splits['train'].num_examples == 112
  examples = {
    e['id']: e
    for split in ('train', 'val', 'test')
    for e in prepared.Dataset('toy/smoke', toy).split(split)
  }
  assert len(examples) == NUM_IMAGES
  for i in range(NUM_IMAGES):
    example = examples[f'{i:03d}'.encode()]
    assert example['label'] == i % 7
    assert example['group'] == f'group{i:03d}'.encode()
    np.testing.assert_array_equal(example['image'], np.full((4, 4, 3), i))


def test_grain_reads_a_split(toy):
  prepare_toy(toy)
  source = prepared.Dataset('toy/smoke', toy).split('val')
  batch = next(iter(grain.MapDataset.source(source).batch(8)))
  assert batch['image'].shape == (8, 4, 4, 3)
  assert batch['image'].dtype == np.uint8


def test_nothing_but_the_dataset_is_left(toy, monkeypatch):
  synced, fsync = set(), os.fsync

  def record(descriptor):
    synced.add(os.fstat(descriptor).st_ino)
    fsync(descriptor)

  monkeypatch.setattr(os, 'fsync', record)
  prepare_toy(toy)
  on_disk = (toy.parent, toy, *toy.rglob('*'))
  assert {path.stat().st_ino for path in on_disk} <= synced
  assert [p.name for p in toy.iterdir()] == ['toy']
  names = [p.name for p in files_in(toy / 'toy' / 'smoke' / '1.0.0')]
  assert sum('array_record' in name for name in names) == 3
  assert not list(toy.rglob('*incomplete*'))


def test_a_second_call_returns_at_once_and_says_so(toy, capsys, monkeypatch):
  prepare_toy(toy)
  capsys.readouterr()
  monkeypatch.setattr(Toy, 'trouble', AssertionError('was read again'))
  assert prepare_toy(toy).info.splits['val'].num_examples == 14
  out, err = capsys.readouterr()
  assert not out
  assert err == f'toy/smoke is already prepared in {toy}/toy/smoke/1.0.0\n'


def test_overwrite(toy, monkeypatch):
  prepare_toy(toy)
  before = prepared.Dataset('toy/smoke', toy).facts
  monkeypatch.setattr(Toy, 'value', -1)
  prepare_toy(toy, overwrite=True)
  after = prepared.Dataset('toy/smoke', toy)
  assert before['fingerprint'].keys() == after.facts['fingerprint'].keys()
  for split, value in after.facts['fingerprint'].items():
    assert value != before['fingerprint'][split]
  for example in after.split('val'):
    expected = -int(example['id']) % 256
    np.testing.assert_array_equal(
      example['image'], np.full((4, 4, 3), expected)
    )


TROUBLES = (
  errors.UserError('the image x is unreadable'),
  KeyError('a bug'),
  KeyboardInterrupt(),
)


@pytest.mark.parametrize('trouble', TROUBLES, ids=repr)
def test_failure_leaves_nothing(toy, monkeypatch, trouble):
  monkeypatch.setattr(Toy, 'trouble', trouble)
  with pytest.raises(type(trouble)) as error:
    prepare_toy(toy)
  assert error.value is trouble
  assert not list(toy.rglob('*'))
  monkeypatch.setattr(Toy, 'trouble', None)
  prepare_toy(toy)


@pytest.mark.parametrize('trouble', TROUBLES, ids=repr)
def test_failure_to_overwrite_restores_the_old_files(toy, monkeypatch, trouble):
  prepare_toy(toy)
  before = {p: p.read_bytes() for p in files_in(toy)}
  monkeypatch.setattr(Toy, 'trouble', trouble)
  with pytest.raises(type(trouble)):
    prepare_toy(toy, overwrite=True)
  assert {p: p.read_bytes() for p in files_in(toy)} == before
  assert prepared.Dataset('toy/smoke', toy).split('val')


def test_what_a_killed_run_moved_aside_is_restored(toy, monkeypatch):
  """The killed run was replacing the dataset; the user's files may be gone."""
  prepare_toy(toy)
  folder = toy / 'toy' / 'smoke' / '1.0.0'
  before = {p: p.read_bytes() for p in files_in(toy)}
  folder.rename(folder.with_name('incomplete.replaced_1.0.0'))
  monkeypatch.setattr(Toy, 'trouble', RuntimeError('prepared again'))
  prepare_toy(toy)
  assert {p: p.read_bytes() for p in files_in(toy)} == before


def test_the_remains_of_a_killed_run_are_removed(toy):
  stale = toy / 'toy' / 'smoke' / 'incomplete.ABC123_1.0.0'
  stale.mkdir(parents=True)
  (stale / 'toy-train.array_record').write_bytes(b'half')
  with pytest.raises(errors.UserError, match='is not prepared'):
    prepared.Dataset('toy/smoke', toy).split('train')
  prepare_toy(toy)
  assert not stale.exists()


def test_a_folder_without_its_description_is_not_prepared(toy):
  prepare_toy(toy)
  (toy / 'toy' / 'smoke' / '1.0.0' / 'dataset_info.json').unlink()
  prepare_toy(toy)
  assert len(prepared.Dataset('toy/smoke', toy).split('val')) == 14


def test_it_waits_for_other_processes(toy, monkeypatch):
  toy.mkdir()
  descriptor = os.open(toy, os.O_RDONLY)
  fcntl.flock(descriptor, fcntl.LOCK_EX)
  said = []

  def say(text):
    said.append(text)
    fcntl.flock(descriptor, fcntl.LOCK_UN)

  monkeypatch.setattr(prepare, '_say', say)
  prepare_toy(toy)
  os.close(descriptor)
  assert said == [f'waiting for another process that prepares data in {toy}']


@pytest.mark.parametrize(
  'trouble, match',
  [
    (OSError(errno.ENOSPC, 'No space left on device'), 'No space left on dev'),
    (PermissionError(errno.EACCES, 'Permission denied'), 'Permission denied'),
    (
      # The message of ArrayRecord's writer.
      RuntimeError('write() failed: No space left on device; writing x\ny'),
      r'write\(\) failed: No space left on device;',
    ),
  ],
)
def test_errors_of_the_system_are_reported_in_one_line(
  toy, monkeypatch, trouble, match
):
  monkeypatch.setattr(Toy, 'trouble', trouble)
  match = f'cannot prepare toy/smoke in .*data: .*{match}.* make room and'
  with pytest.raises(errors.UserError, match=match) as error:
    prepare_toy(toy)
  assert '\n' not in str(error.value)
  assert not list(toy.rglob('*'))


def test_a_data_dir_that_is_a_file(toy):
  toy.write_text('a file')
  with pytest.raises(errors.UserError, match='cannot prepare toy/smoke in'):
    prepare_toy(toy)
  assert toy.read_text() == 'a file'


def test_other_runtime_errors_are_raised_as_they_are(toy, monkeypatch):
  monkeypatch.setattr(Toy, 'trouble', RuntimeError('a bug'))
  with pytest.raises(RuntimeError, match='a bug'):
    prepare_toy(toy)


# What the user sees.


def test_nothing_but_progress_on_stderr(toy, capsys):
  prepare_toy(toy)
  out, err = capsys.readouterr()
  assert not out
  # Lines of progress, if it takes long, and nothing else.
  assert all(line.startswith('toy') for line in err.splitlines())
  for noise in ('Generating', 'Shuffling', 'TFDS', 'download'):
    assert noise not in err


def test_tfds_is_quiet_but_its_warnings_are_kept(toy):
  logger = logging.getLogger('absl')
  handler = logging.StreamHandler(stream := io.StringIO())
  logger.addHandler(handler)
  try:
    prepare_toy(toy)
    list(prepared.Dataset('toy/smoke', toy).split('val'))
    assert not stream.getvalue()
    for path, name in (('tensorflow_datasets/x.py', 'a'), ('mine.py', 'b')):
      record = logger.makeRecord(
        'absl', logging.WARNING, path, 1, f'warning {name}', (), None
      )
      logger.handle(record)
  finally:
    logger.removeHandler(handler)
  assert stream.getvalue() == 'warning a\nwarning b\n'


def test_preparing_and_reading_need_no_tensorflow_and_are_quiet(tmp_path):
  code = f"""
import sys
from dermvq_jax.data import prepare, prepared
from dermvq_jax.data.datasets import builder
from test_prepare import Toy
builder.make = lambda _, d, columns: Toy(config='smoke', data_dir=d)
prepare.run('toy/smoke', {str(tmp_path)!r})
prepared.Dataset('toy/smoke', {str(tmp_path)!r}).split('val')[0]
sys.exit('tensorflow' in sys.modules)
"""
  root = pathlib.Path(__file__).parent
  (tmp_path / 'tmp').mkdir()
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=root,
    env=os.environ | {'TMPDIR': str(tmp_path / 'tmp')},
    capture_output=True,
  )
  assert done.returncode == 0
  assert not done.stdout
  # Only progress.
  assert all(b'image/s]' in line for line in done.stderr.splitlines())
  assert not list((tmp_path / 'tmp').iterdir())


# Reading.


def test_reading_before_preparing_names_the_command(tmp_path):
  data_dir = tmp_path / 'data'
  with pytest.raises(errors.UserError) as error:
    prepared.Dataset('ham10000/64', data_dir).split('train')
  assert str(error.value) == (
    f'ham10000/64 is not prepared in {data_dir}; run dermvq prepare '
    f'--dataset=ham10000/64 --data_dir={data_dir}'
  )
  assert not data_dir.exists()


@pytest.mark.parametrize('dataset', ['../x/64', 'x/../64', '', 'ham10000'])
def test_reading_stays_in_its_folder(dataset, tmp_path):
  with pytest.raises(errors.UserError, match='not of the form name/size'):
    prepared.Dataset(dataset, tmp_path).split('train')


def test_no_such_split(toy):
  prepare_toy(toy)
  match = "has no split 'all'; choose one of: "
  with pytest.raises(errors.UserError, match=match):
    prepared.Dataset('toy/smoke', toy).split('all')


def _table(path, flagged):
  rows = [f'{name},yes' for name in flagged] + ['001,no']
  path.write_text('\n'.join(['image,flagged', *rows]) + '\n')
  return path


def _splits(data_dir):
  dataset = prepared.Dataset('toy/smoke', data_dir)
  return {
    split: {record['id'].decode() for record in dataset.split(split)}
    for split in ('train', 'val', 'test')
  }


def test_images_are_left_out(toy, tmp_path, capsys):
  """They are counted and listed; the others stay in their splits."""
  prepare.run('toy/smoke', toy)
  before = _splits(toy)
  table = _table(tmp_path / 'scores.csv', ['000', '017', 'elsewhere.jpg'])
  with pytest.raises(errors.UserError, match='already prepared'):
    prepare.run('toy/smoke', toy, leave_out=table)
  made = prepare.run('toy/smoke', toy, overwrite=True, leave_out=table)
  out = {'000', '017'}
  assert _splits(toy) == {k: ids - out for k, ids in before.items()}
  assert 'Left out 2 images: 000, 017; all are in' in capsys.readouterr().err
  assert (made.data_path / 'left_out.txt').read_text() == '000\n017\n'
  facts = prepared.Dataset('toy/smoke', toy).facts
  assert facts['num_left_out'] == 2


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('image,flagged\n000,no\n', 'flags no image'),
    ('image,p\n000,0.1\n', 'no table with the columns image and flagged'),
    ('image,flagged\nother,yes\n', 'none of the 1 images to leave out'),
    (None, 'no table with the columns'),
  ],
)
def test_tables_that_leave_nothing_out(toy, tmp_path, content, message):
  table = tmp_path / 'scores.csv'
  if content is not None:
    table.write_text(content)
  with pytest.raises(errors.UserError, match=message) as e:
    prepare.run('toy/smoke', toy, leave_out=table)
  assert '\n' not in str(e.value)
  assert not (toy / 'toy').exists()
