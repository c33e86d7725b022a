"""What callers give to a trained model."""

import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.models import arguments
from dermvq_jax.models.priors import sampler


def test_codes_as_bytes_do_not_wrap():
  """All 256 codes fit a byte, but their number does not."""
  codes = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
  found = arguments.check_codes(codes, 256, 1)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found.ravel(), np.arange(256))
  # Two levels of 128 codes each.
  pairs = np.stack([codes[0, :8].ravel(), codes[0, 8:].ravel()], 1)[None]
  np.testing.assert_array_equal(arguments.check_codes(pairs, 256, 2), pairs)
  with pytest.raises(errors.UserError, match='2 levels of a code'):
    arguments.check_codes(pairs[..., ::-1], 256, 2)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('temperature', '1'),
    ('temperature', None),
    ('top_k', True),
    ('top_k', float('inf')),
    ('top_p', '1'),
    ('guidance_scale', [1]),
  ],
)
def test_controls_of_odd_types(name, value):
  with pytest.raises(errors.UserError, match=f'{name} is'):
    sampler.Controls(**{name: value})


@pytest.mark.parametrize(
  ('labels', 'count', 'expected'),
  [
    ('mel', 1, [0]),
    ('mel', 3, [0, 0, 0]),
    (['mel', 'nv', 'mel'], 1, [0, 1, 0]),
    (['mel', 2], 2, [0, 0, 2, 2]),
    ({'nv': 2, 'mel': 1}, 1, [1, 1, 0]),
    ({'nv': 0, 2: np.int64(1)}, 1, [2]),
    ('mel', 0, []),
    ([], 2, []),
    ({}, 1, []),
  ],
)
def test_the_labels_that_are_asked_for(labels, count, expected):
  found = arguments.requested(labels, count, ('mel', 'nv'))
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  ('labels', 'count', 'message'),
  [
    ('mel', -1, 'count is -1; give a whole number'),
    ('mel', 2.0, 'count is 2.0'),
    ('mel', True, 'count is True'),
    ('mel', '2', "count is '2'"),
    ({'mel': None}, 1, 'count is None'),
    ({'mel': 2}, 3, 'counts in the dict only'),
    ({'df': 2}, 1, "no class 'df'; the classes are mel, nv"),
  ],
)
def test_counts_that_are_refused(labels, count, message):
  with pytest.raises(errors.UserError, match=message):
    arguments.requested(labels, count, ('mel', 'nv'))
