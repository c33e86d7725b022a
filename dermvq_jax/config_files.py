"""Loads a config file by name or path, with overrides."""

import importlib.util
import os
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from dermvq_jax import configs, errors

_PREFIX = '--config.'
_FOLDER = os.path.dirname(configs.__file__)
# The file that the configs share is not a config itself.
_NOT_CONFIGS = ('__init__', 'common')


def shipped() -> list[str]:
  """Returns the names of the shipped configs, in alphabetical order."""
  names = (os.path.splitext(file) for file in os.listdir(_FOLDER))
  return sorted(
    name
    for name, suffix in names
    if suffix == '.py' and name not in _NOT_CONFIGS
  )


def load(
  config: str, overrides: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Loads a config and applies overrides.

  Args:
    config: 'name' or 'name:argument' of a shipped config, or the path of a
      file with the function `get_config`.
    overrides: words like '--config.field=value'.

  Raises:
    UserError: there is no such config, argument or field, or a value is of the
      wrong type.
  """
  name, _, argument = config.partition(':')
  is_path = '/' in name or name.endswith('.py')
  path = (
    os.path.expanduser(name) if is_path else os.path.join(_FOLDER, f'{name}.py')
  )
  if not (os.path.isfile(path) if is_path else name in shipped()):
    raise errors.UserError(
      f'there is no config {name!r}; give one of {", ".join(shipped())}, or '
      'the path of a .py file'
    )
  try:
    loaded = _get_config(path, argument)
  except Exception as e:  # the file may be the user's own
    raise errors.UserError(f'--config={config}: {errors.one_line(e)}') from e
  for override in overrides:
    _add_condition(loaded, override)
    _check_field(loaded, override)
  values = flags.FlagValues()
  argv = ['dermvq', *overrides]
  # Each field is a separate flag, which is looked up in argv.
  config_flags.DEFINE_config_dict(
    'config', loaded, flag_values=values, sys_argv=argv
  )
  try:
    values(argv)
  except (flags.Error, TypeError, ValueError) as e:
    raise errors.UserError(errors.one_line(e)) from e
  return loaded


def _get_config(path: str, argument: str) -> ml_collections.ConfigDict:
  """Calls `get_config` of the file, with the argument if there is one."""
  spec = importlib.util.spec_from_file_location('dermvq_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  loaded = module.get_config(*([argument] if argument else []))
  if not isinstance(loaded, ml_collections.ConfigDict):
    raise TypeError('get_config must return a ConfigDict')
  return loaded


def _add_condition(config: ml_collections.ConfigDict, override: str):
  """Adds the field of '--config.conditions.NAME=RATE' to a prior's config.

  A dataset can have conditions that no config names; the codes are checked
  when the prior is built.
  """
  field, _, _ = override.removeprefix(_PREFIX).partition('=')
  place, _, name = field.partition('.')
  is_condition = place == 'conditions' and name and '.' not in name
  if is_condition and place in config and name not in config.conditions:
    with config.unlocked():
      config.conditions[name] = 0.0


def _check_field(config: ml_collections.ConfigDict, override: str):
  """Raises UserError unless it is '--config.FIELD=VALUE' of a known field."""
  field, equals, _ = override.removeprefix(_PREFIX).partition('=')
  if not equals:
    raise errors.UserError(f'{override} lacks a value: {override}=VALUE')
  for key in field.split('.'):
    if not isinstance(config, ml_collections.ConfigDict) or key not in config:
      there = (
        f'; there are {", ".join(config)}'
        if isinstance(config, ml_collections.ConfigDict)
        else ''
      )
      raise errors.UserError(f'there is no field config.{field}{there}')
    config = config[key]
