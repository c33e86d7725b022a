"""Tests of splits: whole groups, every class, fixed by names alone."""

import collections
import random

import pytest

from dermvq_jax.data import splits

VAL = ['HAM_0000010', 'HAM_0000016']
TEST = ['HAM_0000004', 'HAM_0000017']
CLASSES = {'nv': 400, 'mel': 100, 'df': 20, 'vasc': 7}


def _examples():
  """One to six examples a lesion, as in HAM10000."""
  rng = random.Random(0)
  groups, labels = [], []
  for label, count in CLASSES.items():
    for i in range(count):
      size = rng.choice((1, 1, 1, 2, 3, 6))
      groups += [f'{label}_{i}'] * size
      labels += [label] * size
  return groups, labels


def test_groups_are_never_divided():
  groups, labels = _examples()
  found = collections.defaultdict(set)
  for group, split in zip(groups, splits.assign(groups, labels)):
    found[group].add(split)
  assert len(groups) > len(found)
  assert all(len(s) == 1 for s in found.values())


def test_every_class_has_its_share_of_groups_in_every_split():
  groups, labels = _examples()
  members = collections.defaultdict(set)
  for group, label, split in zip(groups, labels, splits.assign(groups, labels)):
    members[label, split].add(group)
  for label, count in CLASSES.items():
    assert len(members[label, 'val']) == round(0.1 * count)
    assert len(members[label, 'test']) == round(0.1 * count)
    assert len(members[label, 'train']) == count - 2 * round(0.1 * count)


@pytest.mark.parametrize('seed', range(3))
def test_the_order_of_examples_does_not_matter(seed):
  groups, labels = _examples()
  expected = dict(zip(groups, splits.assign(groups, labels)))
  rows = list(zip(groups, labels))
  random.Random(seed).shuffle(rows)
  shuffled_groups, shuffled_labels = zip(*rows)
  result = splits.assign(shuffled_groups, shuffled_labels)
  assert dict(zip(shuffled_groups, result)) == expected


def test_a_fixed_result():
  # Another machine, or another release, must not move anything.
  groups = [f'HAM_{i:07d}' for i in range(20)]
  split_of = dict(zip(groups, splits.assign(groups, ['nv'] * 20)))
  assert [g for g in groups if split_of[g] == 'val'] == VAL
  assert [g for g in groups if split_of[g] == 'test'] == TEST


def test_the_most_frequent_label_is_the_groups_class():
  groups = ['mixed'] * 3 + [f'g{i}' for i in range(9)]
  as_nv = splits.assign(groups, ['nv', 'mel', 'nv'] + ['nv'] * 9)
  assert as_nv == splits.assign(groups, ['nv'] * 12)
  tie = splits.assign(['a', 'a'], ['nv', 'mel'])
  assert tie == splits.assign(['a', 'a'], ['mel', 'nv'])


def test_join_groups_is_transitive_and_ignores_unknown_names():
  groups = ['d', 'c', 'b', 'a', 'e']
  pairs = [('d', 'c'), ('b', 'c'), ('e', 'elsewhere')]
  expected = {'a': 'a', 'b': 'b', 'c': 'b', 'd': 'b', 'e': 'e'}
  assert splits.join_groups(groups, pairs) == expected
  assert splits.join_groups(groups[::-1], pairs[::-1]) == expected


def test_nothing_to_assign():
  assert splits.assign([], []) == []
