"""What README.md and the pages of docs/ say about commands and files exists."""

import functools
import importlib.util
import pathlib
import re
import shlex

import pytest

from dermvq_jax import config_files, flags, spelling

_ROOT = pathlib.Path(__file__).parents[2]
_PAGES = [
  *(_ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'MODEL_CARD.md')),
  *sorted((_ROOT / 'docs').rglob('*.md')),
]
_BLOCK = re.compile(r'^```\w*\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r'`([^`\n]+(?:\n[^`\n]+)?)`')
_LINK = re.compile(r'\]\(([\w./-]+)(?:#[\w-]+)?\)')
every_page = pytest.mark.parametrize(
  'page', _PAGES, ids=lambda page: str(page.relative_to(_ROOT))
)


def _lines(page):
  """The lines of all code blocks; a line that ends with \\ goes on."""
  blocks = ''.join(_BLOCK.findall(page.read_text()))
  return blocks.replace('\\\n', ' ').splitlines()


def _inline(page):
  """The code inside sentences, but for patterns like `vqvae:<argument>`."""
  text = _BLOCK.sub('', page.read_text())
  found = [' '.join(code.split()) for code in _INLINE.findall(text)]
  return [code for code in found if '<' not in code and 'FIELD' not in code]


@functools.cache
def _fields():
  """The fields of all configs that are shipped."""
  return {
    field
    for name in config_files.shipped()
    for word in ('', *(f':{word}' for word in config_files.words(name)))
    if word != ':cpu'  # It needs another one beside it.
    for field in config_files.fields(config_files.load(name + word))
  }


@functools.cache
def _flags():
  commands = flags.parsers()[1].values()
  return {flag for command in commands for flag in spelling.flags_of(command)}


def _check_dermvq(words):
  """Reads a command as `dermvq` does, without running it."""
  args = flags.parse(words)
  if args.command == 'train':
    config_files.load(args.config, args.overrides)


def test_the_readme_is_short():
  assert len((_ROOT / 'README.md').read_text().splitlines()) <= 180


@every_page
def test_commands_can_be_read(page):
  for line in _lines(page):
    words = shlex.split(line, comments=True)
    if words[:1] == ['dermvq'] and '...' not in line:
      _check_dermvq(words[1:])
    if words[:2] == ['python', '-m']:
      assert importlib.util.find_spec(words[2]), line


@every_page
def test_flags_and_fields_in_sentences_exist(page):
  # Flags without a command are those of tpu_vm.sh there.
  commands = ('dermvq ',) if page.stem == 'cloud_tpu' else ('dermvq ', '--')
  for code in _inline(page):
    for name in re.findall(r'(?<![\w/])--config\.([\w.]+)(?==)', code):
      assert name in _fields(), code
    if code.startswith('--config=') or re.match(r'\w+:\w+$', code):
      name = code.removeprefix('--config=')
      if name.partition(':')[0] in config_files.shipped():
        config_files.load(name)
    if code.startswith(commands):
      for name in re.findall(r'(?<!\S)--(\w+)', code):
        assert name in _flags(), code
    if code.startswith('dermvq '):
      assert code.split()[1] in flags.parsers()[1], code


@every_page
def test_targets_of_make_exist(page):
  makefile = (_ROOT / 'Makefile').read_text()
  for code in (*_lines(page), *_inline(page)):
    if found := re.match(r'make ([\w-]+)', code):
      assert f'\n{found[1]}:' in makefile, code


@every_page
def test_files_that_are_linked_exist(page):
  for target in _LINK.findall(page.read_text()):
    assert (page.parent / target).exists(), target


def test_the_version_to_cite():
  import dermvq_jax

  for name in ('README.md', 'CITATION.cff'):
    assert dermvq_jax.__version__ in (_ROOT / name).read_text(), name
