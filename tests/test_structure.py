"""Imports run one way, and heavy ones stay where they belong."""

import ast
import graphlib
import json
import pathlib
import subprocess
import sys

import pytest

import dermvq_jax

_ROOT = pathlib.Path(dermvq_jax.__file__).parent
# From the lowest up: a module imports only what is in a line before its own.
# 'models' and 'data' stand for all their modules.
_ORDER = [
  {'errors', 'progress', 'provenance', 'compile_cache', 'host_memory'},
  {'hosts'},
  {
    'losses',
    'images',
    'metrics',
    'figures',
    'generation_metrics',
    'inception',
  },
  {'models', 'data'},
  {'tasks', 'workdirs'},
  {'state', 'optim', 'parallel', 'checkpoints', 'logs', 'page', 'stopping'},
  {'encode', 'sample'},
  {'train', 'inference'},
  {'features', 'check'},
  {'memorisation'},
  {'evaluate'},
  {'evaluation_page', 'generate'},
  {'report'},
  {'config_files'},
  {'demo'},
  {'main'},
]
_RANK = {unit: rank for rank, units in enumerate(_ORDER) for unit in units}
# Third-party modules and the only files that may import them.
_CONFINED = {
  'orbax': {'checkpoints'},
  'matplotlib': {'figures'},
  'tensorflow': {'logs'},
  'clu.metric_writers': {'logs'},
  'clu.parameter_overview': {'logs'},
  'clu.periodic_actions': {'logs'},
}
_LAZY = _CONFINED.keys() - {'orbax', 'matplotlib'}


def _name(path):
  """'errors', 'models.layers'; '' for the package itself."""
  parts = path.relative_to(_ROOT).with_suffix('').parts
  return '.'.join(part for part in parts if part != '__init__')


_FILES = {_name(path): path for path in sorted(_ROOT.rglob('*.py'))}
every_module = pytest.mark.parametrize('module', _FILES)


def _imports(module, lazy=True):
  """Full names of all that a module imports; `lazy`: in functions too."""
  names = set()

  def visit(node):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{module}: imports are absolute'
      names.update(f'{node.module}.{alias.name}' for alias in node.names)
    elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      for child in ast.iter_child_nodes(node):
        visit(child)

  visit(ast.parse(_FILES[module].read_text()))
  return names


def _own_imports(module):
  """Modules of this package that a module imports, as in `_FILES`."""
  names = set()
  for name in _imports(module):
    package, _, rest = name.partition('.')
    if package != 'dermvq_jax':
      continue
    # `from dermvq_jax.models.layers import Conv` is an import of models.layers.
    while rest and rest not in _FILES and rest != 'configs':
      rest = rest.rpartition('.')[0]
    names.add(rest)
  return names


def _unit(module):
  return module.partition('.')[0]


def test_the_imports_are_found():
  """Else the tests below would pass whatever the code does."""
  assert {'errors', 'models.layers', 'data.pipeline'} <= _FILES.keys()
  assert _own_imports('models.vqvae') == {'models.layers', 'models.quantizers'}
  assert 'train' in _own_imports('main')  # in a function
  assert 'orbax.checkpoint' in _imports('checkpoints')


def test_every_module_has_its_place():
  assert {_unit(module) for module in _FILES} - {''} == _RANK.keys()


@every_module
def test_imports_run_one_way(module):
  if not module:
    assert _own_imports(module) == {'inference'}  # `load`, in a function
    return
  for other in _own_imports(module) - {'', 'configs'}:
    if _unit(other) == _unit(module):
      assert _unit(module) in ('models', 'data'), f'{module} imports itself'
    else:
      assert _RANK[_unit(other)] < _RANK[_unit(module)], (
        f'{module} may not import {other}'
      )


def test_there_are_no_circles():
  graph = {module: _own_imports(module) - {''} for module in _FILES if module}
  graphlib.TopologicalSorter(graph).prepare()


@every_module
def test_only_tasks_knows_the_models(module):
  models = {name for name in _own_imports(module) if _unit(name) == 'models'}
  models.discard('models.layers')  # Building blocks, not models.
  assert not models or _unit(module) in ('models', 'tasks')


@every_module
def test_configs_are_found_by_their_loader_only(module):
  assert 'configs' not in _own_imports(module) or module == 'config_files'


def test_components_take_fields_and_not_configs():
  low = {u for u in _RANK if _RANK[u] <= _RANK['models']}
  for module in _FILES:
    if _unit(module) in low:
      assert not any(
        name.startswith('ml_collections') for name in _imports(module)
      ), module


@every_module
def test_confined_imports(module):
  for name in _imports(module):
    for confined, places in _CONFINED.items():
      if f'{name}.'.startswith(f'{confined}.'):
        assert module in places, f'{module} imports {name}'


def test_logs_imports_tensorflow_only_when_needed():
  for name in _imports('logs', lazy=False):
    assert not any(f'{name}.'.startswith(f'{lazy}.') for lazy in _LAZY), name


# What runs code that is in a file, or makes objects of any class from it.
_UNSAFE_MODULES = {'pickle', 'cloudpickle', 'dill', 'joblib', 'marshal'}
_UNSAFE_MODULES |= {'shelve', 'yaml', 'runpy'}
_UNSAFE_CALLS = {'eval', 'exec', 'compile', '__import__'}


@every_module
def test_nothing_read_from_a_file_is_run(module):
  roots = {name.partition('.')[0] for name in _imports(module)}
  assert not roots & _UNSAFE_MODULES
  for node in ast.walk(ast.parse(_FILES[module].read_text())):
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
  loaded[step] = sorted(names & {'jax', 'tensorflow', 'clu', 'orbax'})
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
prepared.describe(name, folder)
source = prepared.open_split(name, folder, 'train')
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
  assert 'jax' in loaded['sampler']
