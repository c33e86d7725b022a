"""Tests that a run can be made again from what it stores about itself."""

import importlib.machinery
import shlex
import sys
from importlib import metadata

import pytest

import dermvq_jax
from dermvq_jax import provenance
from dermvq_jax.data import prepare, prepared

_ARGUMENTS = ['train', '--workdir=/tmp/my runs', '--config=prior']


@pytest.mark.parametrize(
  ('module', 'start'),
  [
    (None, ['dermvq']),
    ('dermvq_jax.main', ['python', '-m', 'dermvq_jax.main']),
    (
      'experiments.usefulness.__main__',
      ['python', '-m', 'experiments.usefulness'],
    ),
  ],
)
def test_command_can_be_typed_again(module, start, monkeypatch):
  spec = module and importlib.machinery.ModuleSpec(module, None)
  monkeypatch.setattr(sys.modules['__main__'], '__spec__', spec)
  monkeypatch.setattr(sys, 'argv', ['/some/bin/dermvq', *_ARGUMENTS])
  said = provenance.describe('jax')
  assert shlex.split(said['command']) == [*start, *_ARGUMENTS]
  assert said['versions'] == {
    'dermvq_jax': dermvq_jax.__version__,
    'jax': metadata.version('jax'),
  }


def test_of_a_dataset(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['dermvq', 'prepare', '--dataset=first'])
  name = 'synthetic_dermoscopy/smoke'
  assert prepared.Dataset(name, tmp_path).made_by == {}
  path = prepare.run(name, tmp_path).data_path
  first = prepared.Dataset(name, tmp_path).made_by
  assert first['command'].endswith('prepare --dataset=first')
  monkeypatch.setattr(sys, 'argv', ['dermvq', 'prepare', '--dataset=again'])
  prepare.run(name, tmp_path)  # prepared before, not by this command
  assert prepared.Dataset(name, tmp_path).made_by == first
  for damaged in ('{', '3', '{"command": "dermvq"}'):
    (path / prepared.MADE_BY).write_text(damaged)
    assert prepared.Dataset(name, tmp_path).made_by == {}
