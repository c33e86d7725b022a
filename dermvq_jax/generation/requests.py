"""What images are asked for: classes, conditions, and how many of each."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from dermvq_jax import errors, inference
from dermvq_jax.runs import run as run_lib

_Counts = dict[str, int]  # number of images of each class
Where = dict[str, str]  # the name of a value of each condition
# More are taken for a slip.
_MAX_IMAGES = 10_000_000


@dataclasses.dataclass(frozen=True)
class Group:
  """Images of one class under the same conditions.

  Attributes:
    label: the number of the class.
    count: how many are asked for.
    where: the name of a value of each condition that is given.
  """

  label: int
  count: int
  where: Where


def balancing_counts(
  labels: np.ndarray, class_names: Sequence[str], copies: int = 1
) -> dict[str, int]:
  """How many images each class lacks to be as large as the largest one.

  Args:
    labels: int `[N]`, the labels of the training images.
    class_names: names of the labels.
    copies: how often each training image occurs in `labels`.
  """
  counts = np.bincount(labels, minlength=len(class_names)) // copies
  lacking = dict(zip(class_names, (counts.max() - counts).tolist()))
  for name, have in zip(class_names, counts):
    shown = errors.printable(name)
    logging.info('%s: %d training images, %d new', shown, have, lacking[name])
  return lacking


def _check_seen(
  run: run_lib.Run, model: inference.Model, counts: _Counts, where: Where
):
  """Checks that the prior has seen what is asked for.

  Reads records of the training split only until each class has come, with the
  values of all conditions. The codes need not be where the samples are made;
  then nothing is checked.

  Raises:
    UserError: a class or a value has no training image, so its samples mean
      nothing.
  """
  names = [name for name, number in counts.items() if number]
  unseen = dict(zip(model.labels(names).tolist(), names))
  values = model.condition_values(where)
  values = {name: int(values[name][0]) for name in where}
  unseen_values, never_together = dict(values), dict(unseen)
  try:
    for record in run.codes.split('train'):
      label = int(record['label'])
      shown = [name for name in values if record[name] == values[name]]
      unseen.pop(label, None)
      for name in shown:
        unseen_values.pop(name, None)
      if len(shown) == len(values):
        never_together.pop(label, None)
      if not never_together:
        return
  except errors.UserError as e:
    if run.prior.is_exported:  # It has no data, but knows the classes.
      untrained = {*names} & {*run.vqvae.facts.get('untrained_classes', ())}
      if untrained:
        _refuse_unseen(untrained, counts)
      return
    logging.info('Not checked if each class has training images: %s', e)
    return
  if unseen:
    _refuse_unseen(set(unseen.values()), counts)
  for name in unseen_values:
    raise errors.UserError(
      f'no training image has {name} {where[name]}, so the prior has not '
      'learned it; leave it out of --where'
    )
  logging.warning(
    'No training image of %s has %s together: the prior combines what it '
    'learned of each alone.',
    errors.printable(', '.join(never_together.values())),
    errors.printable(', '.join(f'{k} {v}' for k, v in where.items())),
  )


def _refuse_unseen(unseen: set[str], counts: _Counts):
  """Raises UserError for classes without a training image."""
  rest = ','.join(
    f'{name}={number}'
    for name, number in counts.items()
    if number and name not in unseen
  )
  raise errors.UserError(
    f'no training image has the class {", ".join(sorted(unseen))}, so the '
    'prior has not learned it; leave it out'
    + (f': --counts={rest}' if rest else '')
  )


def named(model: inference.Model, where: Where) -> Where:
  """Returns the conditions with the names of their values.

  Raises:
    UserError: the prior knows no such condition or value.
  """
  if not where:
    return {}
  numbers, names = model.condition_values(where), model.conditions
  return {name: names[name][int(numbers[name][0])] for name in where}


def groups(
  run: run_lib.Run,
  model: inference.Model,
  counts: _Counts | None,
  balance: bool,
  where: Where,
) -> list[Group]:
  """Returns what is asked for, in the order of the classes.

  Args:
    run: the run that will make them.
    model: its model.
    counts: see `samples.sample`, as is `balance`.
    balance: as there.
    where: what all images show, from `named`.

  Raises:
    UserError: a class is unknown or has no training image, nothing or too much
      is asked for, or the run has no prior.
  """
  if balance:
    model.check_prior()
    # The codes have the labels, and are read much faster than images.
    training = run.codes.labels('train')
    counts = balancing_counts(
      training, model.class_names, run.codes.facts['copies']
    )
    seen = {model.class_names[label] for label in np.unique(training)}
    if unseen := set(model.class_names) - seen:
      _refuse_unseen(unseen, counts)
  elif counts and '' in counts:
    counts = dict.fromkeys(model.class_names, counts['']) | counts
    del counts['']
  total = sum((counts or {}).values())
  if total > _MAX_IMAGES:
    raise errors.UserError(
      f'{"--balance" if balance else "--counts"} asks for {total:,} images; '
      f'give --counts for {_MAX_IMAGES:,} at most, and another --seed and '
      '--out for the next'
    )
  labels = model.labels(list(counts or {})).tolist()
  if not total:
    raise errors.UserError(
      'the classes are balanced already; give --counts for new images'
      if balance
      else '--counts asks for no image'
    )
  model.check_prior()
  if where or not balance:
    _check_seen(run, model, counts, where)
  return [
    Group(label, count, where)
    for label, count in zip(labels, (counts or {}).values())
    if count
  ]
