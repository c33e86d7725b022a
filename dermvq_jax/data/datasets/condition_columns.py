"""Columns of a user's table whose values become conditions."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from dermvq_jax import errors
from dermvq_jax.data import conditions
from dermvq_jax.data.datasets import archives

_NAME = re.compile('[a-z][a-z0-9_]*')
# More values are no groups of images: numbers, ids or free text.
_MAX_VALUES = 100
_MAX_LENGTH = 60  # characters of a value
_FORM = 'names of columns, such as sex,age:10'


@dataclasses.dataclass(frozen=True)
class ConditionColumn:
  """One column.

  Attributes:
    name: of the condition: that of the column in lower case, with _ for what
      is neither a letter nor a digit.
    column: the name in the table.
    width: of the ranges that its numbers are put into; 0: its values are names.
  """

  name: str
  column: str
  width: int = 0

  def check(self, where: str, value: str):
    """Checks a known value; raises UserError.

    Args:
      where: the place of the row.
      value: what the row has.
    """
    if self.width and self._number(value) is None:
      raise errors.UserError(
        f'{where}: {self.column} {value!r} is not a number of at least 0; fix '
        'it or leave it blank'
      )
    if re.search(r'[,=\x00-\x1f]', value) or len(value) > _MAX_LENGTH:
      raise errors.UserError(
        f'{where}: {self.column} {errors.one_line(repr(value))} cannot be the '
        f'name of a value; use at most {_MAX_LENGTH} characters, and neither '
        'commas nor ='
      )

  def _number(self, value: str) -> float | None:
    if conditions.is_range(value):  # as `dermvq sample` writes it
      return float(value.partition('-')[0])
    try:
      number = float(value)
    except ValueError:
      return None
    return number if 0 <= number < 2**31 else None

  def name_of(self, value: str) -> str:
    """Returns the name of a value that was checked; '' if it is not known."""
    if not self.width or not value:
      return value
    return conditions.range_of(self._number(value), self.width)

  def names(self, found: Iterable[str]) -> list[str]:
    """Returns the names of all values, in order.

    Args:
      found: the names that the rows have; '' is not known.

    Raises:
      UserError: there are none, far too many, or two that differ in case only.
    """
    names = conditions.in_order(set(found) - {''})
    if not names:
      raise errors.UserError(
        f'no row has a known {self.column}; leave it out of --condition_columns'
      )
    if len(names) > _MAX_VALUES:
      raise errors.UserError(
        f'the column {self.column} has {len(names)} values, of which each '
        f'would be a group of images; at most {_MAX_VALUES} can be learned. '
        f'Leave it out, or give {self.column}:10 if they are numbers, to put '
        'them into ranges of 10'
      )
    by_case = {}
    for name in names:
      other = by_case.setdefault(name.casefold(), name)
      if other != name:
        raise errors.UserError(
          f'the column {self.column} has {other!r} and {name!r}; write one '
          'value in one way'
        )
    return names


def parse(text: str) -> list[ConditionColumn]:
  """Reads 'sex,age:10': columns, and for numbers the width of their ranges.

  Raises:
    UserError: it is no such text, or a name cannot be that of a condition.
  """
  columns = []
  for part in text.split(',') if text else ():
    column, colon, width = (word.strip() for word in part.partition(':'))
    if not column or (colon and not re.fullmatch('[1-9][0-9]{0,5}', width)):
      raise errors.UserError(
        f'--condition_columns is {text!r}; give {_FORM} (the ages in ranges of '
        '10)'
      )
    name = re.sub('[^a-z0-9]+', '_', column.lower()).strip('_')
    if not _NAME.fullmatch(name) or name in conditions.RESERVED:
      raise errors.UserError(
        f'the column {column!r} cannot be a condition, because {name!r} means '
        'something else; rename the column'
      )
    columns.append(ConditionColumn(name, column, int(width or 0)))
  for i, column in enumerate(columns):
    if column.name in [other.name for other in columns[:i]]:
      raise errors.UserError(
        f'--condition_columns has {column.name} twice; give it once'
      )
  return columns


def check_row(
  columns: Sequence[ConditionColumn], where: str, row: archives.Row
):
  """Checks the known values of a row; raises UserError."""
  for column in columns:
    if row[column.name]:
      column.check(where, row[column.name])
