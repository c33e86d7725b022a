"""Measures how a trained run sees images: as numbers, and as maps.

In the shapes, B is the number of images, H and W are their size in pixels, h
and w the grid of latents, L the levels of a code.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import einops
import numpy as np
import scipy.ndimage

from dermvq_jax import errors
from dermvq_jax.models import arguments, bayes
from dermvq_jax.outliers import statistics

Model = Any  # an `inference.Model`, whose module imports this one
_TINY = 1e-7  # added before a logarithm; a squared step of 8 bits is 1.5e-5.
_TINY_ERROR = 1e-5  # the same for single pixels
_TINY_COLOUR = 1e-2
# Errors and colours of pixels are averaged over this part of the side.
_BLUR = 1.5 / 64
# Values of codes are averaged over these numbers of codes.
_BITS_BLUR, _DISTANCE_BLUR = 0.75, 0.5
_LOCAL = 3  # Local values are means over 3x3 codes.
_WORST = 0.03  # share of the places that count as the worst ones
_CHUNK = 128  # images at a time, to bound memory


@dataclasses.dataclass(frozen=True)
class Measured:
  """What was measured of B images.

  Attributes:
    codes: int32 `[B, h, w*L]`.
    reconstructions: uint8 `[B, H, W, 3]`.
    values: name of a statistic to float64 `[B]`; those of
      `statistics.of_images`, and: `bits` per code, `local_bits` of the most
      surprising places, log of the squared `error` of the reconstruction, of
      its `worst_error`, of the `latent_distance` to the codebook, and of the
      `local_distance` of the farthest places.
    code_bits: float32 `[B, h, w]`, -log2 p(code | codes before it), the sum of
      the levels.
    parts: the parts of the map, `[B, H, W]` each, float32, by name.
  """

  codes: np.ndarray
  reconstructions: np.ndarray
  values: dict[str, np.ndarray]
  code_bits: np.ndarray
  parts: dict[str, np.ndarray]


def measure(
  model: Model, images: np.ndarray, class_prior: np.ndarray
) -> Measured:
  """Measures images.

  Args:
    model: a run with a trained prior.
    images: uint8 `[B, H, W, 3]`.
    class_prior: the probability of each class, `[C]`.

  Raises:
    UserError: wrong images, or none.
  """
  images = arguments.check_images(images, 1)
  if not len(images):
    raise errors.UserError('there is no image to score')
  chunks = [
    _measure(model, images[i : i + _CHUNK], class_prior)
    for i in range(0, len(images), _CHUNK)
  ]
  return join(chunks)


def join(chunks: Sequence[Measured]) -> Measured:
  """Joins what was measured of some images and of others."""

  def joined(values):
    if isinstance(values[0], dict):
      return {k: np.concatenate([v[k] for v in values]) for k in values[0]}
    return np.concatenate(values)

  names = [field.name for field in dataclasses.fields(Measured)]
  return Measured(
    **{name: joined([getattr(c, name) for c in chunks]) for name in names}
  )


def _measure(
  model: Model, images: np.ndarray, class_prior: np.ndarray
) -> Measured:
  codes = model.encode(images)
  made = model.decode(codes)
  bits = -_unlabelled(model, codes, class_prior) / np.log(2)
  by_latent = einops.reduce(
    bits, 'b h (w l) -> b h w', 'sum', l=model.num_levels
  )
  distances = model.latent_distances(images)
  errors = np.square(images / 255.0 - made / 255.0).mean(-1)  # [B, H, W]
  smooth = _blur(errors, _BLUR * images.shape[1])
  values = {
    **statistics.of_images(images),
    'bits': bits.mean((1, 2)),
    'local_bits': _worst(by_latent) / model.num_levels,
    'error': np.log(errors.mean((1, 2)) + _TINY),
    'worst_error': np.log(smooth.max((1, 2)) + _TINY),
    'latent_distance': np.log(distances.mean((1, 2)) + _TINY),
    'local_distance': np.log(_worst(distances) + _TINY),
  }
  parts = {
    'error': np.log(smooth + _TINY_ERROR),
    'bits': _to_pixels(by_latent, images, _BITS_BLUR),
    'distance': np.log(
      _to_pixels(distances, images, _DISTANCE_BLUR) + _TINY_ERROR
    ),
    'colour': np.log(_strange_colours(images) + _TINY_COLOUR),
  }
  return Measured(
    codes,
    made,
    {name: np.float64(v) for name, v in values.items()},
    np.float32(by_latent),
    {name: np.float32(part) for name, part in parts.items()},
  )


def _unlabelled(
  model: Model, codes: np.ndarray, class_prior: np.ndarray
) -> np.ndarray:
  """Log-probabilities of the codes of images of any class, nats `[B, h, w*L]`.

  A prior that was trained without its label now and then knows it; this takes
  one pass. Of others, it is the mixture over the classes by Bayes' rule.
  """
  if model.knows_null_label:
    return model.code_log_probs(codes, [len(model.class_names)])
  by_class = [
    model.code_log_probs(codes, [label]).reshape(len(codes), -1)
    for label in range(len(model.class_names))
  ]
  mixed = bayes.mixture_log_probs(np.stack(by_class, 1), class_prior)
  return mixed.reshape(codes.shape)


def _blur(maps: np.ndarray, deviation: float) -> np.ndarray:
  return scipy.ndimage.gaussian_filter(maps, (0, deviation, deviation))


def _worst(maps: np.ndarray) -> np.ndarray:
  """The mean of the highest local means of maps `[B, h, w]`: `[B]`."""
  local = scipy.ndimage.uniform_filter(np.float64(maps), (0, _LOCAL, _LOCAL))
  ordered = np.sort(local.reshape(len(local), -1), axis=1)
  number = max(1, int(_WORST * ordered.shape[1]))
  return ordered[:, -number:].mean(1)


def _to_pixels(
  maps: np.ndarray, images: np.ndarray, deviation: float
) -> np.ndarray:
  """Enlarges and smooths values of latents: `[B, h, w]` to `[B, H, W]`."""
  rows, columns = (n // m for n, m in zip(images.shape[1:3], maps.shape[1:]))
  large = np.float64(maps).repeat(rows, axis=1).repeat(columns, axis=2)
  return _blur(large, deviation * rows)


def _strange_colours(images: np.ndarray) -> np.ndarray:
  """How far colours are from the image's median colour, `[B, H, W]`."""
  colours = statistics.opponent_colours(images)
  away = colours - np.median(colours, axis=(1, 2), keepdims=True)
  return _blur(np.hypot(*np.moveaxis(away, -1, 0)), _BLUR * images.shape[1])


def label_log_probs(
  model: Model,
  codes: np.ndarray,
  labels: Sequence[int],
  class_prior: np.ndarray,
) -> np.ndarray:
  """Returns log p(label | codes) by Bayes' rule, nats float64 `[B]`.

  Args:
    model: a run with a trained prior.
    codes: int32 `[B, h, w*L]`.
    labels: the label of each image, `[B]`.
    class_prior: the probability of each class, `[C]`.
  """
  posterior = bayes.posterior(model.class_log_likelihoods(codes), class_prior)
  return np.float64(posterior[np.arange(len(codes)), labels])
