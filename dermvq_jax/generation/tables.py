"""CSV tables that are safe to open, and file names from metadata."""

import csv
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from dermvq_jax import errors

# The start of a formula for a spreadsheet, also in full width. A spreadsheet
# may divide lines at other separators than commas, so that a formula may start
# after one of them. It skips blanks.
_BLANKS = r'[\s\u200b\ufeff]*'
_FORMULA = re.compile(
  rf'(^|[;,|])(["\']?{_BLANKS}[=+@\-\uff1d\uff0b\uff0d\uff20])'
)


def _inert(value: Any) -> Any:
  """Changes text that a spreadsheet would run or a terminal would obey.

  Formulas get an apostrophe before them, control characters become escapes.
  Numbers stay as they are.
  """
  if not isinstance(value, str):
    return value
  try:
    float(value)
    return value.strip()
  except ValueError:
    return _FORMULA.sub(r"\1'\2", errors.printable(value))


def write_csv(path: epath.Path, rows: Iterable[dict[str, Any]]):
  """Writes rows, at least one, with the same keys, which become the header."""
  rows = iter(rows)
  first = next(rows)
  with path.open('w', encoding='utf-8') as f:
    writer = csv.DictWriter(f, first, lineterminator='\n')
    writer.writeheader()
    for row in itertools.chain([first], rows):
      writer.writerow({k: _inert(v) for k, v in row.items()})


def file_stem(name: str) -> str:
  """Turns a name from metadata into a file name that stays in its folder."""
  return re.sub(r'[^\w .()-]', '_', name).lstrip('.') or '_'


def file_stems(names: Sequence[str]) -> list[str]:
  """Turns names into different file names; one that came before has a number.

  Names that differ only in case are the same file on some disks.
  """
  seen, stems = set(), []
  for name in names:
    base = stem = file_stem(name)
    number = 2
    while stem.casefold() in seen:
      stem, number = f'{base}_{number}', number + 1
    seen.add(stem.casefold())
    stems.append(stem)
  return stems
