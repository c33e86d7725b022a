"""Every promise in the documentation names a test that exists."""

import ast
import pathlib
import re

_TESTS = pathlib.Path(__file__).parents[1]
_PAGE = _TESTS.parent / 'docs' / 'reference' / 'promises.md'
_ROW = re.compile(r'^\| .+ \| `([\w/]+\.py)::(test_\w+)` \|$', re.MULTILINE)


def _named():
  rows = _PAGE.read_text()
  return _ROW.findall(rows), rows.count('\n| ') - 1  # without the header


def test_the_tests_of_all_promises_exist():
  named, num_rows = _named()
  assert len(named) == num_rows > 20
  for file, test in named:
    tree = ast.parse((_TESTS / file).read_text())
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert test in defined, f'{file}::{test}'
