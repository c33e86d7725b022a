"""The VQ-VAE: encoder, quantizer, decoder (van den Oord et al. 2017).

A strided convolution is written as space-to-depth and then a convolution with
stride 1. A transposed convolution is written as a convolution with stride 1 and
then depth-to-space. Receptive fields stay as large, and gradients are faster on
every backend.
"""

import math
from typing import Any

import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax.models import codebooks, layers

ACTIVATIONS = {'relu': nn.relu, 'gelu': nn.gelu, 'silu': nn.silu}


@flax.struct.dataclass
class VQVAEOutput:
  """The output of a forward pass.

  Attributes:
    reconstruction: `[B, H, W, 3]`, about in [0, 1], not clipped.
    quantized: the output of the quantizer.
  """

  reconstruction: jax.Array
  quantized: codebooks.Quantized


class ResidualBlock(nn.Module):
  """x + conv1x1(f(conv3x3(f(x)))), where f is a norm and an activation.

  Attributes:
    hidden_features: width between the convolutions.
    activation: one of `ACTIVATIONS`.
    norm_groups: number of groups of the group norm (Wu and He 2018); 0: no
      norm.
    dtype: dtype of the computation; parameters are float32.
  """

  hidden_features: int
  activation: str = 'relu'
  norm_groups: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[B, h, w, C]` to the same shape."""
    y = x
    activate = ACTIVATIONS[self.activation]
    for features, size in ((self.hidden_features, 3), (x.shape[-1], 1)):
      if self.norm_groups:
        y = nn.GroupNorm(self.norm_groups, dtype=self.dtype)(y)
      y = layers.Conv(features, (size, size), dtype=self.dtype)(activate(y))
    return x + y


class Attention(nn.Module):
  """x + self-attention(layer norm(x)) over all positions of a grid."""

  num_heads: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[B, h, w, C]` to the same shape."""
    y = nn.LayerNorm(dtype=self.dtype)(x)
    y = einops.rearrange(y, 'b h w c -> b (h w) c')
    y = nn.MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype)(y)
    return x + y.reshape(x.shape)


def _residual_block(module: nn.Module, hidden_features: int) -> ResidualBlock:
  """Makes a residual block of encoder or decoder."""
  return ResidualBlock(
    hidden_features,
    module.activation,
    module.norm_groups,
    dtype=module.dtype,
  )


def _lowest_resolution(module: nn.Module, x: jax.Array) -> jax.Array:
  """Applies the residual blocks and the attention of encoder or decoder."""
  for _ in range(module.num_residual_blocks):
    x = _residual_block(module, module.residual_features)(x)
  if module.attention_heads:
    x = Attention(module.attention_heads, dtype=module.dtype)(x)
  return x


def _stage_features(features: int, num_stages: int) -> list[int]:
  """Returns the widths from the highest resolution down; the first is half."""
  return [
    features // 2 if stage == 0 and num_stages > 1 else features
    for stage in range(num_stages)
  ]


class Encoder(nn.Module):
  """Images to latents, `downsampling` times smaller.

  Attributes:
    features: width.
    num_residual_blocks: number of residual blocks, at the lowest resolution.
    residual_features: width inside the blocks.
    downsampling: how many times smaller; a power of 2, at least 2.
    code_dim: length of a latent, D.
    activation: one of `ACTIVATIONS`.
    norm_groups: number of groups of the blocks' norms; 0: no norm.
    attention_heads: number of heads of the attention after the blocks; 0: no
      attention.
    dtype: dtype of the computation; parameters are float32.
  """

  features: int
  num_residual_blocks: int
  residual_features: int
  downsampling: int
  code_dim: int
  activation: str = 'relu'
  norm_groups: int = 0
  attention_heads: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """`[B, H, W, 3]` in [0, 1] to latents `[B, h, w, D]`."""
    activate = ACTIVATIONS[self.activation]
    x = (images - 0.5).astype(self.dtype)
    for features in _stage_features(self.features, _log2(self.downsampling)):
      x = layers.space_to_depth(x, 2)
      x = activate(layers.Conv(features, (3, 3), dtype=self.dtype)(x))
    x = layers.Conv(self.features, (3, 3), dtype=self.dtype)(x)
    x = _lowest_resolution(self, x)
    x = layers.Conv(self.code_dim, (1, 1), dtype=self.dtype)(activate(x))
    return x.astype(jnp.float32)


class Decoder(nn.Module):
  """Quantized latents to images, `downsampling` times larger.

  The attributes are those of `Encoder`, without `code_dim`.

  Attributes:
    stage_blocks: number of residual blocks at each higher resolution but that
      of the image.
  """

  features: int
  num_residual_blocks: int
  residual_features: int
  downsampling: int
  stage_blocks: int = 0
  activation: str = 'relu'
  norm_groups: int = 0
  attention_heads: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, quantized: jax.Array) -> jax.Array:
    """`[B, h, w, D]` to images `[B, H, W, 3]`, about in [0, 1]."""
    activate = ACTIVATIONS[self.activation]
    x = quantized.astype(self.dtype)
    x = layers.Conv(self.features, (3, 3), dtype=self.dtype)(x)
    x = _lowest_resolution(self, x)
    stages = _stage_features(self.features, _log2(self.downsampling))
    for features in reversed(stages[:-1]):
      x = layers.Conv(4 * features, (3, 3), dtype=self.dtype)(activate(x))
      x = layers.depth_to_space(x, 2)
      for _ in range(self.stage_blocks):
        x = _residual_block(self, features // 2)(x)
    x = layers.Conv(4 * 3, (3, 3), dtype=self.dtype)(activate(x))
    x = layers.depth_to_space(x, 2)
    return x.astype(jnp.float32) + 0.5


class VQVAE(nn.Module):
  """Encoder, quantizer and decoder; the methods use them separately."""

  encoder: Encoder
  quantizer: codebooks.Quantizer
  decoder: Decoder

  def __call__(self, images: jax.Array) -> VQVAEOutput:
    """Reconstructs images `[B, H, W, 3]` in [0, 1]."""
    quantized = self.quantizer(self.encoder(images))
    return VQVAEOutput(self.decoder(quantized.quantized), quantized)

  def latents(self, images: jax.Array) -> jax.Array:
    """Continuous latents `[B, h, w, D]` of images `[B, H, W, 3]`."""
    return self.encoder(images)

  def encode(self, images: jax.Array) -> jax.Array:
    """Codes int32 `[B, h, w*L]` of images `[B, H, W, 3]` in [0, 1]."""
    return self.quantizer.encode(self.encoder(images))

  def distances(self, images: jax.Array) -> jax.Array:
    """Mean squared distances of latents to their codes, `[B, h, w]`."""
    latents = self.encoder(images)
    quantized = self.quantizer.lookup(self.quantizer.encode(latents))
    return jnp.square(latents - quantized).mean(-1)

  def embed(self, codes: jax.Array) -> jax.Array:
    """Quantized latents `[B, h, w, D]` of codes int32 `[B, h, w*L]`."""
    return self.quantizer.lookup(codes)

  def decode(self, codes: jax.Array) -> jax.Array:
    """Images `[B, H, W, 3]` in [0, 1] of codes int32 `[B, h, w*L]`."""
    images = self.decoder(self.embed(codes))
    return jnp.clip(images, 0, 1)

  def init_codebook(self, latents: jax.Array):
    """Initialises the codebook from latents `[N, D]`."""
    self.quantizer.init_codebook(latents)

  def update_codebook(self, observed: Any, *, axis_name: str | None = None):
    """Updates the codebook after a step from `Quantized.observed`."""
    self.quantizer.update(observed, axis_name=axis_name)


def _log2(downsampling: int) -> int:
  return int(math.log2(downsampling))
