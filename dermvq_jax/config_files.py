"""Loads a config file by name or path, with overrides."""

import importlib.util
import os
from collections.abc import Sequence, Set
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from dermvq_jax import configs, errors, spelling
from dermvq_jax.configs import common
from dermvq_jax.runs import starts

_PREFIX = '--config.'
_FOLDER = os.path.dirname(configs.__file__)
# The file that the configs share is not a config itself.
_NOT_CONFIGS = ('__init__', 'common')
_WITH_ANOTHER = {'cpu': '128+cpu'}


def shipped() -> list[str]:
  """Returns the names of the shipped configs, in alphabetical order."""
  names = (os.path.splitext(file) for file in os.listdir(_FOLDER))
  return sorted(
    name
    for name, suffix in names
    if suffix == '.py' and name not in _NOT_CONFIGS
  )


def words(name: str) -> list[str]:
  """Returns the words that may follow the name of a shipped config.

  A word that only goes with others is returned with one of them.
  """
  try:
    _get_config(os.path.join(_FOLDER, f'{name}.py'), '?')
  except common.UnknownWordError as e:
    return [_WITH_ANOTHER.get(word, word) for word in e.known]
  return []


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
      f'the path of a .py file' + spelling.did_you_mean(name, shipped())
    )
  try:
    loaded = _get_config(path, argument)
  except Exception as e:  # the file may be the user's own
    meant = (
      spelling.did_you_mean(e.word, e.known)
      if isinstance(e, common.UnknownWordError)
      else ''
    )
    raise errors.UserError(
      f'--config={config}: {errors.one_line(e)}{meant}'
    ) from e
  for override in overrides:
    _add_condition(loaded, override)
    _check_field(loaded, override)
  values = flags.FlagValues()
  argv = ['dermvq', *overrides]
  try:
    # Each field is a separate flag, which is looked up in argv.
    config_flags.DEFINE_config_dict(
      'config', loaded, flag_values=values, sys_argv=argv
    )
    values(argv)
  except (
    flags.Error,
    config_flags.config_flags.FlagOrderError,
    TypeError,
    ValueError,
  ) as e:
    raise errors.UserError(errors.one_line(e)) from e
  given = {text.removeprefix(_PREFIX).partition('=')[0] for text in overrides}
  _set_length(loaded, given)
  _check_start(loaded, given)
  return loaded


def _check_start(config: ml_collections.ConfigDict, given: Set[str]):
  """Raises UserError for a field that the run in `start_from` decides."""
  if config.get('start_from', '') == '':
    return
  decided = starts.FIELDS.get(config.get('task'), ())
  for field in sorted(given):
    if field.partition('.')[0] in decided:
      raise errors.UserError(
        f'config.{field} has no effect, because the run in config.start_from '
        'decides it; leave it out'
      )


def _set_length(config: ml_collections.ConfigDict, given: Set[str]):
  """Makes a number of epochs that is given count.

  Raises:
    UserError: `num_train_steps` decides alone how long the training is.
  """
  for name in ('num_epochs', 'min_train_steps'):
    if name in given and config.get('num_train_steps'):
      raise errors.UserError(
        f'config.{name} has no effect, because config.num_train_steps is '
        f'{config.num_train_steps}; change that instead, or set it to 0 as well'
      )
  is_least = 'min_train_steps' in given or 'min_train_steps' not in config
  if 'num_epochs' in given and not is_least:
    config.min_train_steps = 0


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
  here = config
  keys = field.split('.')
  for depth, key in enumerate(keys):
    if not isinstance(here, ml_collections.ConfigDict) or key not in here:
      raise errors.UserError(
        f'there is no field config.{field}'
        + _which_field(config, keys[:depth], here, keys[depth:])
      )
    here = here[key]


def fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the values of all fields, by names like 'optim.b2'."""
  found = {}
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      found |= {f'{name}.{k}': v for k, v in fields(value).items()}
    else:
      found[name] = value
  return found


def _which_field(
  config: ml_collections.ConfigDict,
  place: Sequence[str],
  here: Any,
  missing: Sequence[str],
) -> str:
  """Returns the field that was meant, or the names of those that there are.

  Args:
    config: the config.
    place: the keys that exist.
    here: what is there.
    missing: the keys that do not exist there.
  """
  if not isinstance(here, ml_collections.ConfigDict):
    return ''
  prefix = ''.join(f'{key}.' for key in ('config', *place))
  if meant := spelling.did_you_mean(missing[0], here, prefix=prefix):
    return meant
  same = [name for name in fields(config) if name.endswith(f'.{missing[-1]}')]
  if same:
    return f'; did you mean config.{min(same, key=len)}?'
  return f'; there are {", ".join(here)}'
