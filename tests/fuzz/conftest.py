"""Counts fuzzed inputs, and prints a table of them at the end."""

import dataclasses

import pytest
from fuzz import fuzzing


@pytest.fixture
def tally(request):
  """Counts what a test tries."""
  tally = fuzzing.Tally()
  yield tally
  found = dataclasses.asdict(tally)
  request.node.user_properties.append(('fuzz', found))


def pytest_terminal_summary(terminalreporter):
  """Prints the table."""
  rows = [
    (report.nodeid.partition('::')[2], found)
    for reports in terminalreporter.stats.values()
    for report in reports
    if getattr(report, 'when', '') == 'teardown'
    for name, found in report.user_properties
    if name == 'fuzz'
  ]
  if not rows:
    return
  write = terminalreporter.write_line
  write('| fuzzed | inputs | refused | most seconds | most MB |')
  write('|---|---|---|---|---|')
  for name, found in sorted(rows):
    write(
      f'| {name} | {found["inputs"]:,} | {found["refused"]:,} | '
      f'{found["most_seconds"]:.1f} | {found["most_bytes"] / 1e6:.0f} |'
    )
  total = sum(found['inputs'] for _, found in rows)
  write(f'{total:,} inputs')
