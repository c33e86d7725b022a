"""The processes of several hosts: how they meet and wait, and which writes."""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dermvq_jax import errors


def initialize(
  coordinator: str = '',
  num_processes: int | None = None,
  process_id: int | None = None,
):
  """Joins the processes of several hosts, before any of them uses a device.

  Cloud TPU VMs find each other without arguments. Elsewhere, without
  arguments, this process stays alone.

  Args:
    coordinator: 'host:port' of process 0, which all others can reach.
    num_processes: the number of processes.
    process_id: the number of this process, from 0.

  Raises:
    UserError: only some of the arguments are given.
  """
  given = [bool(coordinator), num_processes is not None, process_id is not None]
  if any(given) and not all(given):
    raise errors.UserError(
      'give --coordinator, --num_processes and --process_id, or none of them'
    )
  if coordinator:
    if not 0 <= process_id < num_processes:
      raise errors.UserError(
        f'--process_id is {process_id}; it must be from 0 to '
        f'{num_processes - 1}, one less than --num_processes'
      )
    jax.distributed.initialize(coordinator, num_processes, process_id)
  elif importlib.util.find_spec('libtpu'):
    try:
      jax.distributed.initialize()
    except ValueError:  # This is neither a TPU nor another known cluster.
      return


def is_primary() -> bool:
  """Whether this process writes the shared files: logs, configs, pictures."""
  return jax.process_index() == 0


def wait_for_all(reason: str):
  """Returns when all processes have called it; `reason` names the place."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(reason)


def check_same(values: Mapping[str, Any]):
  """Checks that all processes have the same values; all must call it.

  Args:
    values: JSON values by name.

  Raises:
    UserError: on every process, if two differ.
  """
  if jax.process_count() == 1:
    return
  hashes = []
  for value in values.values():
    text = json.dumps(value, sort_keys=True)
    digest = hashlib.sha256(text.encode()).digest()
    hashes.append(np.frombuffer(digest[:8], np.uint32))
  everywhere = multihost_utils.process_allgather(np.stack(hashes))
  differing = [
    name
    for i, name in enumerate(values)
    if (everywhere[:, i] != everywhere[0, i]).any()
  ]
  if differing:
    raise errors.UserError(
      f'the hosts differ in their {" and ".join(differing)}; start the same '
      'command with the same data and the same versions on all of them'
    )
