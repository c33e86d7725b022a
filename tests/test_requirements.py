"""The versions and digests that an installation checks."""

import pathlib
import re
import tomllib

import pytest
from packaging import requirements, utils

_ROOT = pathlib.Path(__file__).parents[1]
_LOCKED = sorted((_ROOT / 'requirements').glob('*.txt'))
_ADVICE = 'run make constraints'
# Apache Beam needs older ones.
_OLDER_FOR_BEAM = {'protobuf', 'pyarrow', 'python-dateutil'}


def _pins(path):
  """The version and the digests of each package in a file."""
  text = path.read_text().replace('\\\n', ' ')
  found = {}
  for line in text.splitlines():
    pin, *digests = re.split(r'\s+--hash=', line.strip())
    wanted = requirements.Requirement(pin)
    [version] = wanted.specifier
    assert version.operator == '==' and not wanted.url, line
    name = utils.canonicalize_name(wanted.name)
    found[name] = version.version, digests
  return found


_ALL = _pins(_ROOT / 'constraints.txt')


_SETUP = (_ROOT / 'setup.py').read_text()


def _needed(extra):
  """The packages that setup.py asks for, by its text."""
  [part] = re.findall(rf'{extra}.*?\[(.*?)\n  (?:  )?\],', _SETUP, re.DOTALL)
  words = re.findall(r"""^\s*f?'([\w.\-\[\]]+)""", part, re.MULTILINE)
  assert len(words) > 5
  names = (requirements.Requirement(word).name for word in words)
  return {utils.canonicalize_name(name) for name in names}


@pytest.mark.parametrize('path', _LOCKED, ids=lambda path: path.name)
def test_every_download_has_a_digest(path):
  found = _pins(path)
  assert found
  for name, (_, digests) in found.items():
    assert all(re.fullmatch('sha256:[0-9a-f]{64}', d) for d in digests), name
    assert digests, f'{name}: {_ADVICE}'


@pytest.mark.parametrize('path', _LOCKED, ids=lambda path: path.name)
def test_versions_are_those_of_the_constraints(path):
  found = {name: version for name, (version, _) in _pins(path).items()}
  pinned = {name: _ALL[name][0] for name in found.keys() & _ALL.keys()}
  others = {n for n in pinned if pinned[n] != found[n]}
  is_beam = path.name == 'beam.txt'
  assert others == (_OLDER_FOR_BEAM if is_beam else set()), _ADVICE
  assert is_beam == ('apache-beam' in found) == (pinned.keys() < found.keys())


def test_every_extra_but_beam_is_in_the_constraints():
  extras = _SETUP.partition('extras_require={')[2]
  names = re.findall(r"^    '(\w+)': \[", extras, re.MULTILINE)
  text = (_ROOT / 'Makefile').read_text()
  [locked] = re.findall('^EXTRAS = (.*)', text, re.MULTILINE)
  assert set(names) - {'beam'} == set(locked.split()) and 'beam' in names


def test_what_setup_py_asks_for_is_locked():
  assert len(_LOCKED) == 6
  base, tests = _needed('install_requires'), _needed("'test'")
  assert base <= _ALL.keys(), _ADVICE
  assert base | tests <= _pins(_ROOT / 'requirements/test.txt').keys(), _ADVICE
  assert base <= _pins(_ROOT / 'requirements/tpu.txt').keys(), _ADVICE


def test_build_tools_are_pinned():
  project = tomllib.loads((_ROOT / 'pyproject.toml').read_text())
  for text in project['build-system']['requires']:
    wanted = requirements.Requirement(text)
    locked, _ = _pins(_ROOT / 'requirements/build.txt')[wanted.name]
    assert str(wanted.specifier) == f'=={locked}', _ADVICE


def test_nothing_from_the_network_is_run_unseen():
  for path in (*_ROOT.glob('experiments/*.sh'), _ROOT / 'Makefile'):
    assert not re.search(r'(curl|wget)\b.*\|', path.read_text()), path
