"""Loads a config file by name or path, with overrides."""

import os
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from dermvq_jax import configs, errors


def load(
  config: str, overrides: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Loads a config and applies overrides.

  Args:
    config: 'name' or 'name:argument' of a shipped config, or the path of a
      file with `get_config`.
    overrides: '--config.field=value' each.

  Raises:
    UserError: no such config, argument or field, or a value of a wrong type.
  """
  name, colon, argument = config.partition(':')
  path = name
  if '/' not in name and not name.endswith('.py'):
    path = os.path.join(os.path.dirname(configs.__file__), f'{name}.py')
  if not os.path.exists(path):
    folder = os.path.dirname(configs.__file__)
    known = sorted(f[:-3] for f in os.listdir(folder) if f[0] != '_')
    raise errors.UserError(
      f'there is no config {name!r}; shipped are {", ".join(known)}, or give '
      'the path of a .py file'
    )
  argv = ['dermvq', f'--config={path}{colon}{argument}', *overrides]
  values = flags.FlagValues()
  # Fields are flags of their own, found in argv.
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  try:
    values(argv)
    return values.config
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    text = ' '.join(str(e.args[0] if e.args else e).split())
    raise errors.UserError(f'--config={config}: {text}') from None
