"""Tests of the base class of datasets of images: what it stores; names."""

import contextlib
import dataclasses
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dermvq_jax import errors
from dermvq_jax.data import prepare, prepared
from dermvq_jax.data.datasets import builder, description

SEXES = ('female', 'male')
SITES = ('back', 'face', 'scalp')


def conditions_of(i):
  """The conditions of image i; every fourth sex and most sites are unknown."""
  conditions = {'sex': (*SEXES, *SEXES, '')[i % 5]}
  if i % 10 < 3:
    conditions['site'] = SITES[i % 10]
  return conditions


class Toy(builder.ImageBuilder, skip_registration=True):
  """Flat images with two conditions besides the label."""

  name = 'toy'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [builder.ImageConfig(name='smoke', size=4)]
  conditions = {'sex': SEXES, 'site': SITES}
  extra_fields = {'number': tfds.features.Scalar(np.int32)}
  changes = {}

  def read_records(self, folder):
    return [
      builder.Record(
        id=f'{i}',
        label=builder.CLASS_NAMES[i % 7],
        group=f'{i}',
        source=i,
        conditions=conditions_of(i) | (type(self).changes if i == 9 else {}),
        extra_fields={'number': i},
      )
      for i in range(140)
    ]

  def read_image(self, record):
    return np.full((4, 4, 3), record.source, np.uint8)


def prepare_toy(data_dir):
  prepare.write(lambda: Toy(config='smoke', data_dir=data_dir))
  return prepared.Dataset('toy/smoke', data_dir)


# Conditions.


def test_conditions_are_stored_as_numbers(tmp_path):
  dataset = prepare_toy(tmp_path)
  records = [r for s in ('train', 'val', 'test') for r in dataset.split(s)]
  assert len(records) == 140
  for record in records:
    i = int(record['id'])
    names = conditions_of(i)
    sex, site = names['sex'], names.get('site')
    assert record['sex'] == (SEXES.index(sex) if sex else 2)
    assert record['site'] == (SITES.index(site) if site else 3)
    assert record['label'] == i % 7
    assert record['number'] == i
  assert {int(r['sex']) for r in records} == {0, 1, 2}
  assert {int(r['site']) for r in records} == {0, 1, 2, 3}


def test_conditions_are_facts_of_the_dataset(tmp_path):
  facts = prepare_toy(tmp_path).facts
  assert facts['conditions'] == {
    'label': list(builder.CLASS_NAMES),
    'sex': list(SEXES),
    'site': list(SITES),
  }


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'sex': 'm'},
      "the image 9 has sex 'm'; it must be one of female, male, or blank if "
      'it is not known',
    ),
    (
      {'age': '60'},
      "the image 9 has the condition 'age', which the dataset toy does not "
      'declare; add it to the conditions of its Builder',
    ),
  ],
)
def test_unknown_conditions(tmp_path, monkeypatch, changes, message):
  monkeypatch.setattr(Toy, 'changes', changes)
  with pytest.raises(errors.UserError) as error:
    prepare_toy(tmp_path / 'data')
  assert str(error.value) == message
  assert not list((tmp_path / 'data').rglob('*'))


@pytest.mark.parametrize('name', ['label', 'id', 'group'])
def test_conditions_with_the_name_of_another_field(name):
  with pytest.raises(TypeError, match=name):
    description.shared_features(('a', 'b'), {name: ('x',)})


# Fingerprints, and what cannot be learnt.


class Fixed(builder.ImageBuilder, skip_registration=True):
  """Twelve images with fixed splits; class attributes change them."""

  name = 'fixed'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [builder.ImageConfig(name='smoke', size=4)]
  class_names = ('a', 'b')
  conditions = {'sex': SEXES}
  changes = {}
  pixels = staticmethod(lambda i: 5 * i)

  def read_records(self, folder):
    records = [
      builder.Record(
        id=f'{i}',
        label='ab'[i % 2],
        group=f'group{i}',
        source=i,
        conditions={'sex': 'male'},
        split=('train', 'val', 'test')[i // 4],
      )
      for i in range(12)
    ]
    records[5] = dataclasses.replace(records[5], **type(self).changes)
    return records

  def read_image(self, record):
    return np.full((4, 4, 3), type(self).pixels(record.source), np.uint8)


def prepare_fixed(data_dir):
  prepare.write(lambda: Fixed(config='smoke', data_dir=data_dir))
  return prepared.Dataset('fixed/smoke', data_dir)


@pytest.fixture(scope='module')
def fingerprint(tmp_path_factory):
  """The fingerprint of `Fixed` without changes."""
  return prepare_fixed(tmp_path_factory.mktemp('data')).facts['fingerprint']


def test_a_fingerprint_for_each_split(fingerprint, tmp_path):
  assert set(fingerprint) == {'train', 'val', 'test'}
  assert all(len(bytes.fromhex(v)) == 8 for v in fingerprint.values())
  assert len(set(fingerprint.values())) == 3
  assert prepare_fixed(tmp_path).facts['fingerprint'] == fingerprint


@pytest.mark.parametrize(
  'changes',
  [
    {'id': 'x'},
    {'label': 'a'},
    {'group': 'x'},
    {'conditions': {'sex': 'female'}},
    {'conditions': {}},
    {'source': 6},
  ],
  ids=str,
)
def test_every_change_of_a_record_shows(
  fingerprint, tmp_path, monkeypatch, changes
):
  monkeypatch.setattr(Fixed, 'changes', changes)
  found = prepare_fixed(tmp_path).facts['fingerprint']
  assert found['val'] != fingerprint['val']
  assert found | {'val': ''} == fingerprint | {'val': ''}


def test_images_of_an_earlier_version_have_no_fingerprint(tmp_path):
  prepare_fixed(tmp_path)
  file = tmp_path / 'fixed/smoke/1.0.0/metadata.json'
  file.write_text('{"conditions": {}, "train_variance": 0.1}')
  dataset = prepared.Dataset('fixed/smoke', tmp_path)
  with pytest.raises(errors.UserError, match='again, with --overwrite') as e:
    dataset.check()
  assert '\n' not in str(e.value)


def test_training_images_of_one_colour(tmp_path, monkeypatch):
  monkeypatch.setattr(Fixed, 'pixels', lambda i: 255 if i < 4 else i)
  match = 'all pixels of all 4 training images have the same value, 255; look'
  with pytest.raises(errors.UserError, match=match):
    prepare_fixed(tmp_path / 'data')
  assert not list((tmp_path / 'data').rglob('*'))


def test_classes_without_training_images(tmp_path, monkeypatch, capsys):
  assert prepare_fixed(tmp_path / 'all').facts['untrained_classes'] == []
  assert 'no training images' not in capsys.readouterr().err
  monkeypatch.setattr(Fixed, 'class_names', ('a', 'b', 'c', 'd'))
  monkeypatch.setattr(Fixed, 'changes', {'label': 'c'})
  facts = prepare_fixed(tmp_path / 'some').facts
  assert facts['untrained_classes'] == ['c', 'd']
  err = capsys.readouterr().err
  assert 'fixed: there are no training images of c, d; models will not' in err


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
    ('codes/0123', "there is no dataset 'codes'"),
  ],
)
def test_unknown_datasets(dataset, match, tmp_path):
  for use in (
    lambda: builder.make(dataset, tmp_path),
    lambda: prepare.run(dataset, tmp_path),
  ):
    with pytest.raises(errors.UserError, match=match):
      use()


def test_a_data_dir_may_begin_with_a_tilde(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  made = builder.make('ham10000/smoke', '~/data')
  assert os.fspath(made.data_path).startswith(str(tmp_path))
  with contextlib.suppress(errors.UserError):
    prepare.run('ham10000/smoke', '~/data', '~/nowhere')
  assert not (tmp_path / 'data').exists()
