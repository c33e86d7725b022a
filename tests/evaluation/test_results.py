"""Tests that results are written and read back, and checked."""

import dataclasses
import json
import re

import pytest
from evaluations import an_evaluation

from dermvq_jax import errors
from dermvq_jax.evaluation import results


def test_what_is_written_is_read(tmp_path):
  path = tmp_path / 'evaluate_val.json'
  evaluation = an_evaluation()
  path.write_text(results.as_json(evaluation))
  assert results.read(path) == evaluation
  assert json.loads(path.read_text()) == dataclasses.asdict(evaluation)
  less = dataclasses.replace(
    evaluation, space=None, generation=None, labels=None, memorisation=None
  )
  path.write_text(results.as_json(less))
  assert results.read(path) == less


def _change(tree, path, value):
  """Sets a field, or removes it with the value `...`."""
  *parents, last = path.split('.')
  for name in parents:
    tree = tree[name]
  if value is ...:
    del tree[last]
  else:
    tree[last] = value


@pytest.mark.parametrize(
  ('path', 'value'),
  [
    ('split', 3),
    ('seed', '7'),
    ('weights', ...),
    ('weights.prior', None),
    ('made_by.versions', {'jax': 1}),
    ('made_by.devices', ...),
    ('prior.bits_per_code', 'few'),
    ('prior.classes.mel', 0.5),
    ('prior.classes.mel.num_images', 2.5),
    ('prior.classes.mel.unknown', 1),
    ('prior.confusion', [[1, 'x']]),
    ('reconstruction', None),
    ('generation.sets.samples.kid', None),
    ('labels.samples', ...),
    ('memorisation.spaces.pixels.threshold', [0.5]),
    ('another', {}),
  ],
)
def test_a_damaged_field_is_refused_in_one_line(path, value, tmp_path):
  tree = dataclasses.asdict(an_evaluation())
  _change(tree, path, value)
  file = tmp_path / 'evaluate_test.json'
  file.write_text(json.dumps(tree))
  with pytest.raises(
    errors.UserError, match='evaluate_test.json is damaged.*--split=test'
  ) as error:
    results.read(file)
  text = str(error.value)
  assert '\n' not in text and len(text) < 300 + len(str(tmp_path))
  # The message names the field.
  assert re.search(path.rpartition('.')[2], text.partition(' is damaged')[2])


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'{"weights": {',
    b'[]',
    b'null',
    b'\xff\xfe',
    b'{}',
    b'[' * 100_000,
  ],
)
def test_a_damaged_file_is_refused_in_one_line(content, tmp_path):
  file = tmp_path / 'evaluate_val.json'
  file.write_bytes(content)
  with pytest.raises(errors.UserError, match='run dermvq evaluate') as error:
    results.read(file)
  assert '\n' not in str(error.value)
