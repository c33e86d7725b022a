"""The VQ-VAE: encoder, quantizer, decoder (van den Oord et al. 2017).

Strided convolutions are replaced by space-to-depth and stride-1 convolutions,
transposed ones by stride-1 convolutions and depth-to-space: the same reach and
better gradients' speed on every backend.
"""

import math

import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dermvq_jax.models import layers, quantizers


@flax.struct.dataclass
class VQVAEOutput:
  """What a forward pass gives.

  Attributes:
    reconstruction: `[B, H, W, 3]`, around [0, 1], not clipped.
    quantized: the quantizer's output.
  """

  reconstruction: jax.Array
  quantized: quantizers.Quantized


class ResidualBlock(nn.Module):
  """x + conv1x1(relu(conv3x3(relu(x))))."""

  hidden_features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """`[B, h, w, C]` to the same shape."""
    y = layers.Conv(self.hidden_features, (3, 3), dtype=self.dtype)(nn.relu(x))
    y = layers.Conv(x.shape[-1], (1, 1), dtype=self.dtype)(nn.relu(y))
    return x + y


def _stage_features(features: int, num_stages: int) -> list[int]:
  """Widths of the resolutions from the highest down; the first is half."""
  return [
    features // 2 if stage == 0 and num_stages > 1 else features
    for stage in range(num_stages)
  ]


class Encoder(nn.Module):
  """Images to latents, `downsampling` times smaller."""

  features: int
  num_residual_blocks: int
  residual_features: int
  downsampling: int
  code_dim: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """`[B, H, W, 3]` in [0, 1] to latents `[B, h, w, D]`."""
    x = (images - 0.5).astype(self.dtype)
    for features in _stage_features(self.features, _log2(self.downsampling)):
      x = layers.space_to_depth(x, 2)
      x = nn.relu(layers.Conv(features, (3, 3), dtype=self.dtype)(x))
    x = layers.Conv(self.features, (3, 3), dtype=self.dtype)(x)
    for _ in range(self.num_residual_blocks):
      x = ResidualBlock(self.residual_features, dtype=self.dtype)(x)
    x = layers.Conv(self.code_dim, (1, 1), dtype=self.dtype)(nn.relu(x))
    return x.astype(jnp.float32)

  def reached_by(self, pixels: np.ndarray) -> np.ndarray:
    """Which latents have any of these pixels in their receptive field.

    Follows `__call__` layer by layer.

    Args:
      pixels: bool `[H, W]`.

    Returns:
      bool `[h, w]`.
    """
    for _ in range(_log2(self.downsampling)):
      blocks = einops.rearrange(pixels, '(h i) (w j) -> h w (i j)', i=2, j=2)
      pixels = _dilate(blocks.any(axis=-1))
    for _ in range(1 + self.num_residual_blocks):
      pixels = _dilate(pixels)
    return pixels


def _dilate(mask: np.ndarray) -> np.ndarray:
  """What a 3x3 convolution makes of any true value: bool `[h, w]`."""
  windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (3, 3))
  return windows.any(axis=(-2, -1))


class Decoder(nn.Module):
  """Quantized latents to images, `downsampling` times larger."""

  features: int
  num_residual_blocks: int
  residual_features: int
  downsampling: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, quantized: jax.Array) -> jax.Array:
    """`[B, h, w, D]` to images `[B, H, W, 3]`, around [0, 1]."""
    x = quantized.astype(self.dtype)
    x = layers.Conv(self.features, (3, 3), dtype=self.dtype)(x)
    for _ in range(self.num_residual_blocks):
      x = ResidualBlock(self.residual_features, dtype=self.dtype)(x)
    stages = _stage_features(self.features, _log2(self.downsampling))
    for features in reversed(stages[:-1]):
      x = layers.Conv(4 * features, (3, 3), dtype=self.dtype)(nn.relu(x))
      x = layers.depth_to_space(x, 2)
    x = layers.Conv(4 * 3, (3, 3), dtype=self.dtype)(nn.relu(x))
    x = layers.depth_to_space(x, 2)
    return x.astype(jnp.float32) + 0.5


class VQVAE(nn.Module):
  """Encoder, quantizer and decoder; each is also a method of its own."""

  encoder: nn.Module
  quantizer: nn.Module
  decoder: nn.Module

  def __call__(
    self, images: jax.Array, *, train: bool, axis_name: str | None = None
  ) -> VQVAEOutput:
    """Reconstructs images `[B, H, W, 3]` in [0, 1]."""
    latents = self.encoder(images)
    quantized = self.quantizer(latents, train=train, axis_name=axis_name)
    return VQVAEOutput(self.decoder(quantized.quantized), quantized)

  def latents(self, images: jax.Array) -> jax.Array:
    """Continuous latents `[B, h, w, D]` of images `[B, H, W, 3]`."""
    return self.encoder(images)

  def encode(self, images: jax.Array) -> jax.Array:
    """Codes int32 `[B, h, w]` of images `[B, H, W, 3]` in [0, 1]."""
    return self.quantizer.encode(self.encoder(images))

  def embed(self, codes: jax.Array) -> jax.Array:
    """Quantized latents `[B, h, w, D]` of codes int32 `[B, h, w]`."""
    return self.quantizer.lookup(codes)

  def decode(self, codes: jax.Array) -> jax.Array:
    """Images `[B, H, W, 3]` in [0, 1] of codes int32 `[B, h, w]`."""
    images = self.decoder(self.embed(codes))
    return jnp.clip(images, 0, 1)

  def start_codebook(self, latents: jax.Array):
    """Starts the codebook from latents `[N, D]`."""
    self.quantizer.start(latents)


def _log2(downsampling: int) -> int:
  return int(math.log2(downsampling))
