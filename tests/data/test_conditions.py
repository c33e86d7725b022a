"""Conditions beside the label: names of values, and their numbers."""

import inspect

import numpy as np
import pytest

from dermvq_jax import errors, inference
from dermvq_jax.data import conditions

KNOWN = {'age': ['0-9', '10-19', '60-69'], 'sex': ['female', 'male']}


@pytest.mark.parametrize(
  ('number', 'width', 'name'),
  [(0, 10, '0-9'), (9.9, 10, '0-9'), (60, 10, '60-69'), (7, 5, '5-9')],
)
def test_a_number_is_in_the_range_of_its_name(number, width, name):
  assert conditions.range_of(number, width) == name
  assert conditions.is_range(name)
  assert conditions.find(number, ['x', name]) == 1


@pytest.mark.parametrize(
  ('value', 'number'),
  [
    *(('60-69', 2), (60, 2), ('69.5', 2), (np.int64(65), 2), (60.0, 2)),
    *((70, None), ('', None), ('old', None), (True, None), ('nan', None)),
  ],
)
def test_find(value, number):
  assert conditions.find(value, KNOWN['age']) == number


def test_values_are_sorted_as_people_sort_them():
  names = ['back', '100-109', '20-29', 'arm', '3']
  expected = ['3', '20-29', '100-109', 'arm', 'back']
  assert conditions.in_order(names) == expected


def test_what_is_not_given_is_null():
  found = conditions.numbers({'sex': ['male', None, 'female']}, KNOWN, 3)
  assert found.keys() == KNOWN.keys()
  np.testing.assert_array_equal(found['age'], [3, 3, 3])
  np.testing.assert_array_equal(found['sex'], [1, 2, 0])
  assert found['sex'].dtype == np.int32
  found = conditions.numbers({'age': 15}, KNOWN, 2)
  np.testing.assert_array_equal(found['age'], [1, 1])


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (
      {'sxe': 'male'},
      "there is no condition 'sxe'; beside the label this prior knows age, "
      'sex; did you mean sex?',
    ),
    (
      {'temprature': 0.5},
      "there is no condition 'temprature'; beside the label this prior knows "
      'age, sex; did you mean temperature?',
    ),
    (
      {'sex': 'femal'},
      "there is no sex 'femal'; its values are female, male; did you mean "
      'female?',
    ),
    ({'age': 35}, 'there is no age 35; its values are 0-9, 10-19, 60-69'),
    ({'sex': ['male']}, '2 images but 1 values of sex'),
    (
      {'site': 'back'},
      'the data have site, but this prior was trained without it; train one '
      'with --config.conditions.site=0.3 in another --workdir',
    ),
    (
      {'label': 'mel'},
      'the label is no condition beside the label; give the class itself',
    ),
  ],
)
def test_mistakes_are_one_line(given, message):
  with pytest.raises(errors.UserError) as error:
    conditions.numbers(given, KNOWN, 2, ('label', 'site', *KNOWN))
  assert str(error.value) == message


def test_a_prior_that_knows_the_label_alone():
  with pytest.raises(errors.UserError, match='this prior knows nothing$'):
    conditions.numbers({'a': 'b'}, {}, 1)


def test_arguments_in_python_are_no_conditions():
  """Otherwise a condition could not be given by its name."""
  for method in vars(inference.Model).values():
    if inspect.isfunction(method):
      parameters = inspect.signature(method).parameters
      if 'conditions' in parameters:
        names = parameters.keys() - {'conditions'}
        assert names <= conditions.RESERVED, method


def test_counts_by_condition_value_and_split():
  records = [
    ({'sex': 'male'}, 'train'),
    ({'sex': 'male', 'age': '0-9'}, 'val'),
    ({'sex': ''}, 'train'),
  ]
  found = conditions.count(records, KNOWN)
  assert found['sex'] == {
    'female': {},
    'male': {'train': 1, 'val': 1},
    '': {'train': 1},
  }
  assert found['age']['0-9'] == {'val': 1}
  assert found['age'][''] == {'train': 2}
