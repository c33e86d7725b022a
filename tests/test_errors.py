"""Messages are one line, whatever they quote."""

import pickle

import pytest

from dermvq_jax import errors


@pytest.mark.parametrize('kind', [errors.UserError, errors.MissingError])
def test_a_message_is_one_line(kind):
  error = kind('1.0\r\nhas \x1b[2J')
  assert str(error) == r'1.0\r\nhas \x1b[2J'
  # Workers send errors to the main process.
  assert str(pickle.loads(pickle.dumps(error))) == str(error)
