"""Splits without leaks: groups stay together, each class has its share.

A hash of the group's name decides, so the same groups with the same labels
always get the same splits, on every machine and in every order.
"""

import collections
import hashlib
from collections.abc import Iterable, Sequence

SPLITS = ('train', 'val', 'test')
_VAL_SHARE = 0.1
_TEST_SHARE = 0.1
# In a fold, every n-th group that is not held out is for validation.
_VAL_EVERY = 10


def join_groups(
  groups: Sequence[str], pairs: Iterable[tuple[str, str]]
) -> dict[str, str]:
  """Merges groups that belong together.

  Args:
    groups: all group names.
    pairs: pairs of group names that belong together; pairs with a name that is
      not in `groups` are ignored.

  Returns:
    For every group the name of its merged group, which is the smallest name in
    it.
  """
  parent = {group: group for group in groups}

  def root(group):
    while parent[group] != group:
      group = parent[group]
    return group

  for a, b in pairs:
    if a in parent and b in parent:
      first, second = sorted((root(a), root(b)))
      parent[second] = first
  return {group: root(group) for group in parent}


def assign(groups: Sequence[str], labels: Sequence[str]) -> list[str]:
  """Assigns every example to 'train', 'val' or 'test' (80/10/10).

  A group (a lesion or a patient) is never divided. Within each class the groups
  are sorted by a hash of their name and cut at the shares. So every class has
  its share in every split. A group's class is its most frequent label. A label
  that would have no training example, because it occurs only in groups of other
  classes, gets one of these groups for training. Adding groups can move other
  groups, so a part of a dataset has other splits than the entire dataset.

  Args:
    groups: group of each example.
    labels: class of each example.

  Returns:
    The name of the split of each example.
  """
  split_of = {}
  for members in _shuffled_by_class(groups, labels):
    num_val = round(_VAL_SHARE * len(members))
    num_test = round(_TEST_SHARE * len(members))
    split_of |= dict.fromkeys(members, 'train')
    split_of |= dict.fromkeys(members[:num_val], 'val')
    split_of |= dict.fromkeys(members[num_val : num_val + num_test], 'test')
  _train_every_label(split_of, groups, labels)
  return [split_of[group] for group in groups]


def _train_every_label(
  split_of: dict[str, str], groups: Sequence[str], labels: Sequence[str]
):
  """Changes the splits of groups so that each label has a training group."""
  groups_of = collections.defaultdict(set)
  for group, label in zip(groups, labels):
    groups_of[label].add(group)
  for label in sorted(groups_of):
    held_out = collections.defaultdict(list)
    for group in sorted(groups_of[label], key=_hash):
      held_out[split_of[group]].append(group)
    if 'train' not in held_out:
      # The split with more of its groups gives one up; val, if both have as
      # many.
      most = max(('val', 'test'), key=lambda split: len(held_out[split]))
      split_of[held_out[most][0]] = 'train'


def assign_fold(
  groups: Sequence[str], labels: Sequence[str], fold: int, num_folds: int
) -> list[str]:
  """Assigns every example to a split of one fold of a cross-validation.

  As in `assign`, groups are never divided. The groups of each class are dealt
  out to the folds in turn, so every class is spread as evenly as possible.
  Groups of this fold are 'test'. Among the other groups of each class, every
  tenth is 'val' and the rest 'train'. Over all folds, each example is in 'test'
  once.

  Args:
    groups: group of each example.
    labels: class of each example.
    fold: number of the fold, from 0 to `num_folds - 1`.
    num_folds: number of folds.

  Returns:
    The name of the split of each example.
  """
  split_of = {}
  for members in _shuffled_by_class(groups, labels):
    others = [g for i, g in enumerate(members) if i % num_folds != fold]
    split_of |= dict.fromkeys(members, 'test')
    split_of |= dict.fromkeys(others, 'train')
    # Not the first, because a class with few groups needs all for training.
    split_of |= dict.fromkeys(others[_VAL_EVERY - 1 :: _VAL_EVERY], 'val')
  return [split_of[group] for group in groups]


def _shuffled_by_class(
  groups: Sequence[str], labels: Sequence[str]
) -> list[list[str]]:
  """Returns the groups of each class, in the order of a hash of their names."""
  votes = collections.defaultdict(collections.Counter)
  for group, label in zip(groups, labels):
    votes[group][label] += 1
  by_class = collections.defaultdict(list)
  for group, counter in votes.items():
    # Ties go to the alphabetically first class.
    label = min(counter, key=lambda name: (-counter[name], name))
    by_class[label].append(group)
  return [sorted(members, key=_hash) for members in by_class.values()]


def _hash(name: str) -> bytes:
  return hashlib.sha256(name.encode()).digest()
