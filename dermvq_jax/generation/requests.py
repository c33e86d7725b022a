"""What images are asked for: classes, conditions, and how many of each."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

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


def lacking(
  columns: Sequence[np.ndarray], sizes: Sequence[int], copies: int = 1
) -> dict[tuple[int, ...], tuple[int, int]]:
  """How many images each combination of values lacks to be the largest one.

  Args:
    columns: the values of each condition of the training images, int `[N]`
      each. Images with a null value, whose value is not known, do not count.
    sizes: the number of values of each condition, without the null value.
    copies: how often each training image occurs.

  Returns:
    For each combination, in order, how many images there are and how many are
    lacking.
  """
  table = np.zeros(sizes, int)
  known = np.all([c < size for c, size in zip(columns, sizes)], axis=0)
  np.add.at(table, tuple(np.asarray(c)[known] for c in columns), 1)
  table //= copies
  return {
    values: (int(table[values]), int(table.max() - table[values]))
    for values in np.ndindex(*sizes)
  }


def _balanced(
  run: run_lib.Run, model: inference.Model, names: Sequence[str], where: Where
) -> list[Group]:
  """Tops up every combination of values to the size of the largest one.

  Args:
    run: see `groups`.
    model: as there.
    names: `label`, and the conditions to combine it with.
    where: what all images show.

  Raises:
    UserError: the label is not among them, the prior does not know one of them
      or `where` has it as well, or a class has no training image.
  """
  if 'label' not in names:
    raise errors.UserError(
      f'--balance={",".join(names)} leaves out the class; give '
      f'--balance=label,{",".join(names)}'
    )
  others = [name for name in dict.fromkeys(names) if name != 'label']
  model.condition_values(dict.fromkeys(others))  # Raises if one is not known.
  if both := [name for name in others if name in where]:
    raise errors.UserError(
      f'--balance and --where both name {", ".join(both)}; give it to one'
    )
  value_names = [
    model.class_names,
    *(model.conditions[name] for name in others),
  ]
  # The codes have the values, and are read much faster than images.
  found = run.codes.values('train', ['label', *others])
  combinations = lacking(
    [found[name] for name in ('label', *others)],
    [len(names) for names in value_names],
    run.codes.facts['copies'],
  )
  groups, unseen = [], []
  for values, (have, missing) in combinations.items():
    named = [names[i] for names, i in zip(value_names, values)]
    shown = errors.printable(', '.join(named))
    if have:
      logging.info('%s: %d training images, %d new', shown, have, missing)
      given = dict(zip(others, named[1:]))
      groups.append(Group(values[0], missing, where | given))
    else:
      unseen.append(shown)
  if unseen and not others:
    counts = {model.class_names[group.label]: group.count for group in groups}
    _refuse_unseen(unseen, counts)
  if unseen:
    logging.warning(
      'No training image has these together, so the prior has not learned them '
      'and they are left out: %s.',
      '; '.join(unseen),
    )
  return groups


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
    _refuse_unseen(unseen.values(), counts)
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


def _refuse_unseen(unseen: Iterable[str], counts: _Counts):
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
  balance: Sequence[str],
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
    found = _balanced(run, model, balance, where)
  else:
    counts = dict(counts or {})
    if '' in counts:
      counts = dict.fromkeys(model.class_names, counts['']) | counts
      del counts['']
    labels = model.labels(list(counts)).tolist()
    found = [
      Group(label, n, where) for label, n in zip(labels, counts.values())
    ]
  found = [group for group in found if group.count]
  total = sum(group.count for group in found)
  if total > _MAX_IMAGES:
    raise errors.UserError(
      f'{"--balance" if balance else "--counts"} asks for {total:,} images; '
      f'give --counts for {_MAX_IMAGES:,} at most, and another --seed and '
      '--out for the next'
    )
  if not total:
    raise errors.UserError(
      'the classes are balanced already; give --counts for new images'
      if balance
      else '--counts asks for no image'
    )
  model.check_prior()
  if where or not balance:
    asked = collections.Counter()
    for group in found:
      asked[model.class_names[group.label]] += group.count
    _check_seen(run, model, asked, where)
  return found
