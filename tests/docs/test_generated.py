"""The tables of flags and fields are complete, and every row says something."""

import pathlib
import re
import sys

import pytest

from dermvq_jax import config_files, flags, spelling

_DOCS = pathlib.Path(__file__).parents[2] / 'docs'


@pytest.fixture(scope='module')
def generated():
  pytest.importorskip('docstring_parser')
  sys.path.insert(0, str(_DOCS))
  try:
    import generated
  finally:
    sys.path.remove(str(_DOCS))
  return generated


def _cells(text):
  rows = [line for line in text.splitlines() if line.startswith('| `')]
  return [re.split(r' (?<!\\)\| ', row.strip('| ')) for row in rows]


def test_every_flag_is_there(generated):
  sections = re.split('^## dermvq ', generated.commands(), flags=re.MULTILINE)
  sections = {s.partition('\n')[0]: s for s in sections[1:]}
  commands = flags.parsers()[1]
  assert sections.keys() == commands.keys()
  for name, command in commands.items():
    for flag in set(spelling.flags_of(command)) - {'h', 'help'}:
      assert re.search(rf'^\| `--{flag}[=`]', sections[name], re.MULTILINE)


@pytest.mark.parametrize('name', config_files.shipped())
def test_every_field_is_described(generated, name):
  text = generated.config(name)
  cells = _cells(text)
  assert not [row[0] for row in cells if not row[2].strip()]
  names = {row[0].strip('`') for row in cells}
  for word in config_files.words(name):
    assert (
      names >= config_files.fields(config_files.load(f'{name}:{word}')).keys()
    )
    assert f'### {name}:{word}\n' in text


def test_links_of_a_file_lead_to_its_page(generated, tmp_path):
  page = _DOCS / 'explanation' / 'model_card.md'
  text = generated.part('file', 'MODEL_CARD.md', page)
  assert '](results.md)' in text
  text = generated.part('file', 'experiments/RESULTS.md', page)
  assert '](../../experiments/figures/growth.png)' in text
