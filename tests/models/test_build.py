"""Models from configs, and functions from models and weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import config_files, errors
from dermvq_jax.models import build, losses, quantizers
from dermvq_jax.models.priors import gated_pixelcnn, levels, rnn

FACTS = {
  'codebook_size': 6,
  'class_names': ['a', 'b'],
  'conditions': {'label': ['a', 'b'], 'site': ['x', 'y', 'z']},
  'image_size': 16,
}


def test_quantizers_are_found_by_name():
  config = config_files.load('vqvae:smoke')
  model = build.vqvae(config)
  assert type(model.quantizer) is quantizers.EmaQuantizer
  assert model.encoder.features == model.decoder.features == 16
  for name in ('none', '../x', 'EmaQuantizer'):
    config.quantizer.name = name
    with pytest.raises(errors.UserError, match='there are ema, vq, l2_norm'):
      build.vqvae(config)


def test_priors_are_found_by_name():
  config = config_files.load('prior:smoke')
  model = build.prior(config, FACTS)
  assert type(model) is gated_pixelcnn.GatedPixelCNN
  assert model.conditions == (('label', 2),) and model.codebook_size == 6
  assert type(build.prior(config_files.load('prior:rnn'), FACTS)) is rnn.RNN
  # The other modules in the folder are not priors.
  for name in ('base', 'sampler', 'levels', 'nothing', '../x', 'build'):
    config.prior.name = name
    with pytest.raises(errors.UserError, match='no prior named'):
      build.prior(config, FACTS)


def test_levels_and_conditions_come_from_the_facts_of_the_codes():
  config = config_files.load('prior:smoke')
  config.conditions = {'label': 0.1, 'site': 0.2}
  model = build.prior(config, FACTS | {'num_levels': 2})
  assert type(model) is levels.LeveledPrior
  assert model.conditions == (('label', 2), ('site', 3))
  config.conditions = {'label': 0.1, 'age': 0.1}
  with pytest.raises(
    errors.UserError, match='has age; the codes have label, site'
  ):
    build.prior(config, FACTS)
  config.conditions = {'sitee': 0.1}
  with pytest.raises(errors.UserError, match='site; did you mean site'):
    build.prior(config, FACTS)


@pytest.mark.parametrize(
  ('config', 'field', 'value', 'message'),
  [
    ('vqvae', 'quantizer.new', 3, "'ema' has no new; .*--config=vqvae:ema"),
    ('prior', 'prior.cell', 'gru', "'gated_pixelcnn' has no cell"),
    ('vqvae', 'dtype', 'float16', "'float32' or 'bfloat16'"),
  ],
)
def test_fields_that_do_not_fit(config, field, value, message):
  made = config_files.load(f'{config}:smoke')
  place, _, name = field.rpartition('.')
  part = made[place] if place else made
  with part.unlocked():
    part[name] = value
  with pytest.raises(errors.UserError, match=message):
    build.vqvae(made) if config == 'vqvae' else build.prior(made, FACTS)


@pytest.fixture(scope='module')
def trained():
  """A VQ-VAE's config, and random weights."""
  config = config_files.load('vqvae:smoke')
  model = build.vqvae(config)
  params, state = build.init(
    model, jax.random.key(0), jnp.zeros((1, 16, 16, 3))
  )
  return config, {'params': params, 'model_state': state}


def test_codec(trained):
  config, weights = trained
  codec = build.codec(config, weights)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  codes = codec.encode(images)
  assert codes.shape == (2, 4, 4) and codes.dtype == jnp.int32
  decoded = codec.decode(codes)
  assert decoded.shape == images.shape and decoded.dtype == jnp.uint8
  # The separate parts give the same.
  encode, own = build.vqvae_part(config, weights, 'encoder')
  latents = encode(own, images)
  codebook, own = build.vqvae_part(config, weights, 'codebook')
  distances = np.square(latents[..., None, :] - codebook(own)).sum(-1)
  np.testing.assert_array_equal(distances.argmin(-1), codes)
  vectors = codec.embed(codes)
  np.testing.assert_allclose(
    codec.distances(images),
    np.square(latents - vectors).mean(-1),
    rtol=1e-4,
    atol=1e-7,
  )
  np.testing.assert_array_equal(vectors, codebook(own)[codes])
  decode, own = build.vqvae_part(config, weights, 'decoder')
  np.testing.assert_array_equal(decode(own, vectors), decoded)


def test_pixels():
  pixels = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(build.to_uint8(build.to_unit(pixels)), pixels)
  outside = jnp.array([-0.5, 0.5, 1.5])
  assert build.to_uint8(outside).tolist() == [0, 128, 255]


def test_likelihood():
  config = config_files.load('prior:smoke')
  model = build.prior(config, FACTS)
  codes = np.random.default_rng(0).integers(0, 6, (3, 2, 2)).astype(np.int32)
  conditions = {'label': np.array([0, 1, 2], np.int32)}
  params, _ = build.init(
    model, jax.random.key(0), codes, conditions, train=False
  )
  score = build.likelihood(model, 'cross_entropy')
  predicted, log_probs = score({'params': params}, codes, conditions)
  logits = jax.jit(
    lambda: model.apply({'params': params}, codes, conditions, train=False)
  )()
  np.testing.assert_array_equal(predicted, logits.argmax(-1))
  expected = -losses.nll(logits, codes)
  np.testing.assert_allclose(log_probs, expected, rtol=1e-5)
