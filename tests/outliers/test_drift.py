"""Drift of a set: by simulation."""

import numpy as np
import pytest

from dermvq_jax.outliers import drift


def _set(rng, number, shift=0.0):
  """Images of `number` lesions, one or three of each, and their lesions."""
  sizes = rng.choice([1, 3], number)
  groups = np.repeat(np.arange(number), sizes)
  own = rng.normal(size=(number, 5))
  own[:, 2] += shift
  return own[groups] + 0.1 * rng.normal(size=(len(groups), 5)), groups


def test_false_alarms():
  rng = np.random.default_rng(0)
  p = [
    drift.test(*_set(rng, 60), *_set(rng, 20), num_permutations=99).p_value
    for _ in range(150)
  ]
  assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.08)


@pytest.mark.parametrize('sign', [-1, 1])
def test_a_shift_is_found(sign):
  rng = np.random.default_rng(0)
  found = drift.test(*_set(rng, 100), *_set(rng, 50, sign))
  assert found.p_value < 0.01
  assert np.abs(found.differences).argmax() == 2
  assert found.differences[2] == pytest.approx(sign, abs=0.4)


def test_images_of_one_lesion_are_no_proof():
  """A hundred images of one strange lesion are one lesion."""
  rng = np.random.default_rng(0)
  held_out, groups = _set(rng, 50)
  new = np.repeat(held_out[:1] + 1, 100, axis=0)
  found = drift.test(held_out, groups, new, np.zeros(100))
  assert found.p_value > 0.05
