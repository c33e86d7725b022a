"""Weights without orbax: written and read for every model, and by strangers."""

import json
import os
import pickle
import shutil
import struct

import jax
import numpy as np
import pytest
import safetensors.numpy

from dermvq_jax import config_files, errors
from dermvq_jax.runs import exported
from dermvq_jax.runs import run as run_lib

_IMAGES = {
  'dataset': 'images/16',
  'class_names': ['mel', 'nv'],
  'image_size': 16,
  'train_variance': 0.1,
}
_CODES = {
  'dataset': 'codes/x',
  'class_names': ['mel', 'nv'],
  'conditions': {'label': ['mel', 'nv']},
  'codebook_size': 32,
  'grid': [4, 4],
  'vqvae_digest': 'x',
}
_WEIGHTS = 'vqvae/weights.safetensors'
_CONFIG = 'vqvae/config.json'


def export(folder, name, facts, *overrides):
  """A phase with random weights, and its export."""
  run = run_lib.Run(folder / 'run')
  rng = np.random.default_rng(0)
  overrides = ['--config.data_dir=/home/me/data', *overrides]
  config = config_files.load(name, overrides)
  phase = run.phase(config.task)
  phase.start(config, facts)
  phase.weights = jax.tree.map(
    lambda leaf: np.asarray(rng.normal(size=leaf.shape), leaf.dtype),
    phase.shapes,
  )
  return phase, run.export(folder / 'export').phase(config.task)


def check_equal(phase, again):
  assert again.is_exported and again.has_weights and not phase.is_exported
  jax.tree.map(np.testing.assert_array_equal, phase.weights, again.weights)
  types = [
    [leaf.dtype for leaf in jax.tree.leaves(p.weights)] for p in (phase, again)
  ]
  assert types[0] == types[1]
  given = phase.config.to_dict() | {'data_dir': ''}
  assert again.config.to_dict() == given and again.facts == phase.facts
  assert 'command' in phase.made_by and 'command' not in again.made_by


@pytest.mark.parametrize(
  'quantizer', ['ema', 'vq', 'l2_norm', 'fsq', 'residual']
)
def test_every_quantizer(tmp_path, quantizer):
  check_equal(*export(tmp_path, f'vqvae:smoke+{quantizer}', _IMAGES))


@pytest.mark.parametrize(
  ('prior', 'num_levels'),
  [
    ('gated_pixelcnn', 1),
    ('gated_pixelcnn', 2),
    ('pixelcnn', 1),
    ('rnn', 1),
    ('transformer', 1),
  ],
)
def test_every_prior(tmp_path, prior, num_levels):
  facts = _CODES | {'num_levels': num_levels, 'grid': [4, 4 * num_levels]}
  small = ('--config.prior.num_layers=1', '--config.prior.features=8')
  check_equal(*export(tmp_path, f'prior:{prior}', facts, *small))


def test_a_classifier(tmp_path):
  check_equal(*export(tmp_path, 'classifier:smoke', _IMAGES))


@pytest.fixture(scope='module')
def a_vqvae(tmp_path_factory):
  """The folder of an export, to be read only, and the shapes of its weights."""
  folder = tmp_path_factory.mktemp('a')
  phase, again = export(folder, 'vqvae:smoke', _IMAGES)
  assert again.weights
  return folder / 'export', phase.shapes


def test_an_export_is_the_same_each_time(a_vqvae, tmp_path):
  export(tmp_path, 'vqvae:smoke', _IMAGES)
  first, second = (f / _WEIGHTS for f in (a_vqvae[0], tmp_path / 'export'))
  assert first.read_bytes() == second.read_bytes()


def test_an_export_cannot_be_trained_on(a_vqvae):
  phase = run_lib.Run(a_vqvae[0]).vqvae
  before = (a_vqvae[0] / _CONFIG).read_text()
  with pytest.raises(
    errors.UserError, match='an export, which cannot be train'
  ):
    phase.start(phase.config, _IMAGES)
  assert (a_vqvae[0] / _CONFIG).read_text() == before


def rewrite(change):
  """Makes a change of the arrays, which stay a valid file."""

  def apply(folder):
    path = folder / _WEIGHTS
    arrays = safetensors.numpy.load(path.read_bytes())
    with safetensors.safe_open(path, 'np') as opened:
      metadata = opened.metadata()
    name = next(n for n in sorted(arrays) if n.endswith('kernel'))
    change(arrays, name, metadata)
    path.write_bytes(safetensors.numpy.save(arrays, metadata))

  return apply


def with_header(change):
  """Makes a change of the description of the arrays."""

  def apply(folder):
    path = folder / _WEIGHTS
    content = path.read_bytes()
    (size,) = struct.unpack('<Q', content[:8])
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + content[8 + size :])

  return apply


def with_content(make):
  """Makes a change of the bytes of the file of weights."""

  def apply(folder):
    path = folder / _WEIGHTS
    path.write_bytes(make(path.read_bytes()))

  return apply


def with_config(*path, value):
  """Makes a change of a value in config.json."""

  def apply(folder):
    stored = json.loads((folder / _CONFIG).read_text())
    here = stored
    for key in path[:-1]:
      here = here[key]
    here[path[-1]] = value
    (folder / _CONFIG).write_text(json.dumps(stored))

  return apply


def link(name):
  """Replaces a file or folder by a link to it."""

  def apply(folder):
    path = folder / name
    real = path.rename(folder / 'real')
    path.symlink_to(real)

  return apply


def _device(folder):
  (folder / _WEIGHTS).unlink()
  (folder / _WEIGHTS).symlink_to('/dev/zero')


def _huge_shape(header):
  name = next(n for n in sorted(header) if n.endswith('kernel'))
  header[name]['shape'] = [2**40, 2**20]


def _huge_offsets(header):
  name = next(n for n in sorted(header) if n.endswith('kernel'))
  header[name]['data_offsets'][1] = 2**60


class Evil:
  def __reduce__(self):
    return os.mkdir, ('ran',)


_STRANGE = {
  'missing': (rewrite(lambda a, n, m: a.pop(n)), 'kernel is missing'),
  'more': (rewrite(lambda a, n, m: a.update(x=a[n])), 'x is F32 .* be missing'),
  'other names': (
    rewrite(lambda a, n, m: a.update({n.upper(): a.pop(n)})),
    'would be missing',
  ),
  'float64': (
    rewrite(lambda a, n, m: a.update({n: np.float64(a[n])})),
    r'kernel is F64 \[.*would be F32',
  ),
  'int32': (
    rewrite(lambda a, n, m: a.update({n: a[n].view(np.int32)})),
    'is I32',
  ),
  'transposed': (
    rewrite(lambda a, n, m: a.update({n: np.array(a[n].T)})),
    'would be F32',
  ),
  'large': (
    rewrite(lambda a, n, m: a.update(x=np.zeros(2**21, np.float32))),
    'may have',
  ),
  'other values': (
    rewrite(lambda a, n, m: a.update({n: a[n] + 1})),
    'arrays differ from what was saved',
  ),
  'no checksums': (
    rewrite(lambda a, n, m: m.clear()),
    'checksums are missing',
  ),
  'nonsense checksums': (
    rewrite(lambda a, n, m: m.update(dermvq_jax='{"id": 3}')),
    'checksums are missing',
  ),
  'huge shape': (with_header(_huge_shape), 'damaged'),
  'huge offsets': (with_header(_huge_offsets), 'damaged'),
  'shape of nonsense': (
    with_header(lambda h: h.update(x={'dtype': 'F32', 'shape': 'x'})),
    'damaged',
  ),
  'empty': (with_content(lambda c: b''), 'damaged'),
  'text': (with_content(lambda c: b'PK\3\4 no weights'), 'damaged'),
  'huge header': (with_content(lambda c: b'\xff' * 7 + b'\x7f' + c), 'damaged'),
  'cut': (with_content(lambda c: c[:-100]), 'damaged'),
  'a flipped bit': (
    with_content(lambda c: c[:-9] + bytes([c[-9] ^ 4]) + c[-8:]),
    'differ from what was saved',
  ),
  'pickle': (with_content(lambda c: pickle.dumps(Evil())), 'damaged'),
  'another quantizer': (
    with_config('config', 'quantizer', 'name', value='os.system'),
    'no quantizer named',
  ),
  'a huge model': (
    with_config('config', 'model', 'features', value=2**30),
    'would be|describes no model',
  ),
  'a huge codebook': (
    with_config('config', 'quantizer', 'codebook_size', value=2**31 - 1),
    'would be',
  ),
  'a negative number': (
    with_config('config', 'model', 'residual_features', value=-1),
    'config.json is damaged',
  ),
  'a number as text': (
    with_config('config', 'model', 'features', value='16'),
    'config.json is damaged',
  ),
  'no model': (
    with_config('config', 'model', value=None),
    'config.json is damaged',
  ),
  'facts of nonsense': (
    with_config('facts', 'image_size', value=[1]),
    'config.json is damaged',
  ),
  'no facts': (with_config('facts', value=3), 'config.json is damaged'),
  'no config': (lambda f: (f / _CONFIG).unlink(), 'holds no run|is no file'),
  'a large config': (
    lambda f: (f / _CONFIG).write_bytes(b' ' * 2**23),
    'may have',
  ),
  'linked weights': (link(_WEIGHTS), 'is a link'),
  'a linked config': (link(_CONFIG), 'is a link'),
  'a linked folder': (link('vqvae'), 'is a link'),
  'a link to a device': (_device, 'is a link'),
  'a folder': (
    lambda f: (f / _WEIGHTS).unlink() or (f / _WEIGHTS).mkdir(),
    'no file',
  ),
}
# What is found without a look at the values.
_UNREAD = ('missing', 'more', 'other names', 'float64', 'transposed', 'large')
_UNREAD += ('huge shape', 'a huge model', 'a huge codebook')


@pytest.mark.parametrize('name', _STRANGE)
def test_a_strange_export_is_refused(a_vqvae, tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  change, match = _STRANGE[name]
  folder = tmp_path / 'export'
  shutil.copytree(a_vqvae[0], folder)
  config = (folder / _CONFIG).read_bytes()
  change(folder)
  phase = run_lib.Run(folder).vqvae
  path = folder / _CONFIG
  if path.is_file() and not path.is_symlink() and path.read_bytes() == config:
    phase.shapes = a_vqvae[1]  # They take long.
  if name in _UNREAD:
    monkeypatch.setattr(exported, '_read_arrays', None)
  with pytest.raises(errors.UserError, match=match) as error:
    _ = phase.weights
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'ran').exists()
