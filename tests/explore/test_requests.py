"""What the page asks for, as a command."""

import shlex

import pytest

from dermvq_jax import errors, flags, sampling_flags
from dermvq_jax.explore import requests


def parsed(command):
  [program, *words] = shlex.split(command)
  assert program == 'dermvq'
  return flags.parse(words)


def test_the_command_asks_for_the_same():
  request = requests.Request(
    {'mel': 2, "it's; new": 3},
    {'age': '60', 'sex': 'female'},
    7,
    {
      'temperature': 0.9,
      'top_k': 20.0,
      'top_p': 1,
      'reject_unlike': 0.1,
      'choose': 4.0,
    },
    'likelihood',
  )
  command = request.command('--workdir=a run', '--out=$HOME')
  assert '\n' not in command and '--top_p' not in command
  args = parsed(command)
  assert args.command == 'sample'
  assert (args.workdir, args.out) == ('a run', '$HOME')
  for name, value in request.arguments.items():
    assert getattr(args, name) == value, name
    assert type(getattr(args, name)) is type(value), name


def test_every_number_of_the_command_is_known():
  numbers = (
    *sampling_flags.CONTROLS,
    *sampling_flags.REJECTIONS,
    sampling_flags.CHOOSE,
  )
  values = {n.name: n.least + n.step for n in numbers}
  args = parsed(
    requests.Request({'a': 1}, numbers=values).command('--workdir=x', '--out=y')
  )
  assert {name: getattr(args, name) for name in values} == values


@pytest.mark.parametrize(
  ('request_args', 'message'),
  [
    (({},), 'choose a class'),
    (({'a': 1}, {}, None), 'seed is empty'),
    (({'a': 1}, {}, 0, {'top_p': None}), 'top_p is empty'),
  ],
)
def test_empty_inputs(request_args, message):
  with pytest.raises(errors.UserError, match=message):
    requests.Request(*request_args)


@pytest.mark.parametrize(
  ('counts', 'where'), [({'a,b': 1}, {}), ({'a': 1}, {'site': 'arm, left'})]
)
def test_names_that_no_command_can_say(counts, where):
  with pytest.raises(errors.UserError, match='has a comma'):
    requests.Request(counts, where).command()
