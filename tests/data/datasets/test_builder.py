"""Tests of the base class of all datasets of images: conditions, names."""

import contextlib
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dermvq_jax import errors
from dermvq_jax.data import prepare, prepared
from dermvq_jax.data.datasets import builder

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
    builder.shared_features(('a', 'b'), {name: ('x',)})


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
