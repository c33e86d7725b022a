"""The ranges of the values in a config, each beside its field."""

import dataclasses
import fnmatch
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from dermvq_jax import errors
from dermvq_jax.models import arguments

_INT32 = 2**31 - 1  # Steps are counted in 32 bits.


@dataclasses.dataclass(frozen=True)
class _Range:
  """Which values are allowed.

  Attributes:
    advice: the range in words, after 'give'.
    has: whether a value is in the range.
  """

  advice: str
  has: Callable[[Any], bool]


def _whole(least: int, most: int = _INT32) -> _Range:
  return _Range(
    f'a whole number from {least} to {most}',
    lambda value: (
      arguments.is_number(value, numbers.Integral) and least <= value <= most
    ),
  )


def _number(advice: str, has: Callable[[float], bool]) -> _Range:
  """A finite number; `has` sees it rounded to float32, as models do."""
  return _Range(
    advice,
    lambda value: arguments.is_number(value) and has(_float32(value)),
  )


def _float32(value: float) -> float:
  """Rounds to float32; values out of its range become infinite."""
  try:
    with np.errstate(over='ignore'):
      return float(np.float32(value))
  except OverflowError:  # an integer too large for a float64
    return math.inf


_POSITIVE = _number('a number above 0', lambda x: 0 < x < math.inf)
_AT_LEAST_0 = _number('a number of at least 0', lambda x: 0 <= x < math.inf)
_BELOW_1 = _number(
  'a number that is at least 0 and less than 1', lambda x: 0 <= x < 1
)
_SHARE = _number('a number from 0 to 1', lambda x: 0 <= x <= 1)

_TEXT = _Range(
  'a text in UTF-8',
  lambda value: isinstance(value, str) and errors.is_utf8(value),
)
# So many layers are more than a model can use, and still compiled in seconds.
_LAYERS = 256

# A `*` stands for any characters. The fields of `config.augment` and the
# weights of `config.loss` are checked where they are used, all at once.
_RANGES = {
  'data_dir': _TEXT,
  'dataset': _TEXT,
  'dtype': _TEXT,
  'seed': _whole(0, arguments.NUM_SEEDS - 1),
  'batch_size': _whole(1),
  'num_microbatches': _whole(1),
  'num_workers': _whole(0, 256),  # Each is a process.
  'num_epochs': _POSITIVE,
  'min_train_steps': _whole(0),
  'num_train_steps': _whole(0),
  'log_every_steps': _whole(1),
  'eval_every_steps': _whole(0),
  'checkpoint_every_steps': _whole(1),
  'patience': _whole(0),
  'params_ema_decay': _BELOW_1,
  'label_smoothing': _BELOW_1,
  'class_balance': _SHARE,
  'perceptual_weights': _TEXT,
  'perceptual_crop': _whole(0),
  'alignment.beta': _POSITIVE,
  'alignment.negative_weight': _AT_LEAST_0,
  'weak_share': _BELOW_1,
  # Of every optimiser.
  '*.learning_rate': _POSITIVE,
  '*.warmup_steps': _whole(0),
  '*.b1': _BELOW_1,
  '*.b2': _BELOW_1,
  '*.weight_decay': _AT_LEAST_0,
  '*.max_grad_norm': _AT_LEAST_0,
  'model.features': _whole(1),
  'model.num_residual_blocks': _whole(0, _LAYERS),
  'model.residual_features': _whole(1),
  'model.stage_blocks': _whole(0, _LAYERS),
  'model.downsampling': _whole(2),
  'model.norm_groups': _whole(0),
  'model.attention_heads': _whole(0),
  'quantizer.codebook_size': _whole(1),
  'quantizer.code_dim': _whole(1),
  'quantizer.commitment_weight': _AT_LEAST_0,
  'quantizer.restart_after': _whole(0),
  'quantizer.codebook_ema_decay': _BELOW_1,
  'quantizer.num_levels': _whole(1, _LAYERS),
  'discriminator.features': _whole(8),
  'discriminator.num_stages': _whole(1, 30),
  'discriminator.start': _SHARE,
  'discriminator.ramp_steps': _whole(0),
  'discriminator.num_samples': _whole(0, 2**20),
  'prior.num_layers': _whole(1, _LAYERS),
  'prior.features': _whole(1),
  'prior.head_features': _whole(1),
  'prior.kernel_size': _whole(3),
  'prior.first_kernel_size': _whole(3),
  'prior.num_heads': _whole(1),
  'prior.mlp_ratio': _whole(1),
  'prior.dropout_rate': _BELOW_1,
  'conditions.*': _SHARE,
  'classifier.features': _whole(1),
  'classifier.num_stages': _whole(1, 30),  # 2**30 px are halved 30 times.
}


def _fields(
  config: Mapping[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """The values of a config, by names like 'optim.b2'."""
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict | dict):
      yield from _fields(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def advice(name: str) -> str:
  """Returns the range of a field like 'optim.b2' in words.

  It is '' for fields that are checked where they are used.
  """
  return next(
    (r.advice for p, r in _RANGES.items() if fnmatch.fnmatchcase(name, p)), ''
  )


def check_ranges(config: Mapping[str, Any]):
  """Raises UserError unless all values of a config are in their ranges."""
  for name, value in _fields(config):
    for pattern, allowed in _RANGES.items():
      if fnmatch.fnmatchcase(name, pattern) and not allowed.has(value):
        raise errors.UserError(
          f'config.{name} is {errors.one_line(repr(value))}; give '
          f'{allowed.advice}'
        )


def optimisers(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the parts of a config that describe an optimiser, by name."""
  return {
    name: fields
    for name, fields in config.items()
    if name == 'optim' or name.endswith('_optim')
  }


def check_stored(config: Mapping[str, Any], task: str):
  """Checks a config that was read from a file.

  Raises:
    UserError: it is not of this task, what all configs have is missing, or a
      value is out of its range.
  """
  if config.get('task') != task:
    found = errors.one_line(repr(config.get('task')))
    raise errors.UserError(f'config.task is {found}, not {task!r}')
  for name in ('data_dir', 'optim'):
    if name not in config:
      raise errors.UserError(f'config.{name} is missing')
  for name, fields in optimisers(config).items():
    if not isinstance(fields, Mapping) or 'schedule' not in fields:
      raise errors.UserError(f'config.{name} describes no optimiser')
  check_ranges(config)
