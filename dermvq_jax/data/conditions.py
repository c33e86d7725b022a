"""Conditions beside the label: what they are called, and values by their names.

A condition such as `sex` has values with names, such as 'female'. Numbers, such
as ages, are put into ranges, and the name of a range is '60-69': from 60 to
below 70. A value that is not known is none of them; it is the null value.
"""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dermvq_jax import errors, spelling

# What a caller gives for a condition: a value for all images, or one for each.
Value = str | float | None
Given = Value | Sequence[Value]

_CONTROLS = (
  *('seed', 'temperature', 'top_k', 'top_p', 'guidance_scale'),
  *('guidance_rise', 'autoguidance_scale', 'choose', 'choose_by'),
)
# Fields of records, columns of the tables of samples, and arguments in Python:
# a condition with such a name would be mistaken for it.
RESERVED = frozenset(
  (
    *('image', 'images', 'codes', 'label', 'labels', 'id', 'ids', 'group'),
    *('split', 'synthetic', 'count', 'complete', 'mask', 'reject_memorised'),
    *(
      'reject_unlike',
      'shard',
      'known_codes',
      'known_mask',
      'show_progress',
      'self',
    ),
    *('class_prior', 'output', *_CONTROLS),
  )
)
_RANGE = re.compile(r'(\d+)-(\d+)')
_MAX_LISTED = 20


def range_of(number: float, width: int) -> str:
  """Returns the name of the range that a number of at least 0 is in."""
  start = int(number // width) * width
  return f'{start}-{start + width - 1}'


def is_range(name: str) -> bool:
  """Returns whether a name is that of a range."""
  return bool(_RANGE.fullmatch(name))


def in_order(names: Iterable[str]) -> list[str]:
  """Sorts the names of values: by their first numbers, then by letters."""

  def key(name: str):
    digits = re.match(r'\d+', name)
    return (not digits, int(digits[0]) if digits else 0, name)

  return sorted(names, key=key)


def find(value: Value, names: Sequence[str]) -> int | None:
  """Returns the number of a value.

  Args:
    value: its name, or a number inside of its range, also as text.
    names: the names of all values.

  Returns:
    Its position in `names`; None if there is no such value.
  """
  text = str(value).strip()
  if text in names:
    return list(names).index(text)
  try:
    number = float(text)
  except ValueError:
    return None
  for i, name in enumerate(names):
    found = _RANGE.fullmatch(name)
    if found and int(found[1]) <= number < int(found[2]) + 1:
      return i
  return None


def of_record(
  image_id: str,
  values: Mapping[str, str],
  known: Mapping[str, Sequence[str]],
  dataset: str,
) -> dict[str, int]:
  """Returns the number of each condition's value, or its null value.

  Args:
    image_id: of the image whose values they are.
    values: the names of values; '' or missing: not known.
    known: the names of the values of all conditions of the dataset.
    dataset: its name.

  Raises:
    UserError: the dataset has no such condition or no such value.
  """
  unknown = sorted(values.keys() - known.keys())
  if unknown:
    raise errors.UserError(
      f'the image {image_id} has the condition {unknown[0]!r}, which the '
      f'dataset {dataset} does not declare; add it to the conditions of its '
      'Builder'
    )
  result = {}
  for condition, names in known.items():
    name = values.get(condition, '')
    if name and name not in names:
      raise errors.UserError(
        f'the image {image_id} has {condition} {name!r}; it must be one of '
        f'{", ".join(names)}, or blank if it is not known'
      )
    result[condition] = list(names).index(name) if name else len(names)
  return result


def numbers(
  given: Mapping[str, Given],
  known: Mapping[str, Sequence[str]],
  count: int,
  in_data: Iterable[str] = (),
) -> dict[str, np.ndarray]:
  """Converts values to their numbers.

  Args:
    given: by condition the name of a value, or a number inside of its range
      ('60-69'), for all images; or a sequence of these, one for each image.
      None: not known.
    known: the names of the values of the conditions that a prior knows.
    count: B, the number of images.
    in_data: all conditions that its data have, for error messages.

  Returns:
    int32 `[B]` for each known condition; the null value if it is not given.

  Raises:
    UserError: no such condition or value, or a wrong number of values.
  """
  result = {
    name: np.full(count, len(names), np.int32) for name, names in known.items()
  }
  for name, values in given.items():
    if name not in known:
      raise _unknown(name, known, in_data)
    if values is None or isinstance(values, str) or not np.ndim(values):
      values = [values] * count
    if len(values) != count:
      raise errors.UserError(
        f'{count} images but {len(values)} values of {name}'
      )
    result[name][:] = [_number(name, value, known[name]) for value in values]
  return result


def _number(name: str, value: Value, names: Sequence[str]) -> int:
  number = len(names) if value is None else find(value, names)
  if number is None:
    more = ', ...' if len(names) > _MAX_LISTED else ''
    shown = ', '.join(names[:_MAX_LISTED]) + more
    raise errors.UserError(
      f'there is no {name} {errors.one_line(repr(value))}; its values are '
      + errors.printable(shown)
      + spelling.did_you_mean(str(value), names)
    )
  return number


def _unknown(
  name: str, known: Mapping[str, Any], in_data: Iterable[str]
) -> errors.UserError:
  if name == 'label':
    return errors.UserError(
      'the label is no condition beside the label; give the class itself'
    )
  if name in in_data:
    return errors.UserError(
      f'the data have {name}, but this prior was trained without it; train one '
      f'with --config.conditions.{name}=0.3 in another --workdir'
    )
  have = ', '.join(known) or 'nothing'
  return errors.UserError(
    f'there is no condition {errors.one_line(repr(name))}; beside the label '
    f'this prior knows {errors.printable(have)}'
    + spelling.did_you_mean(name, [*known, *_CONTROLS])
  )


def count(
  records: Iterable[tuple[Mapping[str, str], str]],
  known: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, dict[str, int]]]:
  """Counts images by condition, value and split.

  Args:
    records: for each image its values by condition, and its split.
    known: the names of the values of all conditions.

  Returns:
    Condition to value to split to a number; the value '' is not known.
  """
  found = {
    name: {value: collections.Counter() for value in (*values, '')}
    for name, values in known.items()
  }
  for values, split in records:
    for name in known:
      found[name][values.get(name, '')][split] += 1
  return {
    name: {value: dict(n) for value, n in counts.items()}
    for name, counts in found.items()
  }
