"""Files of a run and of its datasets, damaged."""

import json
import pathlib
import shutil

import fuzzing
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dermvq_jax.runs import steps

_VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | fuzzing.words(),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=4,
)


def _places(tree, path=()):
  """The paths of all values in a JSON tree."""
  yield path
  if isinstance(tree, dict | list):
    keys = tree if isinstance(tree, dict) else range(len(tree))
    for key in keys:
      yield from _places(tree[key], (*path, key))


@st.composite
def _contents(draw, path):
  """The new content of a file; None if it is to be removed."""
  rng = draw(fuzzing.dice())
  data = path.read_bytes()
  if rng.random() < 0.05:
    return None
  is_json = path.suffix == '.json' or path.name in ('metadata', '_METADATA')
  if not is_json or rng.random() < 0.3:
    return fuzzing.damaged(data, rng)
  tree = json.loads(data)
  *way, last = rng.choice(list(_places(tree))[1:])
  parent = tree
  for key in way:
    parent = parent[key]
  if rng.random() < 0.8:
    parent[last] = draw(_VALUES)
  else:
    del parent[last]
  return json.dumps(tree).encode()


@pytest.fixture(scope='module')
def run(smoke_run, tmp_path_factory):
  """A copy of a run, and its files that are damaged."""
  folder = tmp_path_factory.mktemp('damaged') / 'run'
  ignored = shutil.ignore_patterns('events.*', 'profile', '*.png', '*.html')
  shutil.copytree(smoke_run, folder, ignore=ignored)
  return folder, sorted(p for p in folder.rglob('*') if p.is_file())


def _arrays(folder):
  """All arrays of a run's checkpoints, by place."""
  return {
    str(path.relative_to(folder)): steps.read(path)
    for path in sorted(folder.glob('*/*/*'))
    if path.parent.name in ('checkpoints', 'best')
  }


@pytest.fixture(scope='module')
def intact(run):
  return _arrays(run[0])


def _same(a, b):
  import jax

  return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


_COMMANDS = (
  ('train', '--config=vqvae:smoke'),
  ('train', '--config=prior:smoke'),
  ('encode',),
  ('sample', '--counts=mel=1', '--out={out}'),
  ('sample', '--balance', '--out={out}'),
  ('reconstruct', '--split=val', '--num_images=2', '--out={out}'),
  ('evaluate', '--num_samples=0'),
)


def _damage(run, data, tmp_path):
  """Changes one file of a run; returns the run's new place."""
  folder, files = run
  path = data.draw(st.sampled_from(files))
  content = data.draw(_contents(path))
  copy = tmp_path / 'run'
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(folder, copy, copy_function=_link)
  changed = copy / path.relative_to(folder)
  changed.unlink()
  if content is not None:
    changed.write_bytes(content)
  hypothesis.note(f'{changed}: {content}')
  return copy


def _link(source, target):
  """Makes a file cheaply; commands replace files, they never change them."""
  pathlib.Path(target).hardlink_to(source)


@fuzzing.inputs(few=5, share=0.05)
@hypothesis.given(data=st.data())
def test_check(tally, run, intact, tmp_path, data):
  """Either the damage is named, or the values are the old ones."""
  copy = _damage(run, data, tmp_path)
  done = tally.command('check', f'--workdir={copy}', codes=(1,))
  if done.code == 0:
    found = _arrays(copy)
    assert found.keys() == intact.keys() and _same(found, intact)


@fuzzing.inputs(few=2, share=0.02)
@hypothesis.given(data=st.data(), command=st.sampled_from(_COMMANDS))
def test_commands(tally, run, tmp_path, data, command):
  copy, out = _damage(run, data, tmp_path), tmp_path / 'out'
  shutil.rmtree(out, ignore_errors=True)
  argv = [word.format(out=out) for word in command]
  done = tally.command(*argv, f'--workdir={copy}')
  assert not list(tmp_path.rglob('*incomplete*'))
  assert out.exists() == (done.code == 0 and '--out={out}' in command)
