"""Parts of pages that are made from the code or from files beside docs/.

A line `<!-- commands -->` of a page becomes the tables of all flags, the line
`<!-- config: NAME -->` the tables of a config's fields, and the line
`<!-- file: NAME.md -->` the text of that file.
"""

import argparse
import ast
import io
import os
import pathlib
import re
import tokenize

import docstring_parser

from dermvq_jax import config_files, configs, flags
from dermvq_jax.data import augment
from dermvq_jax.models import (
  classifier,
  codebooks,
  discriminator,
  image_losses,
  quantizers,
  vqvae,
)
from dermvq_jax.models.priors import base, rnn, transformer
from dermvq_jax.runs import ranges
from dermvq_jax.training import adversarial

_ROOT = pathlib.Path(__file__).parents[1]
_MARK = re.compile(r'^<!-- (\w+)(?:: ([\w/.]+))? -->$', re.MULTILINE)
_LINK = re.compile(r'(!?)\[([^]]*)\]\(([\w./]+)(#[\w-]+)?\)')
# Files outside of docs/, and the pages that show them.
_PAGES = {
  'experiments/RESULTS.md': 'docs/explanation/results.md',
  'MODEL_CARD.md': 'docs/explanation/model_card.md',
  'CHANGELOG.md': 'docs/reference/changelog.md',
  'CONTRIBUTING.md': 'docs/reference/contributing.md',
}
# The classes whose attributes are the fields of a part of a config.
_CLASSES = {
  'augment': (augment.Augment,),
  'model': (vqvae.Encoder, vqvae.Decoder),
  'quantizer': (
    codebooks.TrainedQuantizer,
    *quantizers.QUANTIZERS.values(),
  ),
  'discriminator': (discriminator.Discriminator,),
  'prior': (base.Prior, rnn.Prior, transformer.Prior),
  'classifier': (classifier.Classifier,),
}
_CONFIGS = pathlib.Path(configs.__file__).parent


def fill_in(app, page: str, source: list[str]):
  """Replaces the marks in the text of a page, for Sphinx' event source-read."""
  path = _ROOT / 'docs' / page
  for mark in _MARK.finditer(source[0]):
    if mark[1] == 'file':
      app.env.note_dependency(_ROOT / mark[2])
  source[0] = _MARK.sub(lambda mark: part(mark[1], mark[2], path), source[0])


def part(kind: str, name: str | None, page: pathlib.Path) -> str:
  """Makes what a mark stands for.

  Args:
    kind: 'commands', 'config' or 'file'.
    name: of the config or file.
    page: the page that it is for.
  """
  if kind == 'file':
    return _file(_ROOT / name, page)
  return commands() if kind == 'commands' else config(name)


def _file(path: pathlib.Path, page: pathlib.Path) -> str:
  """Returns the text of a file with links that work from a page in docs/."""

  def link(found: re.Match[str]) -> str:
    image, text, target, anchor = found.groups(default='')
    target = os.path.normpath(path.parent / target)
    name = os.path.relpath(target, _ROOT)
    name = _PAGES.get(name, name)
    if not image and not name.startswith('docs/'):
      return text  # No page shows it.
    to = os.path.relpath(_ROOT / name, page.parent)
    return f'{image}[{text}]({to}{anchor})'

  return _LINK.sub(link, path.read_text())


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  lines = [head, tuple('---' for _ in head), *rows]
  return ''.join(
    '| ' + ' | '.join(cell.replace('|', r'\|') for cell in line) + ' |\n'
    for line in lines
  )


def _code(text: object) -> str:
  return f'`{text}`' if text != '' else ''


def commands() -> str:
  """Describes every command: what it does, examples, flags."""
  return '\n'.join(
    _command(name, sub) for name, sub in flags.parsers()[1].items()
  )


def _command(name: str, sub: argparse.ArgumentParser) -> str:
  examples = sub.epilog.partition('\n')[2]
  examples = ''.join(f'{line.strip()}\n' for line in examples.splitlines())
  rows = [
    (_code(_written(action)), action.help + _required(action))
    for action in sub._actions
    if not isinstance(action, argparse._HelpAction)
  ]
  return (
    f'## dermvq {name}\n\n{sub.description}\n\n```\n{examples}```\n\n'
    + _table(('flag', 'what it does'), rows)
  )


def _written(action: argparse.Action) -> str:
  if not action.option_strings:
    return action.metavar
  name = action.option_strings[-1]
  if action.nargs == 0:
    return name
  choices = '|'.join(action.choices or ())
  return f'{name}={choices or action.metavar or action.dest.upper()}'


def _required(action: argparse.Action) -> str:
  return ' (required)' if action.option_strings and action.required else ''


def config(name: str) -> str:
  """Describes a config: its fields, and what each of its words changes."""
  default = config_files.fields(config_files.load(name))
  about = _attributes() | _comments('common') | _comments(name)
  rows = [
    (_code(field), _code(repr(value)), _about(field, about), _range(field))
    for field, value in default.items()
  ]
  parts = [_table(('field', 'default', 'what it is', 'range'), rows)]
  for word in config_files.words(name):
    changed = config_files.fields(config_files.load(f'{name}:{word}'))
    rows = [
      (_code(field), _code(repr(value)), _about(field, about), _range(field))
      for field, value in changed.items()
      if field not in default or default[field] != value
    ]
    gone = [_code(field) for field in default if field not in changed]
    parts.append(f'### {name}:{word}\n')
    if rows:
      parts.append(_table(('field', 'value', 'what it is', 'range'), rows))
    else:
      parts.append('This is the default.\n')
    if gone:
      parts.append(f'Without effect, and not there: {", ".join(gone)}.\n')
  return '\n'.join(parts)


def _about(field: str, said: dict[str, str]) -> str:
  """What is said of a field, or of one with the same name elsewhere."""
  parent, _, last = field.rpartition('.')
  if last == 'name':
    return f'one of the words that name a {parent}'
  places = (field, f'*.{last}', f'optim.{last}', parent)
  return next((said[name] for name in places if name in said), '')


def _range(field: str) -> str:
  """The values that are allowed, in few words."""
  text = ranges.advice(field).removeprefix('text')
  text = re.sub(r'^a (whole )?number (that is |of |from )?', '', text)
  return re.sub(r'(\d+) to 2147483647', r'at least \1', text)


def _attributes() -> dict[str, str]:
  """What docstrings say of fields, by names like 'model.features'."""
  found = {}
  for place, classes in _CLASSES.items():
    for cls in classes:
      for item in docstring_parser.parse(cls.__doc__).params:
        said = ' '.join(item.description.split())
        found.setdefault(f'{place}.{item.arg_name}', said.rstrip('.'))
  for name, term in image_losses.RECONSTRUCTION_TERMS.items():
    said = term.__doc__.partition('\n')[0].rstrip('.')
    found[f'loss.{name}'] = f'weight of a term: {said}'
  for item in docstring_parser.parse(adversarial.Adversary.__doc__).params:
    said = ' '.join(item.description.split())
    name = {'weight': 'adversarial'}.get(item.arg_name, item.arg_name)
    found.setdefault(f'loss.{name}', said)
  return found


def _comments(name: str) -> dict[str, str]:
  """Reads the comments behind the fields of a config file, or above them.

  Returns:
    What is said of each field, by names like 'optim.b2'; '*.b2' if the file
    does not say where the field is.
  """
  text = (_CONFIGS / f'{name}.py').read_text()
  behind, alone = {}, {}
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      kind = behind if token.line[: token.start[1]].strip() else alone
      kind[token.start[0]] = token.string.lstrip('# ')
  found = {}
  for node in ast.walk(ast.parse(text)):
    for field, first, last in _fields_of(node):
      if said := behind.get(last) or _above(alone, first):
        found[field] = said
  return found


def _above(comments: dict[int, str], line: int) -> str:
  """The comment in the lines directly above a line."""
  lines = []
  while (line := line - 1) in comments:
    lines.insert(0, comments[line])
  return ' '.join(lines)


def _fields_of(node: ast.AST) -> list[tuple[str, int, int]]:
  """The fields that a statement sets, with their first and last lines."""
  is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
  if isinstance(node, ast.Assign):
    place, value = ast.unparse(node.targets[0]), node.value
  elif is_call and node.func.attr == 'update':
    place, value = ast.unparse(node.func.value), node.args[0]
  else:
    return []
  in_config = place.startswith('config.')
  place = place.removeprefix('config.') if in_config else '*'
  found = []
  if in_config and not is_call:
    found.append((place, node.lineno, node.lineno))
  for part in ast.walk(value):
    if isinstance(part, ast.Dict):
      found += [
        # What stands above an update is about its values, not its fields.
        (f'{place}.{key.value}', 0 if is_call else key.lineno, item.end_lineno)
        for key, item in zip(part.keys, part.values)
        if isinstance(key, ast.Constant)
      ]
  return found
