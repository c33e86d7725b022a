"""What the shipped configs build, so that every change is noticed."""

import functools
import importlib
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import config_files, errors
from dermvq_jax.models import build
from dermvq_jax.training import optim

# Number of parameters, and of values in other collections. A prior's number
# depends on the codebook: here the VQ-VAE's with the same argument.
GOLDEN = {
  ('vqvae', ''): (2_219_772, 34_816),
  ('vqvae', 'sharp+fsq'): (2_203_119, 9),
  ('vqvae', 'mse'): (936_796, 17_408),
  ('vqvae', 'sharpen'): (936_796, 17_408),
  ('vqvae', 'mse+ema'): (936_796, 17_408),
  ('vqvae', 'mse+vq'): (944_988, 8_704),
  ('vqvae', 'mse+l2_norm'): (930_644, 4_608),
  ('vqvae', 'mse+fsq'): (920_143, 9),
  ('vqvae', 'mse+residual'): (936_796, 34_816),
  ('vqvae', '128'): (2_219_772, 34_816),
  ('vqvae', '128+cpu'): (2_219_772, 34_816),
  ('vqvae', '256'): (3_482_172, 34_816),
  ('vqvae', 'demo'): (284_156, 8_704),
  ('vqvae', 'smoke'): (19_852, 576),
  ('vqvae', 'smoke+sharp'): (40_000, 1_152),
  ('prior', ''): (2_864_832, 0),
  ('prior', 'gated_pixelcnn'): (2_864_832, 0),
  ('prior', 'pixelcnn'): (1_421_696, 0),
  ('prior', 'rnn'): (1_427_280, 0),
  ('prior', 'transformer'): (1_454_080, 0),
  ('prior', 'large'): (7_302_464, 0),
  ('prior', 'align'): (2_864_832, 0),
  ('prior', 'demo'): (832_000, 0),
  ('prior', 'rnn+demo'): (1_107_024, 0),
  ('prior', 'smoke'): (5_464, 0),
  ('classifier', ''): (429_727, 0),
  ('classifier', 'demo'): (429_727, 0),
  ('classifier', 'smoke'): (11_551, 0),
}
# Number of parameters of the VQ-VAE of squared error with other fields.
ARCHITECTURES = {
  'features=64': 284_156,
  'num_residual_blocks=4': 1_101_276,
  'downsampling=8': 2_117_084,
  'downsampling=16': 3_297_372,
  'norm_groups=8': 938_076,
  'attention_heads=4': 1_069_404,
  'stage_blocks=2': 936_796 + 2 * (64 * 32 * 9 + 32 + 32 * 64 + 64),
}
every_config = pytest.mark.parametrize('name, argument', GOLDEN)


def _module(name):
  return importlib.import_module(f'dermvq_jax.configs.{name}')


def _facts(argument):
  """Facts of seven classes and of the codes of this argument's VQ-VAE."""
  size = ''.join({'demo', 'smoke'} & set(argument.split('+')))
  quantizer = _module('vqvae').get_config(size).quantizer
  class_names = [str(i) for i in range(7)]
  return {
    'class_names': class_names,
    'conditions': {'label': class_names},
    'codebook_size': quantizer.codebook_size,
    'image_size': 64,
  }


def _variables(name, argument):
  config = _module(name).get_config(argument)
  images = jnp.zeros((1, 16, 16, 3))
  if name == 'vqvae':
    init, inputs = build.vqvae(config).init, (images,)
  elif name == 'classifier':
    init = build.classifier(config, _facts(argument)).init
    inputs = (images,)
  else:
    prior = build.prior(config, _facts(argument))
    init = functools.partial(prior.init, train=False)
    label = jnp.zeros((1,), jnp.int32)
    inputs = jnp.zeros((1, 4, 4), jnp.int32), {'label': label}
  return jax.eval_shape(init, jax.random.key(0), *inputs)


def _size(tree):
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('size', ['demo', 'smoke'])
@pytest.mark.parametrize('prior', ['pixelcnn', 'rnn', 'transformer'])
def test_small_priors_of_all_kinds(prior, size):
  small = _size(_variables('prior', f'{prior}+{size}')['params'])
  assert small < GOLDEN['prior', prior][0]


@every_config
def test_number_of_parameters(name, argument):
  state, params = flax.core.pop(_variables(name, argument), 'params')
  assert (_size(params), _size(state)) == GOLDEN[name, argument]


@pytest.mark.parametrize('override', ARCHITECTURES)
def test_number_of_parameters_of_an_architecture(override):
  config = config_files.load('vqvae:mse', [f'--config.model.{override}'])
  images = jnp.zeros((1, 16, 16, 3))
  init = build.vqvae(config).init
  shapes = jax.eval_shape(init, jax.random.key(0), images)
  assert _size(shapes['params']) == ARCHITECTURES[override]


@every_config
def test_parameters_are_float32(name, argument):
  dtypes = {x.dtype for x in jax.tree.leaves(_variables(name, argument))}
  assert dtypes <= {jnp.dtype('float32'), jnp.dtype('int32')}


@pytest.mark.parametrize('name', sorted({name for name, _ in GOLDEN}))
def test_every_argument_has_a_row(name):
  module = _module(name)
  with pytest.raises(ValueError, match="has no config 'nonsense'; give") as e:
    module.get_config('nonsense')
  words = re.search('one of (.+), or some', str(e.value)).group(1).split(', ')
  arguments = {argument for n, argument in GOLDEN if n == name}
  assert {'', *words} == {word for a in arguments for word in a.split('+')}
  # The module's docstring names all of them.
  for word in words:
    assert f"'{word}'" in module.__doc__


@pytest.mark.parametrize(
  ('name', 'argument', 'message'),
  [
    ('vqvae', 'vq+fsq', 'give only one of vq, fsq'),
    ('vqvae', '128+256', 'give only one of 128, 256'),
    ('vqvae', 'mse+sharp', 'give only one of mse, sharp'),
    ('vqvae', 'cpu', "'cpu' goes with 128 or 256 only"),
    ('vqvae', 'fsq+sharpen', 'leave out fsq'),
    ('vqvae', 'vq+', "no config ''"),
    ('prior', 'rnn+none', "no config 'none'"),
    ('prior', 'rnn+pixelcnn', 'give only one of rnn, pixelcnn'),
    ('prior', 'rnn+large', 'leave out rnn'),
    ('prior', 'align+large', 'leave out large'),
    ('prior', 'large+demo', 'give only one of large, demo'),
    ('classifier', 'demo+smoke', 'give only one of demo, smoke'),
  ],
)
def test_words_that_do_not_go_together(name, argument, message):
  with pytest.raises(errors.UserError, match=message):
    config_files.load(f'{name}:{argument}')


def test_words_are_joined():
  config = config_files.load('vqvae:smoke+l2_norm+sharp')
  assert (
    config.to_dict() == config_files.load('vqvae:sharp+smoke+l2_norm').to_dict()
  )
  assert (config.quantizer.name, config.batch_size) == ('l2_norm', 8)
  assert config.quantizer.codebook_size == 64
  config = config_files.load('prior:transformer+smoke')
  assert (config.prior.name, config.prior.num_layers) == ('transformer', 2)


def test_every_config_has_a_row():
  folder = importlib.resources.files('dermvq_jax.configs')
  files = {f.name[:-3] for f in folder.iterdir() if f.name.endswith('.py')}
  assert files - {'__init__', 'common'} == {name for name, _ in GOLDEN}


@every_config
def test_docstring_holds_the_command(name, argument):
  del argument
  assert f'dermvq train --config={name} --workdir=' in _module(name).__doc__


@every_config
def test_config_makes_an_optimizer(name, argument):
  config = _module(name).get_config(argument)
  config.num_train_steps = config.num_train_steps or 1000
  optimizers = {'': 'optim'}
  if name == 'vqvae':
    optimizers['discriminator'] = 'discriminator_optim'
  optim.make(config, optimizers)
  assert config.task == name


@every_config
def test_the_command_line_finds_every_config(name, argument):
  text = f'{name}:{argument}' if argument else name
  config = config_files.load(text, ['--config.optim.learning_rate=0.5'])
  expected = _module(name).get_config(argument)
  expected.optim.learning_rate = 0.5
  assert config.to_dict() == expected.to_dict()


@pytest.mark.parametrize(
  'text, overrides, message',
  [
    (
      'nonsense',
      [],
      "no config 'nonsense'; give one of classifier, prior, vqvae",
    ),
    ('common', [], "no config 'common'"),
    ('vqvae:nonsense', [], 'nonsense'),
    ('vqvae', ['--config.nonsense=1'], 'nonsense'),
    ('vqvae', ['--config.batch_size=many'], 'many'),
  ],
)
def test_wrong_names_and_values_are_refused(text, overrides, message):
  with pytest.raises(errors.UserError, match=message) as e:
    config_files.load(text, overrides)
  assert '\n' not in str(e.value)


def test_the_name_of_the_default_component_is_an_argument():
  """Error messages refer to `--config=<phase>:<component>`."""
  for name, component in (('vqvae', 'ema'), ('prior', 'gated_pixelcnn')):
    config = config_files.load(f'{name}:{component}')
    assert config.to_dict() == config_files.load(name).to_dict()


def test_a_config_file_of_the_user(tmp_path, monkeypatch):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from dermvq_jax.configs import vqvae\n\n\n'
    "def get_config(arg=''):\n"
    '  config = vqvae.get_config(arg)\n'
    '  config.seed = 5\n'
    '  return config\n'
  )
  config = config_files.load(f'{path}:smoke')
  assert (config.seed, config.batch_size) == (5, 8)
  monkeypatch.setenv('HOME', str(tmp_path))
  assert config_files.load('~/mine.py').seed == 5
