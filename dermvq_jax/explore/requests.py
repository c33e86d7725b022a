"""What is sampled and how, as arguments in Python and as a command."""

import argparse
import dataclasses
import shlex
from typing import Any

from dermvq_jax import errors, flag_types, inference, sampling_flags
from dermvq_jax.inference import trained_prior

_NUMBERS = (
  *sampling_flags.CONTROLS,
  *sampling_flags.REJECTIONS,
  sampling_flags.CHOOSE,
)
_CHOOSE_BY = sampling_flags.CHOOSE_BY[0]


def controls(model: inference.Model) -> list[sampling_flags.Number]:
  """The controls that this model's prior has learned to follow."""
  has_weak = trained_prior.has_weak_prior(model.run.prior)
  return [
    number
    for number in sampling_flags.CONTROLS
    if has_weak or number.name != 'autoguidance_scale'
  ]


@dataclasses.dataclass(frozen=True)
class Request:
  """What `dermvq sample` is asked for.

  Attributes:
    counts: the number of images of each class.
    where: the values of conditions that are known.
    seed: from 0 to 2**32 - 1.
    numbers: the values of `sampling_flags.CONTROLS`, `REJECTIONS` and `CHOOSE`,
      by name; the others have their defaults.
    choose_by: by what the best candidates are chosen.

  Raises:
    UserError: there is no class or no seed, or a number is not given.
  """

  counts: dict[str, int]
  where: dict[str, str] = dataclasses.field(default_factory=dict)
  seed: int = 0
  numbers: dict[str, float] = dataclasses.field(default_factory=dict)
  choose_by: str = _CHOOSE_BY

  def __post_init__(self):
    if not self.counts:
      raise errors.UserError('choose a class')
    for name, value in {'seed': self.seed, **self.numbers}.items():
      if value is None:
        raise errors.UserError(f'{name} is empty; give a number')

  @property
  def controls(self) -> dict[str, float | int]:
    """The arguments of `Model.sample` that say how to sample."""
    return self._values(sampling_flags.CONTROLS)

  @property
  def arguments(self) -> dict[str, Any]:
    """The arguments of `samples.write`."""
    return {
      'counts': self.counts,
      'where': self.where,
      'seed': self.seed,
      **self._values(_NUMBERS),
      'choose_by': self.choose_by,
    }

  def changed(self, name: str, value: Any) -> 'Request':
    """Returns the same with another seed, class, number or condition."""
    if name == 'seed':
      return dataclasses.replace(self, seed=value)
    if name == 'class':
      return dataclasses.replace(self, counts={value: 1})
    if name in {number.name for number in _NUMBERS}:
      return dataclasses.replace(self, numbers=self.numbers | {name: value})
    return dataclasses.replace(self, where=self.where | {name: value})

  def _values(
    self, numbers: tuple[sampling_flags.Number, ...]
  ) -> dict[str, float | int]:
    # A slider gives an int for 1.0.
    return {
      n.name: type(n.default)(self.numbers.get(n.name, n.default))
      for n in numbers
    }

  def command(self, *before: str) -> str:
    """Returns the command that samples the same images.

    Args:
      *before: its first flags: --workdir, --out.

    Raises:
      UserError: no command can have a class or value of this name.
    """
    counts = ','.join(f'{name}={n}' for name, n in self.counts.items())
    words = [*before, f'--counts={counts}']
    _check_written(flag_types.counts, counts, self.counts)
    if self.where:
      where = ','.join(f'{name}={value}' for name, value in self.where.items())
      words.append(f'--where={where}')
      _check_written(flag_types.where, where, self.where)
    if self.seed:
      words.append(f'--seed={self.seed}')
    for number, value in zip(_NUMBERS, self._values(_NUMBERS).values()):
      if value != number.default:
        words.append(f'--{number.name}={value}')
    if self.arguments['choose'] != 1 and self.choose_by != _CHOOSE_BY:
      words.append(f'--choose_by={self.choose_by}')
    return shlex.join(['dermvq', 'sample', *words])


def _check_written(read: Any, text: str, meant: Any):
  """Raises UserError unless a flag's text is read as it is meant."""
  try:
    is_same = read(text) == meant
  except argparse.ArgumentTypeError:
    is_same = False
  if not is_same:
    raise errors.UserError(
      f'no command can say {text!r}: a name in it has a comma or ='
    )
