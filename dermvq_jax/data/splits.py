"""Leak-free splits: whole groups, stratified by class, fixed by a hash."""

import collections
import hashlib
from collections.abc import Iterable, Sequence

SPLITS = ('train', 'val', 'test')
_VAL_SHARE = 0.1
_TEST_SHARE = 0.1


def _rank(group: str) -> bytes:
  return hashlib.sha256(group.encode()).digest()


def join_groups(
  groups: Sequence[str], pairs: Iterable[tuple[str, str]]
) -> dict[str, str]:
  """Merges groups that `pairs` say are one.

  Args:
    groups: all group names.
    pairs: pairs of group names that belong together; names that are not in
      `groups` are ignored.

  Returns:
    For every group the name of its merged group: the smallest name in it.
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

  Groups (a lesion or a patient) are never divided. Within each class the
  groups are ordered by a hash of their name and cut at the shares, so the
  result depends neither on the order of the examples nor on the machine, and
  every class has its share in every split. Added groups can move others: a
  part of a dataset has other splits than the whole. A group's class is its
  most frequent label.

  Args:
    groups: group of each example.
    labels: class of each example.

  Returns:
    The split's name for each example.
  """
  votes = collections.defaultdict(collections.Counter)
  for group, label in zip(groups, labels):
    votes[group][label] += 1
  by_class = collections.defaultdict(list)
  for group, counter in votes.items():
    # Ties go to the alphabetically first class.
    label = min(counter, key=lambda name: (-counter[name], name))
    by_class[label].append(group)
  split_of = {}
  for members in by_class.values():
    members.sort(key=_rank)
    num_val = round(_VAL_SHARE * len(members))
    num_test = round(_TEST_SHARE * len(members))
    for i, group in enumerate(members):
      if i < num_val:
        split_of[group] = 'val'
      elif i < num_val + num_test:
        split_of[group] = 'test'
      else:
        split_of[group] = 'train'
  return [split_of[group] for group in groups]
