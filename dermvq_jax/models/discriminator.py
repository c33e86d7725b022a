"""The second player of adversarial training: tells real images from made ones.

It sees patches (PatchGAN: Isola et al. 2017, section 3.2.2): each of its
logits judges a part of the image. It may also see images as a network does that
was trained on photographs (Sauer et al. 2021): such a discriminator knows more
kinds of texture than few images can teach.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dermvq_jax.models import layers, perceptual

Array = jax.Array

GROUPS = 8  # of the norms; widths are multiples of it
_SLOPE = 0.2  # of the leaky ReLU
# Fine texture is faint beside the colours of an image. It is amplified, so that
# the first layer sees both.
_DETAIL_GAIN = 12.0
MAX_SHIFT = 8  # pixels
_MAX_BRIGHTNESS = 0.1
_CONTRASTS = (0.8, 1.25)


def _blur(x: Array) -> Array:
  """Means of 3x3 pixels of `[B, H, W, C]`; the border repeats."""
  for axis in (1, 2):
    cut = functools.partial(jax.lax.slice_in_dim, axis=axis)
    size = x.shape[axis]
    # `jnp.pad` would make devices exchange images.
    parts = [cut(x, 0, 1), x, cut(x, size - 1, size)]
    wide = jnp.concatenate(parts, axis)
    x = sum(cut(wide, i, i + size) for i in range(3)) / 3
  return x


class Discriminator(nn.Module):
  """Images to logits of patches, and the features on the way.

  Attributes:
    features: width of the first stage; each further stage has twice the width.
      A multiple of 8.
    num_stages: number of stages; each halves height and width.
    view: how a network sees the images whose features it judges, too; None: it
      judges none. What is seen has at least `perceptual.MIN_SIZE` pixels.
    dtype: dtype of the computation; parameters are float32.
  """

  features: int
  num_stages: int
  view: perceptual.View | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, images: Array, rng: Array | None = None
  ) -> tuple[list[Array], list[Array]]:
    """Judges images.

    Args:
      images: `[B, H, W, 3]`, about in [0, 1].
      rng: random key that chooses what the network sees; None: all.

    Returns:
      Arrays of logits `[B, h, w]`, high for real images: those of the patches,
      then those of each feature of the network. And the outputs of the stages,
      `[B, h', w', C]`. All are float32.
    """
    detail = _DETAIL_GAIN * (images - _blur(images))
    x = jnp.concatenate([2 * images - 1, detail], -1).astype(self.dtype)
    found = []
    for stage in range(self.num_stages):
      x = layers.space_to_depth(x, 2)
      x = layers.Conv(self.features << stage, (3, 3), dtype=self.dtype)(x)
      if stage:
        x = nn.GroupNorm(GROUPS, dtype=self.dtype)(x)
      x = nn.leaky_relu(x, _SLOPE)
      found.append(x.astype(jnp.float32))
    logits = [layers.Conv(1, (3, 3), dtype=self.dtype)(x)]
    if self.view:
      (seen,) = self.view.cut(rng, images)
      for x in perceptual.features(self.view.load(), seen):
        logits.append(self._judge_feature(x))
    return [x[..., 0].astype(jnp.float32) for x in logits], found

  def _judge_feature(self, x: Array) -> Array:
    """A feature of the network `[B, h, w, C]` to logits `[B, h, w, 1]`."""
    width = 2 * self.features
    # Each channel then has about unit size.
    x = (perceptual.normalised(x) * x.shape[-1] ** 0.5).astype(self.dtype)
    x = layers.Conv(width, (1, 1), dtype=self.dtype)(x)
    x = nn.GroupNorm(GROUPS, dtype=self.dtype)(x)
    x = nn.leaky_relu(x, _SLOPE)
    x = layers.Conv(width, (3, 3), dtype=self.dtype)(x)
    x = nn.leaky_relu(x, _SLOPE)
    return layers.Conv(1, (1, 1), dtype=self.dtype)(x)


def augment(rng: Array, images: Array) -> Array:
  """Shifts images and changes their brightness and contrast, at random.

  Differentiable augmentation keeps a discriminator from learning few images by
  heart (Zhao et al. 2020). Real and made images get the same changes if `rng`
  is the same.

  Args:
    rng: random key.
    images: `[B, H, W, 3]`.

  Returns:
    Images of the same shape; what is shifted in repeats the border in mirrored
    order.
  """
  shift_rng, brightness_rng, contrast_rng = jax.random.split(rng, 3)
  number = len(images)
  offsets = jax.random.randint(shift_rng, (number, 2), 0, 2 * MAX_SHIFT + 1)
  images = jax.vmap(_crop)(_widen(images, MAX_SHIFT), offsets)
  shape = (number, 1, 1, 1)
  brightness = jax.random.uniform(
    brightness_rng, shape, minval=-_MAX_BRIGHTNESS, maxval=_MAX_BRIGHTNESS
  )
  low, high = _CONTRASTS
  contrast = jax.random.uniform(contrast_rng, shape, minval=low, maxval=high)
  mean = images.mean((1, 2, 3), keepdims=True)
  return (images - mean) * contrast + mean + brightness


def _widen(images: Array, amount: int) -> Array:
  """Mirrors `amount` pixels at each border of `[B, H, W, C]`."""
  pad = ((0, 0), (amount, amount), (amount, amount), (0, 0))
  return jnp.pad(images, pad, mode='reflect')


def _crop(image: Array, offset: Array) -> Array:
  """Cuts what `_widen` added, starting at `offset` `[2]`."""
  height, width, channels = image.shape
  size = (height - 2 * MAX_SHIFT, width - 2 * MAX_SHIFT, channels)
  return jax.lax.dynamic_slice(image, (*offset, 0), size)


def mean_logit(logits: list[Array]) -> Array:
  """The mean of logits of each image: `[B, h, w]` to `[B]`.

  Each array counts as much as the others, whatever its size.
  """
  return sum(x.mean((1, 2)) for x in logits) / len(logits)


def hinge_loss(real: list[Array], made: list[Array]) -> Array:
  """The discriminator's loss of each image: Lim and Ye 2017, equation 2.

  Args:
    real: logits of real images, arrays `[B, h, w]`.
    made: logits of made images, of the same shapes.

  Returns:
    `[B]`; 2 if the discriminator knows nothing, 0 if it knows all.
  """
  return mean_logit(
    [nn.relu(1 - a) + nn.relu(1 + b) for a, b in zip(real, made)]
  )


def accuracy(real: list[Array], made: list[Array]) -> Array:
  """The share of logits with the right sign, `[B]`; see `hinge_loss`."""
  right = [(a > 0) + 0.0 + (b < 0) for a, b in zip(real, made)]
  return mean_logit(right) / 2


def feature_matching_loss(real: list[Array], made: list[Array]) -> Array:
  """The mean absolute difference of the features of each image.

  Wang et al. 2018 (pix2pixHD), equation 4.

  Args:
    real: features of real images, arrays `[B, h, w, C]`.
    made: features of made images, of the same shapes.

  Returns:
    `[B]`, the mean over the stages.
  """
  differences = [jnp.abs(a - b).mean((1, 2, 3)) for a, b in zip(real, made)]
  return sum(differences) / len(differences)
