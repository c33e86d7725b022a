"""Tests of the dataset of codes: its records and its facts."""

import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.data import codes, prepare, prepared

CLASS_NAMES = ('mel', 'nv')
FINGERPRINT = {'train': '01', 'val': '23', 'test': '45'}
CONDITIONS = {'sex': ('female', 'male')}


def write(data_dir, conditions, name='0123_x2'):
  """Writes codes of six images for each split."""

  def examples(split):
    for i in range(6):
      yield {
        'codes': np.full((2, 4), i, np.int32),
        'label': i % 2,
        'id': f'{split}_{i}',
        'group': f'{i}',
        **{condition: i % 3 for condition in conditions},
      }

  config = codes.CodesConfig(
    name=name,
    codebook_size=8,
    grid=(2, 4),
    num_levels=2,
    class_names=CLASS_NAMES,
    conditions=conditions,
    images='toy/smoke',
    images_fingerprint=FINGERPRINT,
    copies=2,
    examples=examples,
  )
  prepare.write(lambda: codes.Builder(config=config, data_dir=data_dir))
  return prepared.Dataset(f'codes/{name}', data_dir)


@pytest.mark.parametrize('conditions', [{}, CONDITIONS], ids=['label', 'sex'])
def test_records(tmp_path, conditions):
  dataset = write(tmp_path, conditions)
  for split in ('train', 'val', 'test'):
    records = sorted(dataset.split(split), key=lambda record: record['id'])
    assert len(records) == 6
    for i, record in enumerate(records):
      assert record.keys() == {'codes', 'label', 'id', 'group', *conditions}
      np.testing.assert_array_equal(record['codes'], np.full((2, 4), i))
      assert record['codes'].dtype == np.int32
      assert record['label'] == i % 2
      assert record['id'].decode() == f'{split}_{i}'
      for condition in conditions:
        assert record[condition] == i % 3  # 2 is the null value


def test_levels_of_codes_that_an_earlier_version_wrote(tmp_path):
  write(tmp_path, {})
  [file] = tmp_path.rglob('metadata.json')
  text = file.read_text()
  assert 'num_levels' in text
  file.write_text(text.replace('num_levels', 'levels'))
  facts = prepared.Dataset('codes/0123_x2', tmp_path).facts
  assert facts['num_levels'] == 2 and 'levels' not in facts


def test_facts(tmp_path):
  facts = write(tmp_path, CONDITIONS).facts
  assert facts['codebook_size'] == 8
  assert facts['grid'] == [2, 4]
  assert facts['num_levels'] == 2
  assert facts['class_names'] == list(CLASS_NAMES)
  assert facts['conditions'] == {
    'label': list(CLASS_NAMES),
    'sex': list(CONDITIONS['sex']),
  }
  assert facts['images'] == 'toy/smoke'
  assert facts['images_fingerprint'] == FINGERPRINT
  assert facts['copies'] == 2
  assert facts['vqvae_digest'] == '0123'


def test_codes_that_cannot_be_written_beside_their_images(
  tmp_path, monkeypatch
):
  def fail(*_, **__):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(prepare.files, 'make_folder', fail)
  match = 'permissions there, or copy the images to another --data_dir'
  with pytest.raises(errors.UserError, match=match):
    write(tmp_path, {})
