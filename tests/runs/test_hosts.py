"""What several hosts agree on; test_several_hosts.py starts real ones."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from dermvq_jax import errors
from dermvq_jax.runs import hosts


def two_hosts(monkeypatch, other):
  """As if another host had called with `other`."""

  def allgather(mine):
    if not gathered:
      gathered.append(mine)
      hosts.check_same(other)
      return np.stack([mine, gathered[1]])
    gathered.append(mine)
    return np.stack([mine, mine])

  gathered = []
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(multihost_utils, 'process_allgather', allgather)


def test_hosts_that_agree(monkeypatch):
  values = {'config': {'a': 1, 'b': [2, 3]}, 'data': {'num_train': 4}}
  two_hosts(
    monkeypatch, {'config': {'b': [2, 3], 'a': 1}, 'data': values['data']}
  )
  hosts.check_same(values)


def test_hosts_that_differ_are_told_in_what(monkeypatch):
  two_hosts(monkeypatch, {'config': {'a': 1}, 'data': 2, 'versions': 3})
  with pytest.raises(
    errors.UserError, match='the hosts differ in their config and versions;'
  ):
    hosts.check_same({'config': {'a': 2}, 'data': 2, 'versions': 4})


def test_one_host_agrees_with_itself():
  hosts.check_same({'config': object})  # Nothing is compared.


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('a:1', 2, None), 'or none of them'),
    (('', 2, 0), 'or none of them'),
    (('a:1', 2, 2), '--process_id is 2'),
  ],
)
def test_mistakes(arguments, message):
  with pytest.raises(errors.UserError, match=message):
    hosts.initialize(*arguments)
