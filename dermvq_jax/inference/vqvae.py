"""The VQ-VAE of a run: images to codes, and codes to images."""

import functools
from typing import Any

import ml_collections
import numpy as np

from dermvq_jax import errors
from dermvq_jax.inference import classifier as classifier_lib
from dermvq_jax.inference import conversion
from dermvq_jax.models import arguments, build, chunks, masking
from dermvq_jax.runs import run as run_lib

Images = conversion.Images


class Vqvae:
  """A trained VQ-VAE with its best weights.

  Attributes:
    run: the run that everything is read from.
    class_names: names of the labels 0, 1, ...; the label `len(class_names)`
      is the null label, which stands for any class.
    config: the configs of the phases: `config.vqvae`, `config.prior`.
    image_size: pixels a side that the VQ-VAE was trained on.
    grid: height and width of the codes of such an image, (h, w*L).
    codebook_size: number of codes, of all levels together.
    num_levels: codes per latent, L; they are adjacent, from level 0 to L - 1.
  """

  def __init__(self, run: run_lib.Run):
    """Loads the weights; raises UserError if there are none."""
    self.run = run
    # The weights first: they are there only if config and facts are right.
    weights = run.vqvae.weights
    config, facts = run.vqvae.config, run.vqvae.facts
    self.config = ml_collections.ConfigDict({'vqvae': config})
    self.class_names = tuple(facts['class_names'])
    self.image_size = facts['image_size']
    self._codec = build.codec(config, weights)
    quantizer = self._codec.model.quantizer
    self.num_levels = quantizer.num_levels
    side = self.image_size // config.model.downsampling
    self.grid = (side, side * self.num_levels)
    self.codebook_size = quantizer.num_codes

  @functools.cached_property
  def classifier(self) -> classifier_lib.Classifier:
    """The classifier of the run.

    Raises:
      UserError: it was not trained, or was trained on other images.
    """
    if not self.run.classifier.has_weights:
      workdir = self.run.workdir
      raise errors.UserError(
        f'{workdir} has no trained classifier to choose images by; run dermvq '
        f'train --config=classifier --workdir={workdir}, or give '
        '--choose_by=likelihood'
      )
    return classifier_lib.Classifier(self.run)

  def preprocess(self, images: Images) -> np.ndarray:
    """Turns what people have into uint8 images `[B, H, W, 3]`.

    All methods that take images do this first.

    Args:
      images: a file, a PIL image, an array `[H, W, 3]` or `[B, H, W, 3]` of
        uint8 or of floats in [0, 1], or a list of these. Files and PIL images
        are cropped to their central square and resized to `image_size`; arrays
        are taken as they are.

    Raises:
      MissingError: there is no such file.
      UserError: wrong shape, dtype or values, a file is not readable, or H or W
        is not divisible by downsampling.
    """
    return arguments.check_images(
      conversion.read(images, self.image_size),
      self.config.vqvae.model.downsampling,
    )

  def encode(self, images: Images) -> np.ndarray:
    """Encodes images, see `preprocess`, as codes int32 `[B, h, w]`."""
    return chunks.apply(self._codec.encode, self.preprocess(images))

  def decode(
    self, codes: np.ndarray, *, output: conversion.Output = 'array'
  ) -> np.ndarray:
    """Decodes codes int32 `[B, h, w]`.

    Args:
      codes: the codes.
      output: 'array' or 'pil'.

    Returns:
      uint8 images `[B, H, W, 3]`, or a list of B PIL images.

    Raises:
      UserError: codes outside [0, K).
    """
    codes = self._check_codes(codes)
    conversion.check_output(output)
    return conversion.as_output(chunks.apply(self._codec.decode, codes), output)

  def embed(self, codes: np.ndarray) -> np.ndarray:
    """Looks up the decoder's input `[B, h, w, D]` of codes int32 `[B, h, w]`.

    Raises:
      UserError: codes outside [0, K).
    """
    return chunks.apply(self._codec.embed, self._check_codes(codes))

  def latent_distances(self, images: Images) -> np.ndarray:
    """Returns mean squared distances to the codebook, float32 `[B, h, w]`."""
    return chunks.apply(self._codec.distances, self.preprocess(images))

  def hide(self, image: Images, mask: Any) -> masking.Masked:
    """Hides a part of an image and encodes the rest.

    Each hidden pixel is replaced by the nearest visible one, so no code depends
    on what was hidden. (A grey area would change the codes beside it far more.)

    Args:
      image: one image, see `preprocess`.
      mask: the hidden part: 'left', 'right', 'top', 'bottom', 'center' or
        'border'; a file or PIL image that is white there; or bool `[H, W]`.

    Raises:
      MissingError: there is no such file or mask.
      UserError: wrong shapes or dtypes, nothing is hidden, or every code stands
        for a hidden pixel.
    """
    images = self.preprocess(image)
    if len(images) != 1:
      raise errors.UserError(f'give one image, not {len(images)}')
    [image], shape = images, images.shape[1:3]
    hidden = conversion.read_mask(mask, shape, self.image_size)
    factor = self.config.vqvae.model.downsampling
    masking.check(image, hidden, factor)
    known = masking.known(hidden, factor, self.num_levels)
    codes = self.encode(masking.filled(image, hidden))[0]
    return masking.Masked(masking.blanked(image, hidden), codes, known)

  def reconstruct(
    self, images: Images, *, output: conversion.Output = 'array'
  ) -> np.ndarray:
    """Encodes and decodes images; see `preprocess` and `decode`."""
    return self.decode(self.encode(images), output=output)

  def _check_codes(self, codes: np.ndarray) -> np.ndarray:
    return arguments.check_codes(codes, self.codebook_size, self.num_levels)
