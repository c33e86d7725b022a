"""Tests of splits: undivided groups, every class, fixed by names only."""

import collections
import hashlib
import random

import pytest

from dermvq_jax.data import splits

VAL = ['HAM_0000010', 'HAM_0000016']
TEST = ['HAM_0000004', 'HAM_0000017']
CLASSES = {'nv': 400, 'mel': 100, 'df': 20, 'vasc': 7}


def _examples():
  """One to six examples per lesion, as in HAM10000."""
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


def test_every_label_has_groups_for_training():
  """Here the groups with a df are mostly nv, and were all held out."""
  groups = [f'HAM_{i:07d}' for i in range(20)] * 3
  labels = ['nv'] * 60
  before = splits.assign(groups, labels)
  for held_out in (VAL[:1], VAL, [*VAL, TEST[0]], [VAL[0], TEST[0]], TEST):
    mixed = ['df' if g in held_out else 'nv' for g in groups[:20]] + labels[20:]
    after = dict(zip(groups, splits.assign(groups, mixed)))
    moved = [g for g, s in zip(groups[:20], before) if after[g] != s]
    assert len(moved) == 1 and after[moved[0]] == 'train'
    assert moved[0] in (TEST if held_out == TEST else VAL)
  mixed = ['df' if g in (*VAL, 'HAM_0000000') else 'nv' for g in groups[:20]]
  assert splits.assign(groups, mixed + labels[20:]) == before


# Folds: published results used the expected values.


@pytest.mark.parametrize(
  ('fold', 'digest'),
  enumerate(
    (
      '999ae080487f78dd',
      '689c5ba6e8dee3d1',
      'a1a5f358ea3d201e',
      '3510a565c854b6ad',
      'a5c93e9ff1d6b757',
    )
  ),
)
def test_fixed_folds_of_many_groups(fold, digest):
  result = ' '.join(splits.assign_fold(*_examples(), fold, 5))
  assert hashlib.sha256(result.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
  ('fold', 'test', 'val'),
  [
    (0, [1, 3, 6, 16, 17, 18, 19, 26, 27, 28], [9, 15]),
    (1, [4, 5, 7, 10, 12, 13, 14, 20, 21, 23], [9, 15]),
    (2, [0, 2, 8, 9, 11, 15, 22, 24, 25, 29], [13, 23]),
  ],
)
def test_fixed_folds(fold, test, val):
  groups = [f'HAM_{i:07d}' for i in range(30)]
  result = splits.assign_fold(groups, ['nv'] * 30, fold, 3)
  assert [i for i in range(30) if result[i] == 'test'] == test
  assert [i for i in range(30) if result[i] == 'val'] == val


def test_each_group_is_held_out_once():
  groups, labels = _examples()
  held_out = collections.Counter()
  for fold in range(5):
    result = splits.assign_fold(groups, labels, fold, 5)
    found = collections.defaultdict(set)
    for group, split in zip(groups, result):
      found[group].add(split)
    assert all(len(s) == 1 for s in found.values())
    in_fold = [g for g, s in found.items() if s == {'test'}]
    held_out.update(in_fold)
    for label, count in CLASSES.items():
      share = sum(g.startswith(f'{label}_') for g in in_fold) / count
      assert share == pytest.approx(1 / 5, abs=1 / count)
  assert held_out == dict.fromkeys(groups, 1)


@pytest.mark.parametrize('size', [2, 9])
def test_folds_of_a_small_class_have_no_validation(size):
  groups = [str(i) for i in range(size)]
  for fold in range(5):
    result = splits.assign_fold(groups, ['rare'] * size, fold, 5)
    assert 'val' not in result


# Groups that belong together.


def test_join_groups_is_transitive_and_ignores_unknown_names():
  groups = ['d', 'c', 'b', 'a', 'e']
  pairs = [('d', 'c'), ('b', 'c'), ('e', 'elsewhere')]
  expected = {'a': 'a', 'b': 'b', 'c': 'b', 'd': 'b', 'e': 'e'}
  assert splits.join_groups(groups, pairs) == expected
  assert splits.join_groups(groups[::-1], pairs[::-1]) == expected


def test_nothing_to_assign():
  assert splits.assign([], []) == []
  assert splits.assign_fold([], [], 0, 5) == []
