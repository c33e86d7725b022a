"""Tests of reading images with Apache Beam, which has its own environment."""

import importlib.util

import fabricate
import pytest

from dermvq_jax import errors
from dermvq_jax.data import beam, prepare, prepared

_HAS_BEAM = importlib.util.find_spec('apache_beam') is not None
_needs_beam = pytest.mark.skipif(not _HAS_BEAM, reason='needs apache-beam')
# The readers are other processes, as they are on other machines.
_PROCESSES = (
  'runner=FnApiRunner,direct_num_workers=2,direct_running_mode=multi_processing'
)


def content(made):
  """The facts of a dataset, and the records of each split in order."""
  dataset = prepared.Dataset(made.name + '/smoke', made.data_path.parents[2])
  records = {
    split: [
      sorted((name, str(value)) for name, value in record.items())
      for record in dataset.split(split, decode_images=False)
    ]
    for split in ('train', 'val', 'test')
  }
  return dataset.facts, records, made.contents


@_needs_beam
@pytest.mark.slow
@pytest.mark.parametrize(
  'dataset, write, options',
  [
    ('image_folder', fabricate.class_folders, 'runner=DirectRunner'),
    ('isic2019', fabricate.isic2019, _PROCESSES),  # Images in a zip.
    ('pad_ufes_20', fabricate.pad_ufes_20, 'runner=DirectRunner'),
  ],
)
def test_beam_writes_the_same_files(
  tmp_path, monkeypatch, dataset, write, options
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine').mkdir()
  write(tmp_path / 'mine')
  one, two = (
    prepare.run(f'{dataset}/smoke', data_dir, 'mine', beam_options=beam_options)
    for data_dir, beam_options in (('one', None), ('two', options))
  )
  assert content(one) == content(two)
  names = [sorted(p.name for p in m.data_path.iterdir()) for m in (one, two)]
  assert names[0] == names[1]


@_needs_beam
@pytest.mark.slow
@pytest.mark.parametrize('num_damaged', [2, 30])
def test_beam_names_all_unreadable_files(tmp_path, capsys, num_damaged):
  fabricate.class_folders(tmp_path / 'mine')
  damaged = sorted(tmp_path.glob('mine/*/*.jpg'))[:num_damaged]
  for path in damaged:
    path.write_bytes(b'x')
  with pytest.raises(errors.UserError) as e:
    prepare.run(
      'image_folder/smoke',
      tmp_path / 'data',
      tmp_path / 'mine',
      beam_options='runner=DirectRunner',
    )
  said = str(e.value) + capsys.readouterr().err
  assert all(f'{path} is unreadable' in said for path in damaged)
  assert f'; {num_damaged - 1} more cannot be used either' in str(e.value)
  assert not list((tmp_path / 'data').rglob('*record*'))


@_needs_beam
def test_images_that_are_no_files(tmp_path):
  with pytest.raises(errors.UserError, match='reads image files'):
    prepare.run(
      'synthetic_dermoscopy/smoke', tmp_path, beam_options='runner=DirectRunner'
    )


@_needs_beam
def test_a_runner_that_does_not_exist():
  with pytest.raises(errors.UserError, match='Unexpected.*runner: Nonsense'):
    beam.options('runner=Nonsense')


@pytest.mark.skipif(_HAS_BEAM, reason='apache-beam is installed')
def test_beam_is_not_installed(tmp_path):
  with pytest.raises(errors.UserError, match=r'apache_beam.*beam\.txt'):
    prepare.run('image_folder/smoke', tmp_path, beam_options='')


def test_beam_has_its_own_workers(tmp_path):
  with pytest.raises(errors.UserError, match='--max_workers is not for'):
    prepare.run('image_folder/smoke', tmp_path, max_workers=1, beam_options='')


@pytest.mark.parametrize(
  'error, reason',
  [
    (
      RuntimeError('Traceback:\n  line\nOSError: no disk\n'),
      'OSError: no disk',
    ),
    (KeyError(), 'KeyError()'),
  ],
)
def test_a_pipeline_that_fails(error, reason):
  assert f'failed ({reason}); check' in str(beam.failure(error))
