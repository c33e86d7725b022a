"""Tests of what all image datasets share: crop, preparation, reading."""

import contextlib
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
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.data import images, prepare, prepared
from dermvq_jax.data.datasets import builder

NUM_IMAGES = 140


class Toy(builder.ImageBuilder, skip_registration=True):
  """Flat images, one a group; `trouble` happens at every tenth."""

  name = 'toy'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [builder.ImageConfig(name='smoke', size=4)]
  value = 1
  trouble = None

  def read_records(self, manual_dir):
    assert manual_dir is None
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
    return np.full((4, 4, 3), type(self).value * record.source, np.uint8)


@pytest.fixture
def toy(monkeypatch, tmp_path):
  """Makes `prepare` and `open_split` know 'toy/smoke'."""
  monkeypatch.setattr(Toy, 'value', 1)
  monkeypatch.setattr(Toy, 'trouble', None)
  monkeypatch.setattr(
    builder, 'make', lambda _, data_dir: Toy(config='smoke', data_dir=data_dir)
  )
  return tmp_path / 'data'


def prepare_toy(data_dir, **kwargs):
  return prepare.run('toy/smoke', data_dir, **kwargs)


def files_in(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file())


# Crop and resize.


def draw(width, height):
  """A smooth image that differs in both directions."""
  y, x = np.mgrid[0:height, 0:width]
  red, green = 255 * x / width, 255 * y / height
  return Image.fromarray(np.stack([red, green, 255 - red], -1).astype(np.uint8))


@pytest.mark.parametrize('width, height', [(60, 40), (40, 60), (41, 41)])
def test_the_central_square_is_kept(width, height):
  image = draw(width, height)
  side = min(width, height)
  left, top = (width - side) // 2, (height - side) // 2
  square = np.asarray(image)[top : top + side, left : left + side]
  result = images.crop_and_resize(image, side)
  assert result.dtype == np.uint8
  np.testing.assert_array_equal(result, square)


@pytest.mark.parametrize('size', [16, 64, 128])
def test_a_jpeg_decoded_at_a_fraction_is_like_the_exact_square(size, tmp_path):
  image = draw(600, 450)
  path = tmp_path / 'x.jpg'
  image.save(path, quality=95)
  expected = image.crop((75, 0, 525, 450)).resize(
    (size, size), Image.Resampling.LANCZOS
  )
  result = images.read_square(path, size)
  assert result.shape == (size, size, 3)
  difference = result.astype(int) - np.asarray(expected, int)
  assert np.abs(difference).max() <= 6
  assert np.abs(difference).mean() < 1.5


@pytest.mark.parametrize('mode', ['L', 'CMYK', 'P', 'RGBA', '1'])
def test_other_colour_modes_become_rgb(mode):
  result = images.crop_and_resize(draw(20, 20).convert(mode), 8)
  assert result.shape == (8, 8, 3)
  assert result.dtype == np.uint8


def test_small_images_are_enlarged():
  result = images.crop_and_resize(Image.new('RGB', (3, 5), (9, 8, 7)), 16)
  np.testing.assert_array_equal(result, np.full((16, 16, 3), (9, 8, 7)))


# Preparation.


def test_prepare_and_read(toy):
  made = prepare_toy(toy)
  assert made.info.splits['train'].num_examples == 112
  examples = {
    e['id']: e
    for split in ('train', 'val', 'test')
    for e in prepared.open_split('toy/smoke', toy, split)
  }
  assert len(examples) == NUM_IMAGES
  for i in range(NUM_IMAGES):
    example = examples[f'{i:03d}'.encode()]
    assert example['label'] == i % 7
    assert example['group'] == f'group{i:03d}'.encode()
    np.testing.assert_array_equal(example['image'], np.full((4, 4, 3), i))


def test_grain_reads_a_split(toy):
  prepare_toy(toy)
  source = prepared.open_split('toy/smoke', toy, 'val')
  batch = next(iter(grain.MapDataset.source(source).batch(8)))
  assert batch['image'].shape == (8, 4, 4, 3)
  assert batch['image'].dtype == np.uint8


def test_nothing_but_the_dataset_is_left(toy):
  prepare_toy(toy)
  assert [p.name for p in toy.iterdir()] == ['toy']
  names = [p.name for p in files_in(toy / 'toy' / 'smoke' / '1.0.0')]
  assert sum('array_record' in name for name in names) == 3
  assert not list(toy.rglob('*incomplete*'))


def test_prepared_again_returns_at_once_and_says_so(toy, capsys, monkeypatch):
  prepare_toy(toy)
  capsys.readouterr()
  monkeypatch.setattr(Toy, 'trouble', AssertionError('was read again'))
  assert prepare_toy(toy).info.splits['val'].num_examples == 14
  out, err = capsys.readouterr()
  assert not out
  assert err == f'toy/smoke is already prepared in {toy}/toy/smoke/1.0.0\n'


def test_overwrite(toy, monkeypatch):
  prepare_toy(toy)
  monkeypatch.setattr(Toy, 'value', 0)
  prepare_toy(toy, overwrite=True)
  val = prepared.open_split('toy/smoke', toy, 'val')
  assert all((example['image'] == 0).all() for example in val)


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
def test_failure_to_overwrite_brings_the_old_back(toy, monkeypatch, trouble):
  prepare_toy(toy)
  before = {p: p.read_bytes() for p in files_in(toy)}
  monkeypatch.setattr(Toy, 'trouble', trouble)
  with pytest.raises(type(trouble)):
    prepare_toy(toy, overwrite=True)
  assert {p: p.read_bytes() for p in files_in(toy)} == before
  assert prepared.open_split('toy/smoke', toy, 'val')


def test_what_a_killed_run_put_aside_comes_back(toy, monkeypatch):
  """It was replacing the dataset, of which the source may be gone."""
  prepare_toy(toy)
  folder = toy / 'toy' / 'smoke' / '1.0.0'
  before = {p: p.read_bytes() for p in files_in(toy)}
  folder.rename(folder.with_name('incomplete.replaced_1.0.0'))
  monkeypatch.setattr(Toy, 'trouble', RuntimeError('prepared again'))
  prepare_toy(toy)
  assert {p: p.read_bytes() for p in files_in(toy)} == before


def test_what_a_killed_run_left_is_removed(toy):
  stale = toy / 'toy' / 'smoke' / 'incomplete.ABC123_1.0.0'
  stale.mkdir(parents=True)
  (stale / 'toy-train.array_record').write_bytes(b'half')
  with pytest.raises(errors.UserError, match='is not prepared'):
    prepared.open_split('toy/smoke', toy, 'train')
  prepare_toy(toy)
  assert not stale.exists()


def test_a_folder_without_its_description_is_not_taken_for_prepared(toy):
  prepare_toy(toy)
  (toy / 'toy' / 'smoke' / '1.0.0' / 'dataset_info.json').unlink()
  prepare_toy(toy)
  assert len(prepared.open_split('toy/smoke', toy, 'val')) == 14


def test_other_processes_are_waited_for(toy, monkeypatch):
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
      # As ArrayRecord's writer says it.
      RuntimeError('write() failed: No space left on device; writing x\ny'),
      r'write\(\) failed: No space left on device;',
    ),
  ],
)
def test_what_the_system_refuses(toy, monkeypatch, trouble, match):
  monkeypatch.setattr(Toy, 'trouble', trouble)
  match = f'cannot prepare toy/smoke in .*data: .*{match}.* make room and'
  with pytest.raises(errors.UserError, match=match) as error:
    prepare_toy(toy)
  assert '\n' not in str(error.value)
  assert not list(toy.rglob('*'))


def test_a_data_dir_that_can_not_be(toy):
  toy.write_text('a file')
  with pytest.raises(errors.UserError, match='cannot prepare toy/smoke in'):
    prepare_toy(toy)
  assert toy.read_text() == 'a file'


def test_other_runtime_errors_are_bugs(toy, monkeypatch):
  monkeypatch.setattr(Toy, 'trouble', RuntimeError('a bug'))
  with pytest.raises(RuntimeError, match='a bug'):
    prepare_toy(toy)


# What the user sees.


def test_one_progress_bar_on_stderr(toy, capsys):
  prepare_toy(toy)
  out, err = capsys.readouterr()
  assert not out
  assert 'toy test: 100%' in err
  assert f'{NUM_IMAGES}/{NUM_IMAGES}' in err
  assert err.count('\n') == 1
  for noise in ('Generating', 'Shuffling', 'TFDS', 'download'):
    assert noise not in err


def test_tfds_is_quiet_but_its_warnings_are_kept(toy):
  logger = logging.getLogger('absl')
  handler = logging.StreamHandler(stream := io.StringIO())
  logger.addHandler(handler)
  try:
    prepare_toy(toy)
    list(prepared.open_split('toy/smoke', toy, 'val'))
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
import test_builder
builder.make = lambda _, d: test_builder.Toy(config='smoke', data_dir=d)
prepare.run('toy/smoke', {str(tmp_path)!r})
prepared.open_split('toy/smoke', {str(tmp_path)!r}, 'val')[0]
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
  # The progress bar and nothing else.
  assert done.stderr.count(b'\n') == 1
  assert done.stderr.endswith(b'image/s]\n')
  assert not list((tmp_path / 'tmp').iterdir())


# Names.


@pytest.mark.parametrize(
  'dataset, match',
  [
    ('../x/64', "'../x/64' is not of the form name/size"),
    ('', "'' is not of the form"),
    ('nothing/64', "there is no dataset 'nothing'"),
    ('splits/64', "there is no dataset 'splits'"),
    ('ham10000/65', "no config '65'; choose one of: ham10000/64, ham10000/128"),
    ('ham10000', "no config ''; choose one of: ham10000/64"),
    ('codes/0123', "'codes' is not prepared from images"),
  ],
)
def test_datasets_that_are_not(dataset, match, tmp_path):
  for use in (
    lambda: builder.make(dataset, tmp_path),
    lambda: prepare.run(dataset, tmp_path),
  ):
    with pytest.raises(errors.UserError, match=match):
      use()


def test_reading_before_preparing_names_the_command(tmp_path):
  data_dir = tmp_path / 'data'
  with pytest.raises(errors.UserError) as error:
    prepared.open_split('ham10000/64', data_dir, 'train')
  assert str(error.value) == (
    f'ham10000/64 is not prepared in {data_dir}; run dermvq prepare '
    f'--dataset=ham10000/64 --data_dir={data_dir}'
  )
  assert not data_dir.exists()


@pytest.mark.parametrize('dataset', ['../x/64', 'x/../64', '', 'ham10000'])
def test_reading_stays_in_its_folder(dataset, tmp_path):
  with pytest.raises(errors.UserError, match='not of the form name/size'):
    prepared.open_split(dataset, tmp_path, 'train')


def test_no_such_split(toy):
  prepare_toy(toy)
  match = "has no split 'all'; choose one of: "
  with pytest.raises(errors.UserError, match=match):
    prepared.open_split('toy/smoke', toy, 'all')


def test_home_is_understood(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  made = builder.make('ham10000/smoke', '~/data')
  assert os.fspath(made.data_path).startswith(str(tmp_path))
  with contextlib.suppress(errors.UserError):
    prepare.run('ham10000/smoke', '~/data', '~/nowhere')
  assert not (tmp_path / 'data').exists()
