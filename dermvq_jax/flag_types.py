"""Reads the values of flags; each function is a `type` for argparse."""

import argparse
import importlib.util
import os

from dermvq_jax import errors


def path(text: str) -> str:
  """Reads a path; ~ is the home folder, also where the shell leaves it."""
  if not text:
    raise argparse.ArgumentTypeError(
      'the path is empty; is a variable of the shell not set?'
    )
  if not errors.is_utf8(text):
    raise argparse.ArgumentTypeError(
      f'{text!r} is not UTF-8; rename it (the program convmv can do this)'
    )
  if '\0' in text:
    raise argparse.ArgumentTypeError('a path cannot hold the character \\x00')
  expanded = os.path.expanduser(text)
  if expanded.startswith('~'):
    raise argparse.ArgumentTypeError(
      f'{text!r}: there is no such home folder; give ./{text} if the name '
      'starts with ~'
    )
  return expanded


def folder(text: str) -> str:
  """Reads a folder, and checks that this installation can open it."""
  scheme, separator, _ = text.partition('://')
  if separator and scheme != 'gs':
    raise argparse.ArgumentTypeError(
      f'{text!r} is neither a local folder nor gs://BUCKET/...'
    )
  if separator and not importlib.util.find_spec('gcsfs'):
    raise argparse.ArgumentTypeError(
      f'{text!r} needs a client for buckets: pip install gcsfs'
    )
  return path(text)


def run(text: str) -> str:
  """Reads the folder of a run or export that is there, or hf://..."""
  from dermvq_jax.runs import hub

  if not hub.is_address(text):
    return folder(text)
  try:
    return str(hub.parse(text))
  except errors.UserError as e:
    raise argparse.ArgumentTypeError(str(e)) from None


def counts(text: str) -> dict[str, int]:
  """Reads 'mel=16,nv=4' or '8'; the class '' stands for every class."""
  try:
    numbers = {}
    for part in text.split(','):
      name, _, number = part.rpartition('=')
      numbers[name] = int(number)
    if min(numbers.values()) < 0:
      raise ValueError
    return numbers
  except ValueError:
    raise argparse.ArgumentTypeError(
      f'{text!r} is neither a number nor CLASS=NUMBER,...'
    ) from None


def where(text: str) -> dict[str, str]:
  """Reads 'age=60,sex=female': the value of each condition."""
  values = {}
  for part in text.split(','):
    name, _, value = (word.strip() for word in part.partition('='))
    if not name or not value:
      raise argparse.ArgumentTypeError(
        f'{text!r} is not NAME=VALUE,... such as age=60,sex=female'
      )
    if name in values:
      raise argparse.ArgumentTypeError(
        f'{text!r} gives {name} twice; give one value for each'
      )
    values[name] = value
  return values


def names(text: str) -> list[str]:
  """Reads 'label,sex'."""
  found = [name.strip() for name in text.split(',')]
  if not all(found):
    raise argparse.ArgumentTypeError(
      f'{text!r} is not NAME,... such as label,sex'
    )
  return found


def seed(text: str) -> int:
  """Reads a seed."""
  from dermvq_jax.models import arguments  # needs NumPy, which takes a while

  try:
    return arguments.check_seed(int(text))
  except (ValueError, errors.UserError):
    raise argparse.ArgumentTypeError(
      f'{text!r} is not a whole number from 0 to {2**32 - 1}'
    ) from None


def port(text: str) -> int:
  """Reads the number of a port."""
  if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**16:
    raise argparse.ArgumentTypeError(
      f'{text!r} is not a port; give a whole number from 1 to {2**16 - 1}'
    )
  return int(text)
