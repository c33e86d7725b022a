"""Finds the name that was meant when another one was written."""

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence

# Below it, the closest name is most often not the one that was meant.
_LEAST_SIMILARITY = 0.65


def did_you_mean(name: str, known: Iterable[str], prefix: str = '') -> str:
  """Returns '; did you mean X?' with the closest name, or '' if none is close.

  Args:
    name: a name that does not exist.
    known: the names that do.
    prefix: what is put before the name.
  """
  known = list(known)
  longer = [k for k in known if len(name) > 2 and k.startswith(name)]
  close = longer or difflib.get_close_matches(
    name, known, n=1, cutoff=_LEAST_SIMILARITY
  )
  return f'; did you mean {prefix}{close[0]}?' if close else ''


def flags_of(command: argparse.ArgumentParser) -> list[str]:
  """Returns the flags of a command without their dashes."""
  return [
    name.lstrip('-')
    for action in command._actions
    for name in action.option_strings
  ]


def check_flags(
  words: Sequence[str],
  parser: argparse.ArgumentParser,
  commands: Mapping[str, argparse.ArgumentParser],
):
  """Exits with a suggestion if there is no such command or flag.

  argparse would complain about what is missing first, and would show the usage
  of the parser of all commands. It also takes the value away from '--flag=--'.

  Args:
    words: a command line.
    parser: the parser of all commands.
    commands: the parser of each command.
  """
  name = next((word for word in words if not word.startswith('-')), None)
  if name is None:
    return
  if name not in commands:
    parser.error(f'there is no COMMAND {name!r}{did_you_mean(name, commands)}')
  known = flags_of(commands[name])
  for word in words:
    if word == '--':  # Only files come after it.
      break
    flag = word.partition('=')[0].removeprefix('--')
    if word.startswith('--') and flag not in known:
      meant = did_you_mean(flag, known, prefix='--')
      if not meant and 'config' in known:
        meant = f'; a field of the config is written --config.{flag}=VALUE'
      commands[name].error(f'there is no flag {word}{meant}')
    if word.endswith('=--'):
      commands[name].error(
        f"argument --{flag}: '--' is no value; a file of that name is ./--"
      )
