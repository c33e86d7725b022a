"""A small residual classifier; `evaluate` compares images in its features.

It follows He et al. 2016 (ResNet), but with group instead of batch
normalisation (Wu and He 2018), so the features of an image do not depend on its
batch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax.models import layers

_GROUPS = 8


class Block(nn.Module):
  """x + conv3x3(relu(norm(conv3x3(relu(norm(x))))))."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[B, h, w, C]` to the same shape."""
    y = x
    for _ in range(2):
      y = nn.relu(nn.GroupNorm(_GROUPS, dtype=self.dtype)(y))
      y = layers.Conv(x.shape[-1], (3, 3), dtype=self.dtype)(y)
    return x + y


class Classifier(nn.Module):
  """Images to logits of the classes.

  Attributes:
    num_classes: number of classes, C.
    features: width of the last stage, F. Each earlier stage has half the width
      of the next. All widths must be multiples of 8.
    num_stages: number of stages; each halves height and width.
    dtype: dtype of the convolutions.
  """

  num_classes: int
  features: int
  num_stages: int
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    """Builds the stages."""
    widths = [self.features >> i for i in reversed(range(self.num_stages))]
    self.convs = [
      layers.Conv(width, (3, 3), dtype=self.dtype) for width in widths
    ]
    self.blocks = [Block(self.dtype) for _ in widths]
    self.norm = nn.GroupNorm(_GROUPS, dtype=self.dtype)
    self.head = nn.Dense(self.num_classes)

  def embed(self, images: jax.Array) -> jax.Array:
    """Images `[B, H, W, 3]` in [0, 1] to features `[B, F]`."""
    x = (images - 0.5).astype(self.dtype)
    for conv, block in zip(self.convs, self.blocks):
      x = block(conv(layers.space_to_depth(x, 2)))
    return nn.relu(self.norm(x)).mean((1, 2)).astype(jnp.float32)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Images `[B, H, W, 3]` in [0, 1] to logits `[B, C]`."""
    return self.head(self.embed(images))
