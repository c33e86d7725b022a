"""The PyTorch twin of the Gated PixelCNN computes the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax.models.priors import gated_pixelcnn

torch = pytest.importorskip('torch')


def test_torch_twin_has_the_same_parameters_and_logits():
  from experiments.benchmarks import torch_gated_pixelcnn

  fields = dict(codebook_size=11, num_layers=3, features=8, head_features=16)
  prior = gated_pixelcnn.GatedPixelCNN(conditions=(('label', 3),), **fields)
  rng = np.random.default_rng(0)
  codes, labels = rng.integers(0, 11, (2, 5, 4)), np.array([1, 3])
  conditions = {'label': jnp.asarray(labels)}
  shapes = jax.eval_shape(
    lambda: prior.init(
      jax.random.key(0), jnp.asarray(codes), conditions, train=False
    )
  )
  variables = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 4, shapes
  )
  twin = torch_gated_pixelcnn.GatedPixelCNN(num_classes=3, **fields)
  count = sum(p.numel() for p in twin.parameters())
  assert count == sum(x.size for x in jax.tree.leaves(variables))
  torch_gated_pixelcnn.load_flax(twin, variables['params'])
  with torch.no_grad():
    logits = twin(torch.from_numpy(codes), torch.from_numpy(labels))
  expected = prior.apply(variables, jnp.asarray(codes), conditions, train=False)
  np.testing.assert_allclose(
    logits.permute(0, 2, 3, 1).numpy(), expected, atol=2e-5
  )
