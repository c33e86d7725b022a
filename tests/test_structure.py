"""Imports go in one direction, and heavy ones stay where they belong."""

import ast
import functools
import graphlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dermvq_jax

_ROOT = pathlib.Path(dermvq_jax.__file__).parent
_REPOSITORY = pathlib.Path(__file__).parents[1]
# Rooms (folders, and modules at the top level) from the lowest up: a room
# imports only rooms from earlier lines.
_ORDER = [
  {'errors', 'progress', 'spelling'},
  {'console', 'files', 'provenance'},
  {'models', 'data'},
  {'runs'},
  {'training'},
  {'outliers'},
  {'inference'},
  {'evaluation'},
  {'generation'},
  {'reporting'},
  {'config_files', 'flag_types'},
  {'sampling_flags'},
  {'flags', 'explore'},
  {'demo'},
  {'main'},
]
_RANK = {room: rank for rank, rooms in enumerate(_ORDER) for room in rooms}
# Third-party modules, and the only files that may import them.
_CONFINED = {
  'orbax': {'runs.checkpoints', 'runs.steps'},
  'matplotlib': {'reporting.figures', 'reporting.pictures'},
  'gradio': {
    f'explore.{name}'
    for name in (
      *('codes', 'completion', 'data', 'inputs', 'page', 'sampling'),
      *('sources', 'sweeps', 'training'),
    )
  },
  'huggingface_hub': {'runs.hub'},
  'tensorflow': {'runs.logs'},
  'clu.metric_writers': {'runs.logs'},
  'clu.periodic_actions': {'runs.logs'},
}
_LAZY = _CONFINED.keys() - {'gradio', 'orbax', 'matplotlib'}
_MAX_LINES = 450


def _name(path):
  """'errors', 'models.layers'; '' for the package itself."""
  parts = path.relative_to(_ROOT).with_suffix('').parts
  return '.'.join(part for part in parts if part != '__init__')


_FILES = {_name(path): path for path in sorted(_ROOT.rglob('*.py'))}
_ROOMS = {name for name, path in _FILES.items() if path.name == '__init__.py'}
every_module = pytest.mark.parametrize('module', _FILES)


@functools.cache
def _tree(path):
  return ast.parse(path.read_text())


@functools.cache
def _import_nodes(path, lazy=True):
  """All import statements; with `lazy` also those inside functions."""

  def visit(node):
    if isinstance(node, ast.Import | ast.ImportFrom):
      yield node
    elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      for child in ast.iter_child_nodes(node):
        yield from visit(child)

  return list(visit(_tree(path)))


def _imports(module, lazy=True):
  """Full names of everything that a module imports."""
  names = set()
  for node in _import_nodes(_FILES[module], lazy):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    else:
      assert node.level == 0, f'{module}: imports are absolute'
      names.update(f'{node.module}.{alias.name}' for alias in node.names)
  return names


def _own_imports(module):
  """Modules of this package that a module imports, as in `_FILES`."""
  names = set()
  for name in _imports(module):
    package, _, rest = name.partition('.')
    if package != 'dermvq_jax':
      continue
    # `from dermvq_jax.models.layers import Conv` is an import of models.layers.
    while rest and rest not in _FILES and not rest.startswith('configs'):
      rest = rest.rpartition('.')[0]
    names.add(rest)
  return names


def _room(module):
  return module.partition('.')[0]


def test_the_imports_are_found():
  """Checks the helpers; without them the tests below would always pass."""
  assert {'errors', 'models.layers', 'data.pipeline'} <= _FILES.keys()
  assert 'models.layers' in _own_imports('models.vqvae')
  assert 'training.loop' in _own_imports('main')  # in a function
  assert 'orbax.checkpoint' in _imports('runs.checkpoints')


def test_every_module_has_its_place():
  assert {_room(module) for module in _FILES} - {''} == _RANK.keys()


@every_module
def test_imports_run_one_way(module):
  if not module:
    assert _own_imports(module) == {'inference'}  # `load`, in a function
    return
  for other in _own_imports(module) - {''}:
    if _room(other) == 'configs':
      assert module == 'config_files'
    elif _room(other) != _room(module):  # models and data have the same rank.
      assert _RANK[_room(other)] < _RANK[_room(module)], (
        f'{module} may not import {other}'
      )
    else:
      assert _room(module) in _ROOMS, f'{module} imports itself'


def test_there_are_no_circles():
  graph = {module: _own_imports(module) - {''} for module in _FILES if module}
  graphlib.TopologicalSorter(graph).prepare()


def test_components_take_fields_and_not_configs():
  for module in _FILES:
    if _room(module) in ('models', 'data'):
      assert not any(
        name.startswith('ml_collections') for name in _imports(module)
      ), module


@every_module
def test_confined_imports(module):
  for name in _imports(module):
    for confined, places in _CONFINED.items():
      if f'{name}.'.startswith(f'{confined}.'):
        assert module in places, f'{module} imports {name}'


def test_logs_import_tensorflow_only_when_needed():
  for name in _imports('runs.logs', lazy=False):
    assert not any(f'{name}.'.startswith(f'{lazy}.') for lazy in _LAZY), name


_SOURCES = {
  str(path.relative_to(_REPOSITORY)): path
  for folder in ('dermvq_jax', 'configs', 'experiments')
  for path in sorted((_REPOSITORY / folder).rglob('*.py'))
}


def _private_uses(path):
  """The private names (_...) that a file takes from our modules."""
  modules, found = set(), []
  for node in _import_nodes(path):
    names = [(a.asname or a.name, a.name) for a in node.names]
    if isinstance(node, ast.ImportFrom) and _is_ours(node.module or ''):
      found += [name for _, name in names if _is_private(name)]
      modules.update(bound for bound, _ in names)
    elif isinstance(node, ast.Import):
      modules.update(bound for bound, name in names if _is_ours(name))
  for node in ast.walk(_tree(path)):
    if (
      isinstance(node, ast.Attribute)
      and isinstance(node.value, ast.Name)
      and node.value.id in modules
      and _is_private(node.attr)
    ):
      found.append(f'{node.value.id}.{node.attr}, line {node.lineno}')
  return found


def _is_private(name):
  return name.startswith('_') and not name.startswith('__')


def _is_ours(name):
  return name.partition('.')[0] in ('dermvq_jax', 'experiments')


@pytest.mark.parametrize('source', _SOURCES)
def test_private_names_stay_at_home(source):
  assert not _private_uses(_SOURCES[source])


def test_private_uses_are_found(tmp_path):
  file = tmp_path / 'a.py'
  file.write_text(
    'from dermvq_jax.runs import run as r\n'
    'from dermvq_jax.runs.logs import _FILE\n'
    'r._flatten({})\nr.Run._secret\nr.__name__\n'
  )
  assert _private_uses(file) == ['_FILE', 'r._flatten, line 3']


# It has one job: to draw the synthetic images.
_LONG = {
  'dermvq_jax/data/datasets/synthetic_dermoscopy.py',
}


@pytest.mark.parametrize('source', _SOURCES)
def test_modules_are_short(source):
  lines = len(_SOURCES[source].read_text().splitlines())
  assert lines <= _MAX_LINES or source in _LONG, lines


# Functions that run code in a file, or make objects of any class from it.
_UNSAFE_MODULES = {'pickle', 'cloudpickle', 'dill', 'joblib', 'marshal'}
_UNSAFE_MODULES |= {'shelve', 'yaml', 'runpy'}
_UNSAFE_CALLS = {'eval', 'exec', 'compile', '__import__'}


@every_module
def test_nothing_read_from_a_file_is_run(module):
  roots = {name.partition('.')[0] for name in _imports(module)}
  assert not roots & _UNSAFE_MODULES
  for node in ast.walk(_tree(_FILES[module])):
    if isinstance(node, ast.Call):
      called = node.func
      assert not (
        isinstance(called, ast.Name) and called.id in _UNSAFE_CALLS
      ), f'{module}, line {node.lineno}'
      allowing = [k for k in node.keywords if k.arg == 'allow_pickle']
      assert all(k.value.value is False for k in allowing), node.lineno
      # A file of the user's own, named on the command line.
      if isinstance(called, ast.Attribute) and called.attr == 'exec_module':
        assert module == 'config_files'


_SCRIPT = """
import json, sys
loaded = {}
def note(step):
  names = {name.partition('.')[0] for name in sys.modules}
  heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'clu', 'orbax', 'grain'}
  heavy.add('gradio')
  loaded[step] = sorted(names & heavy)
import dermvq_jax
note('dermvq_jax')
import dermvq_jax.main
note('dermvq_jax.main')
import dermvq_jax.models.priors.sampler
note('sampler')
import dermvq_jax.inference
note('dermvq_jax.inference')
import dermvq_jax.training.loop
note('loop')
from dermvq_jax.data import pipeline, prepare, prepared
name, folder = 'synthetic_dermoscopy/smoke', sys.argv[1]
prepare.run(name, folder, None)
note('preparing')
dataset = prepared.Dataset(name, folder)
dataset.facts
source = dataset.split('train')
kwargs = dict(batch_size=4, keys=('image', 'label'))
next(pipeline.train_batches(source, seed=0, **kwargs))
next(pipeline.eval_batches(source, **kwargs))
note('reading')
print(json.dumps(loaded))
"""


def test_what_importing_and_reading_loads(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _SCRIPT, str(tmp_path)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  loaded = json.loads(done.stdout.splitlines()[-1])
  for step, names in loaded.items():
    assert 'tensorflow' not in names, step
  # These are instant.
  assert loaded['dermvq_jax'] == loaded['dermvq_jax.main'] == []
  assert loaded['sampler'] == loaded['dermvq_jax.inference'] == ['jax']


_EXPORT_SCRIPT = """
import sys
class Missing:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in sys.argv[2].split(','):
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Missing())
import numpy as np
import dermvq_jax
np.save(sys.argv[3], dermvq_jax.load(sys.argv[1]).sample(['mel', 'nv']))
"""


def test_an_export_is_used_without_what_only_trainings_need(
  exported_run, tmp_path
):
  """The images are those that `dermvq sample` made of the run."""
  locked = (_REPOSITORY / 'requirements' / 'inference.in').read_text()
  needed = {line.replace('-', '_') for line in locked.splitlines()}
  missing = {'tensorflow', 'tensorflow_datasets', 'grain', 'orbax', 'clu'}
  missing |= {'array_record', 'optax', 'tensorstore', 'dacite', 'matplotlib'}
  missing |= {'jinja2', 'tensorboard'}
  assert not missing & needed
  words = [str(exported_run), ','.join(missing), str(tmp_path / 'made.npy')]
  done = subprocess.run(
    [sys.executable, '-c', _EXPORT_SCRIPT, *words],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  for name, made in zip(['mel', 'nv'], np.load(tmp_path / 'made.npy')):
    file = f'samples/{name}/synthetic_{name}_00000.png'
    with Image.open(exported_run / file) as image:
      np.testing.assert_array_equal(made, np.asarray(image))
