"""The PyTorch twin computes the same as the package's VQ-VAE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax.models import build
from experiments import common

torch = pytest.importorskip('torch')

from experiments.benchmarks import (  # noqa: E402
  torch_vqvae,
  torch_vqvae_twin,
)


def test_the_same_parameters_outputs_and_codebook():
  config = common.load_config(
    'vqvae',
    'model.activation=relu',
    'quantizer.codebook_init=random',
    size='smoke',
  )
  model = build.vqvae(config)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 12, 8, 3), np.uint8)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros(images.shape))
  )
  variables = dict(
    jax.tree.map(
      lambda x: (rng.normal(size=x.shape) / 4).astype(x.dtype), shapes
    )
  )
  state = variables['codebook']['quantizer']
  for name in state:
    if name != 'codebook':
      state[name] = np.zeros_like(state[name])
  params = variables.pop('params')
  twin = torch_vqvae_twin.VQVAE(
    config.quantizer.codebook_size,
    config.quantizer.code_dim,
    config.model.features,
    config.model.residual_features,
  )
  count = sum(p.numel() for p in twin.parameters())
  assert count == sum(x.size for x in jax.tree.leaves(params))
  torch_vqvae_twin.load_flax(twin, params, variables)
  x = torch_vqvae.to_tensor(images)
  for layout in (torch.contiguous_format, torch.channels_last):
    twin.eval().to(memory_format=layout)
    with torch.no_grad():
      reconstruction, codes, commitment = twin(x.to(memory_format=layout))
    expected = model.apply(
      {'params': params, **variables}, build.to_unit(jnp.asarray(images))
    )
    np.testing.assert_array_equal(codes, expected.quantized.codes)
    assert len(np.unique(codes)) > 3
    np.testing.assert_allclose(
      reconstruction.permute(0, 2, 3, 1) + 0.5,
      expected.reconstruction,
      atol=1e-5,
    )
    np.testing.assert_allclose(
      config.quantizer.commitment_weight * commitment,
      expected.quantized.loss,
      rtol=1e-4,
    )
  # One update of the codebook.
  twin.train()
  with torch.no_grad():
    twin(x)
  _, state = model.apply(
    {'params': params, **variables},
    expected.quantized.observed,
    method='update_codebook',
    mutable=['codebook'],
    rngs={'codebook': jax.random.key(0)},
  )
  np.testing.assert_allclose(
    twin.codebook.codes, state['codebook']['quantizer']['codebook'], rtol=1e-4
  )
