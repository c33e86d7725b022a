"""Tests of the names that are suggested."""

import pytest

from dermvq_jax import spelling


@pytest.mark.parametrize(
  ('name', 'suggestion'),
  [
    ('samlpe', 'sample'),
    ('temp', 'temperature'),  # the beginning of a name
    ('lr', None),
    ('paint', None),
    ('', None),
  ],
)
def test_did_you_mean(name, suggestion):
  known = ('sample', 'train', 'temperature', 'label')
  said = spelling.did_you_mean(name, known)
  assert said == (f'; did you mean {suggestion}?' if suggestion else '')
