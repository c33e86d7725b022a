"""The answer of a classifier as a table."""

import numpy as np

from dermvq_jax.inference import classification


def test_a_table():
  probs = np.float32([[0.25, 0.75], [1, 0]])
  with np.errstate(divide='ignore'):
    found = classification.Classification(np.log(probs), ('mel', 'nv'))
  assert found.labels == ['nv', 'mel'] and len(found) == 2
  np.testing.assert_allclose(found.probs, probs)
  assert str(found).splitlines() == [
    'image  most likely    mel     nv',
    '    0           nv  0.250  0.750',
    '    1          mel  1.000  0.000',
  ]


def test_long_tables_are_cut_and_names_are_inert():
  log_probs = np.zeros((25, 1), np.float32)
  found = classification.Classification(log_probs, ('a\x1b[31m',))
  lines = repr(found).splitlines()
  assert len(lines) == 22 and lines[-1] == '... and 5 more'
  assert '\x1b' not in repr(found)
  empty = classification.Classification(log_probs[:0], ('mel',))
  assert empty.labels == [] and len(str(empty).splitlines()) == 1
