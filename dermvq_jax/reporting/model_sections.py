"""Sections of the report that need the model: samples, codes, completions."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from dermvq_jax import errors, inference
from dermvq_jax.data import images
from dermvq_jax.inference import trained_prior
from dermvq_jax.models import build
from dermvq_jax.reporting import figures, page, pictures
from dermvq_jax.runs import run as run_lib

_NUM_SAMPLES, _NUM_REAL = 6, 4  # of each class, side by side
_NUM_RECONSTRUCTIONS = 8
_NUM_COMPLETIONS = 6
_NUM_VALIDATION_IMAGES = 512
_NUM_COMPLETION_CANDIDATES = 64
_ERROR_GAIN = 4  # differences are multiplied by this, to be visible
_DISTANCE_ROWS = 256  # rows of the matrix of distances at a time

# control -> its values from mild to strong, including the one that is off
CONTROLS = {
  'temperature': (0.0, 0.5, 0.8, 1.0, 1.2),
  'top_k': (2, 10, 50, 0),
  'top_p': (0.5, 0.8, 0.95, 1.0),
  'guidance_scale': (0.0, 1.0, 2.0, 4.0),
  'guidance_rise': (-1.0, 0.0, 2.0, 4.0),
  'autoguidance_scale': (1.0, 1.5, 2.0, 3.0),
}
_CONTROL_TEXTS = {
  'temperature': 'Temperature: below 1, images are more typical and less '
  'varied; at 0, every code is the most likely one.',
  'top_k': 'Top-k: each code is sampled from the k most likely ones; 0 is off.',
  'top_p': 'Top-p: each code is sampled from the smallest set of codes whose '
  'probabilities sum to p; 1 is off.',
  'guidance_scale': 'Guidance: above 1 exaggerates what distinguishes the '
  'requested class; 1 is off; 0 ignores the class.',
  'guidance_rise': 'Rise of guidance: what its scale of 1 gains from the top '
  'left to the bottom right; 0 is off.',
  'autoguidance_scale': 'Autoguidance: above 1 exaggerates what the prior has '
  'learned since the first part of its training; 1 is off.',
}


@dataclasses.dataclass(frozen=True)
class Validation:
  """The first images of the validation split.

  Attributes:
    images: uint8 `[N, H, W, 3]`.
    labels: int `[N]`.
    codes: the images' codes, int32 `[N, h, w]`.
  """

  images: np.ndarray
  labels: np.ndarray
  codes: np.ndarray


def read_validation(run: run_lib.Run, model: inference.Model) -> Validation:
  """Reads and encodes the first validation images of a run.

  Raises:
    UserError: the run's images are not prepared.
  """
  records = run.images.split('val')
  count = min(_NUM_VALIDATION_IMAGES, len(records))
  first = [records[i] for i in range(count)]
  originals = np.stack([record['image'] for record in first])
  labels = np.array([record['label'] for record in first])
  return Validation(originals, labels, model.encode(originals))


def samples_figure(
  new: np.ndarray,
  real: Sequence[np.ndarray],
  class_names: Sequence[str],
  name: str = 'samples',
) -> page.Figure:
  """Shows new images beside a few real ones, a row for each class.

  Args:
    new: uint8 `[C, N, H, W, 3]`.
    real: for each class uint8 `[M, H, W, 3]`; the first of them are shown.
    class_names: the names of the C classes.
    name: the name of the figure.
  """
  blank = np.full_like(new[0, :1], 255)
  rows = [
    np.concatenate([sampled, blank, taken[:_NUM_REAL]])
    for sampled, taken in zip(new, real)
  ]
  columns = ['new'] * new.shape[1] + [''] + ['validation'] * _NUM_REAL
  return page.Figure(
    name,
    'New images of each class, beside images of the validation split. Rows: '
    f'{", ".join(class_names)}.',
    png=pictures.labelled_sheet(images.sheet(rows), class_names, columns),
  )


def samples(
  model: inference.Model, validation: Validation, seed: int
) -> page.Section:
  """The section of new images."""
  names = model.class_names
  labels = np.repeat(np.arange(len(names)), _NUM_SAMPLES)
  new = model.sample(labels, seed=seed, show_progress=True)
  new = new.reshape(len(names), _NUM_SAMPLES, *new.shape[1:])
  real = [validation.images[validation.labels == i] for i in range(len(names))]
  return page.Section(
    'samples',
    'New images, beside real ones',
    [
      'The prior samples codes for each class, and the decoder turns them into '
      'images. On the right are real images of the validation split, which no '
      'training saw. No image was selected by hand. Not for diagnosis.'
    ],
    figures=[samples_figure(new, real, names)],
  )


def controls(model: inference.Model, seed: int) -> page.Section:
  """The section that shows what each control of sampling does."""
  names, shown = model.class_names, []
  has_weak = trained_prior.has_weak_prior(model.run.prior)
  for control, values in CONTROLS.items():
    drop_rates = model.config.prior.conditions.values()
    if control.startswith('guidance') and not all(drop_rates):
      continue
    if control.startswith('autoguidance') and not has_weak:
      continue
    rows = [
      model.sample(names, seed=seed, **{control: value}) for value in values
    ]
    shown.append(
      page.Figure(
        control,
        f'{_CONTROL_TEXTS[control]} Columns: {", ".join(names)}.',
        png=pictures.labelled_sheet(
          images.sheet(rows), [f'{value:g}' for value in values], names
        ),
      )
    )
    logging.info('Made the figure %s', control)
  return page.Section(
    'controls',
    'What the controls do',
    [
      'Within each figure the classes and the random seed stay the same; only '
      'the control changes.'
    ],
    figures=shown,
  )


def completions(
  model: inference.Model, validation: Validation, seed: int
) -> page.Section:
  """The section of completions: a part of each image is sampled again."""
  rows, row_names = [], []
  # The image with the most contrast: plain skin leaves nothing to complete.
  candidates = validation.images[:_NUM_COMPLETION_CANDIDATES]
  chosen = int(candidates.std(axis=(1, 2, 3)).argmax())
  original = validation.images[chosen]
  for mask in images.MASKS:
    try:
      masked = model.hide(original, images.named_mask(mask, model.image_size))
    except errors.UserError:
      continue  # The codes are too few for this mask.
    label = int(validation.labels[chosen])
    new = model.sample(
      [label] * _NUM_COMPLETIONS,
      seed=seed,
      **masked.repeat(_NUM_COMPLETIONS),
    )
    rows.append(np.concatenate([original[None], masked.image[None], new]))
    row_names.append(f'{mask}\n{masked.known.sum()} of {masked.known.size}')
  logging.info('Made the figure completions')
  if not rows:
    return page.Section(
      'completions',
      'Completions',
      [
        'There are no completions: at this image size, every code stands for '
        'hidden pixels.'
      ],
    )
  return page.Section(
    'completions',
    'Completions',
    [
      'A part of a validation image is hidden (grey). Every code that stands '
      'for a hidden pixel is sampled anew. The number beside each mask says '
      'how many codes are kept. Codes are sampled from top to bottom and from '
      'left to right, and each depends only on the codes before it: known '
      'codes below or to the right of a new code do not influence it.'
    ],
    figures=[
      page.Figure(
        'completions',
        'The image, its visible part, and completions.',
        png=pictures.labelled_sheet(
          images.sheet(rows),
          row_names,
          ['original', 'given'] + ['completed'] * _NUM_COMPLETIONS,
        ),
      )
    ],
  )


def nearest_distances(vectors: np.ndarray) -> np.ndarray:
  """The distance from each code to the nearest other code.

  Args:
    vectors: the codebook, `[K, D]`.

  Returns:
    float64 `[K]`.
  """
  vectors = np.float64(vectors)
  norms = np.square(vectors).sum(1)
  least = []
  for first in range(0, len(vectors), _DISTANCE_ROWS):
    rows = np.arange(first, min(first + _DISTANCE_ROWS, len(vectors)))
    squared = norms[rows, None] + norms - 2 * vectors[rows] @ vectors.T
    squared[np.arange(len(rows)), rows] = np.inf  # the distance to itself
    least.append(np.sqrt(np.maximum(squared.min(1), 0)))
  return np.concatenate(least)


def _code_distances(run: run_lib.Run, num_levels: int) -> np.ndarray:
  """The distance from each code to the nearest of its level, `[L*K]`."""
  apply, variables = build.vqvae_part(
    run.vqvae.config, run.vqvae.weights, 'codebook'
  )
  levels = np.split(np.asarray(apply(variables)), num_levels)
  return np.concatenate([nearest_distances(level) for level in levels])


def reconstructions_figure(
  originals: np.ndarray, decoded: np.ndarray, name: str = 'reconstructions'
) -> page.Figure:
  """Shows images above their reconstructions and the differences.

  Args:
    originals: uint8 `[N, H, W, 3]`.
    decoded: uint8 `[N, H, W, 3]`.
    name: the name of the figure.
  """
  difference = np.abs(originals.astype(np.int32) - decoded)
  mse = np.mean((difference / 255) ** 2, axis=(1, 2, 3))
  shown = np.minimum(_ERROR_GAIN * difference, 255).astype(np.uint8)
  return page.Figure(
    name,
    'Originals, reconstructions with their PSNR, and the difference between '
    f'the two, multiplied by {_ERROR_GAIN}.',
    png=pictures.labelled_sheet(
      images.sheet([originals, decoded, shown]),
      ('original', 'reconstruction', 'difference'),
      [f'{-10 * np.log10(max(e, 1e-10)):.1f} dB' for e in mse],
    ),
  )


def code_map_figure(
  model: inference.Model, image: np.ndarray, name: str = 'code_map'
) -> page.Figure:
  """Shows one image, its codes and their vectors.

  Args:
    model: encodes and decodes it.
    image: uint8 `[H, W, 3]`.
    name: the name of the figure.
  """
  codes = model.encode(image[None])
  return page.Figure(
    name,
    'One image, its codes, the vectors of these codes, and the image that is '
    'decoded from them.',
    png=pictures.code_map(
      image,
      codes[0],
      model.embed(codes)[0],
      model.decode(codes)[0],
      model.codebook_size,
    ),
  )


def reconstructions(
  run: run_lib.Run, model: inference.Model, validation: Validation
) -> page.Section:
  """The section of reconstructions and codes."""
  originals = validation.images[:_NUM_RECONSTRUCTIONS]
  decoded = model.decode(validation.codes[:_NUM_RECONSTRUCTIONS])
  codes = validation.codes
  counts = np.bincount(codes.ravel(), minlength=model.codebook_size)
  distances = _code_distances(run, model.num_levels)
  return page.Section(
    'reconstructions',
    'Reconstructions and codes',
    [
      'The first images of the validation split, after encoder, codebook and '
      'decoder. No prior can restore what is lost here.'
    ],
    figures=[
      reconstructions_figure(originals, decoded),
      code_map_figure(model, originals[0]),
      page.Figure(
        'usage',
        f'How often each of the {len(counts)} codes occurs in {len(codes)} '
        f'validation images; {np.sum(counts > 0)} occur at least once.',
        svg=figures.usage_histogram(counts),
      ),
      page.Figure(
        'code_distances',
        'The distance from each code to the nearest other code; the median is '
        f'{np.median(distances):.3g}.',
        svg=figures.distance_histogram(distances),
      ),
    ],
  )
