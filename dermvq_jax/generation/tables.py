"""CSV tables that are safe to open, and file names from metadata."""

import csv
import re
from collections.abc import Sequence
from typing import Any

from etils import epath

_FORMULA_STARTS = ('=', '+', '-', '@', '\t', '\r')


def _no_formula(value: Any) -> Any:
  """Puts an apostrophe before text that a spreadsheet would run."""
  if not isinstance(value, str) or not value.startswith(_FORMULA_STARTS):
    return value
  try:
    float(value)
    return value
  except ValueError:
    return f"'{value}"


def write_csv(path: epath.Path, rows: Sequence[dict[str, Any]]):
  """Writes rows with the same keys, which become the header."""
  with path.open('w') as f:
    writer = csv.DictWriter(f, rows[0], lineterminator='\n')
    writer.writeheader()
    for row in rows:
      writer.writerow({k: _no_formula(v) for k, v in row.items()})


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
