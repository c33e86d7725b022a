"""A run as one page: `workdir/report/index.html` and its figures as files.

The page is self-contained: it opens without a network and can be mailed.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, inference
from dermvq_jax.data import images, prepared
from dermvq_jax.evaluation import evaluate
from dermvq_jax.reporting import evaluation_page, figures, page
from dermvq_jax.runs import checkpoints, logs, workdirs

_NUM_SAMPLES, _NUM_REAL = 6, 4  # of each class, side by side
_NUM_RECONSTRUCTIONS = 8
_NUM_COMPLETIONS = 6
_NUM_USAGE_IMAGES = 512
_ERROR_GAIN = 4  # what differences are multiplied by, to be seen

# control -> its values from mild to strong; the one that changes nothing too
_CONTROLS = {
  'temperature': (0.0, 0.5, 0.8, 1.0, 1.2),
  'top_k': (2, 10, 50, 0),
  'top_p': (0.5, 0.8, 0.95, 1.0),
  'guidance_scale': (0.0, 1.0, 2.0, 4.0),
}
_CONTROL_TEXTS = {
  'temperature': 'Temperature: below 1 more typical and less varied, 0 the '
  'most likely code everywhere.',
  'top_k': 'Top-k: each code is drawn from the k most likely ones; 0 is off.',
  'top_p': 'Top-p: each code is drawn from the fewest that have the '
  'probability p together; 1 is off.',
  'guidance_scale': 'Guidance: 0 ignores the class, 1 is off, above 1 '
  'exaggerates what is particular to it.',
}

# metric -> (name, format)
_METRICS = {
  'vqvae': {
    'psnr': ('PSNR (dB)', '.2f'),
    'ssim': ('SSIM', '.4f'),
    'nmse': ('NMSE', '.4f'),
    'mse': ('MSE', '.6f'),
    'perplexity': ('Perplexity', '.1f'),
    'codebook_usage': ('Codebook usage', '.3f'),
    'dead_codes': ('Codes never used', '.0f'),
    'quantization_error': ('Squared distance to the codes', '.4g'),
    'latent_norm': ('Norm of the latents', '.3g'),
  },
  'prior': {
    'bits_per_code': ('Bits per code', '.3f'),
    'nll': ('Nats per code', '.3f'),
    'accuracy': ('Most likely code is right', '.3f'),
  },
}


class _Run:
  """What the sections are made from."""

  def __init__(self, workdir: epath.Path, seed: int, data_dir: str = ''):
    self.workdir = workdir
    self.seed = seed
    self.model = inference.load(workdir)
    self.folders = {
      phase: workdirs.phase_dir(workdir, phase)
      for phase in ('vqvae', 'prior', 'classifier')
      if workdirs.exists(workdirs.phase_dir(workdir, phase))
    }
    self.logs = {phase: logs.read(f) for phase, f in self.folders.items()}
    config, self.facts = workdirs.load_config(self.folders['vqvae'])
    self.data_dir = workdirs.data_dir(workdir, data_dir or config.data_dir)
    self.has_samples = 'prior' in self.folders and checkpoints.has_best(
      self.folders['prior']
    )
    source = prepared.open_split(self.facts['dataset'], self.data_dir, 'val')
    count = min(_NUM_USAGE_IMAGES, len(source))
    records = [source[i] for i in range(count)]
    self.images = np.stack([r['image'] for r in records])
    self.labels = np.array([r['label'] for r in records])
    self.codes = self.model.encode(self.images)


def _samples(run: _Run) -> page.Section:
  names = run.model.class_names
  new = run.model.sample(
    np.repeat(np.arange(len(names)), _NUM_SAMPLES),
    seed=run.seed,
    show_progress=True,
  ).reshape(len(names), _NUM_SAMPLES, *run.images.shape[1:])
  real = [run.images[run.labels == i] for i in range(len(names))]
  return page.Section(
    'samples',
    'New images, beside those of the data',
    [
      'Drawn by the prior for each class and decoded; on the right, images of '
      'the validation split, which no training saw. No image is chosen by '
      'hand. Not for diagnosis.'
    ],
    figures=[samples_figure(new, real, names)],
  )


def samples_figure(
  new: np.ndarray,
  real: Sequence[np.ndarray],
  names: Sequence[str],
  name: str = 'samples',
) -> page.Figure:
  """New images beside a few real ones, a row a class.

  Args:
    new: uint8 `[C, N, H, W, 3]`.
    real: C times uint8 `[M, H, W, 3]`, of which some are shown.
    names: of the classes.
    name: of the figure.
  """
  blank = np.full_like(new[0, :1], 255)
  rows = [
    np.concatenate([drawn, blank, taken[:_NUM_REAL]])
    for drawn, taken in zip(new, real)
  ]
  columns = ['new'] * new.shape[1] + [''] + ['validation'] * _NUM_REAL
  return page.Figure(
    name,
    'New images of each class, and images of the validation split.',
    png=figures.labelled_sheet(images.sheet(rows), names, columns),
  )


def _controls(run: _Run) -> page.Section:
  names = run.model.class_names
  drawn = []
  for control, values in _CONTROLS.items():
    if control == 'guidance_scale' and not (
      run.model.config.prior.label_dropout_rate
    ):
      continue
    rows = [
      run.model.sample(names, seed=run.seed, **{control: value})
      for value in values
    ]
    drawn.append(
      page.Figure(
        control,
        _CONTROL_TEXTS[control],
        png=figures.labelled_sheet(
          images.sheet(rows), [f'{value:g}' for value in values], names
        ),
      )
    )
    logging.info('Drew %s', control)
  return page.Section(
    'controls',
    'What the controls do',
    [
      'Within a sheet only the control changes: the same classes, the same '
      'random numbers.'
    ],
    figures=drawn,
  )


def _completions(run: _Run) -> page.Section:
  rows, masks = [], []
  size = run.model.image_size
  # The most contrast of a few: on plain skin there is nothing to complete.
  contrast = run.images[:64].std(axis=(1, 2, 3))
  chosen = int(contrast.argmax())
  original = run.images[chosen]
  for mask in images.MASKS:
    try:
      masked = run.model.hide(original, images.named_mask(mask, size))
    except errors.UserError:
      continue  # the encoder sees hidden pixels from everywhere
    label = int(run.labels[chosen])
    new = run.model.sample(
      [label] * _NUM_COMPLETIONS,
      seed=run.seed,
      **masked.repeat(_NUM_COMPLETIONS),
    )
    rows.append(np.concatenate([original[None], masked.image[None], new]))
    kept = masked.known.sum()
    masks.append(f'{mask}\n{kept} of {masked.known.size}')
  logging.info('Drew completions')
  if not rows:
    return page.Section(
      'completions',
      'Completions',
      ['At this image size the encoder sees hidden pixels from everywhere.'],
    )
  return page.Section(
    'completions',
    'Completions',
    [
      'A part of a validation image is hidden (grey) and drawn anew. Every '
      'code whose encoder sees a hidden pixel is drawn, so more changes than '
      'was hidden; the number beside the mask says how many codes stay. Codes '
      'are drawn in raster order, each given those before it: what is known '
      'below or to the right of a new code has no influence on it.'
    ],
    figures=[
      page.Figure(
        'completions',
        'The image, what is left of it, and completions.',
        png=figures.labelled_sheet(
          images.sheet(rows),
          masks,
          ['original', 'given'] + ['completed'] * _NUM_COMPLETIONS,
        ),
      )
    ],
  )


_CHUNK = 256  # rows of distances at a time


def nearest_distances(vectors: np.ndarray) -> np.ndarray:
  """The distance of each code to the nearest other one, `[K, D]` to `[K]`."""
  vectors = np.float64(vectors)
  norms = np.square(vectors).sum(1)
  least = []
  for first in range(0, len(vectors), _CHUNK):
    rows = np.arange(first, min(first + _CHUNK, len(vectors)))
    squared = norms[rows, None] + norms - 2 * vectors[rows] @ vectors.T
    squared[np.arange(len(rows)), rows] = np.inf  # not to itself
    least.append(np.sqrt(np.maximum(squared.min(1), 0)))
  return np.concatenate(least)


def _distances(run: _Run) -> np.ndarray:
  """Of each code to the nearest other one of its level, `[L*K]`."""
  vectors = inference.load_part(run.workdir, 'codebook')
  levels = np.split(vectors, run.model.num_levels)
  return np.concatenate([nearest_distances(level) for level in levels])


def reconstructions_figure(
  originals: np.ndarray, decoded: np.ndarray, name: str = 'reconstructions'
) -> page.Figure:
  """Images above their reconstructions and the difference.

  Args:
    originals: uint8 `[N, H, W, 3]`.
    decoded: uint8 `[N, H, W, 3]`.
    name: of the figure.
  """
  difference = np.abs(originals.astype(np.int32) - decoded)
  mse = np.mean((difference / 255) ** 2, axis=(1, 2, 3))
  shown = np.minimum(_ERROR_GAIN * difference, 255).astype(np.uint8)
  return page.Figure(
    name,
    'Originals, reconstructions with their PSNR, and the difference, '
    f'{_ERROR_GAIN} times enlarged.',
    png=figures.labelled_sheet(
      images.sheet([originals, decoded, shown]),
      ('original', 'reconstruction', 'difference'),
      [f'{-10 * np.log10(max(e, 1e-10)):.1f} dB' for e in mse],
    ),
  )


def code_map_figure(
  model: inference.Model, image: np.ndarray, name: str = 'code_map'
) -> page.Figure:
  """One image uint8 `[H, W, 3]`, its codes and what they stand for."""
  codes = model.encode(image[None])
  return page.Figure(
    name,
    'One image, its codes, the vectors they stand for, and the image decoded '
    'from them.',
    png=figures.code_map(
      image,
      codes[0],
      model.embed(codes)[0],
      model.decode(codes)[0],
      model.codebook_size,
    ),
  )


def _reconstructions(run: _Run) -> page.Section:
  originals = run.images[:_NUM_RECONSTRUCTIONS]
  codes = run.codes[:_NUM_RECONSTRUCTIONS]
  decoded = run.model.decode(codes)
  counts = np.bincount(run.codes.ravel(), minlength=run.model.codebook_size)
  distances = _distances(run)
  return page.Section(
    'reconstructions',
    'Reconstructions and codes',
    [
      'The first images of the validation split through encoder, codebook and '
      'decoder. What is lost here no prior can bring back.'
    ],
    figures=[
      reconstructions_figure(originals, decoded),
      code_map_figure(run.model, originals[0]),
      page.Figure(
        'usage',
        f'How often each of the {len(counts)} codes occurs in '
        f'{len(run.codes)} validation images; {np.sum(counts > 0)} do.',
        svg=figures.usage_histogram(counts),
      ),
      page.Figure(
        'code_distances',
        'The distance of each code to the nearest other one; the median is '
        f'{np.median(distances):.3g}.',
        svg=figures.distance_histogram(distances),
      ),
    ],
  )


def _training(run: _Run) -> page.Section:
  charts = [
    page.Figure(
      'vqvae_curves',
      'Phase 1, the VQ-VAE. NMSE is the squared error over the variance of the '
      'training pixels; perplexity counts the codes as if all in use were used '
      'equally often.',
      svg=figures.curves(run.logs['vqvae'], 'vqvae'),
    ),
    page.Figure(
      'smoothed',
      'Error and perplexity of the training steps, smoothed.',
      svg=figures.smoothed(run.logs['vqvae']),
    ),
  ]
  if 'prior' in run.logs:
    charts.append(
      page.Figure(
        'prior_curves',
        'Phase 2, the prior. Where the validation curve turns up, it overfits; '
        'the weights of the lowest point are kept.',
        svg=figures.curves(run.logs['prior'], 'prior'),
      )
    )
  return page.Section('training', 'Training', figures=charts)


def _best_row(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
  """The row with the lowest value; empty if there is none."""
  rows = [row for row in rows if metric in row]
  return min(rows, key=lambda row: row[metric], default={})


def _summary(run: _Run) -> page.Section:
  rows = []
  for phase, best in (('vqvae', 'val/mse'), ('prior', 'val/nll')):
    row = _best_row(run.logs.get(phase, ()), best)
    for metric, (name, form) in _METRICS[phase].items():
      value = row.get(f'val/{metric}')
      if value is not None:
        rows.append((name, f'{value:{form}}', phase, f'{row["step"]:,}'))
  return page.Section(
    'numbers',
    'Numbers',
    ['Of the weights that are kept, on the validation split.'],
    tables=[page.Table(('metric', 'value', 'phase', 'at step'), rows)],
  )


def _data_card(run: _Run) -> page.Section:
  dataset = run.facts['dataset']
  names = run.model.class_names
  splits = ('train', 'val', 'test')
  counts = {
    split: np.bincount(
      prepared.read_labels(dataset, run.data_dir, split), minlength=len(names)
    )
    for split in splits
  }
  rows = [
    (name, *(f'{counts[split][i]:,}' for split in splits))
    for i, name in enumerate(names)
  ]
  rows.append(('all', *(f'{counts[split].sum():,}' for split in splits)))
  return page.Section(
    'data',
    'Data',
    [
      prepared.description(dataset, run.data_dir),
      f'Prepared as {dataset}, {run.facts["image_size"]} pixels a side. A '
      'lesion or patient is in one split only.',
    ],
    tables=[page.Table(('class', *splits), rows, 'Images')],
  )


def _steps(
  run: _Run, evaluated: dict[str, evaluate.Result | None]
) -> dict[str, dict[str, Any]]:
  """How each part of the run was made, in the order in which it was."""
  steps = {
    'images': prepared.load_provenance(run.facts['dataset'], run.data_dir)
  }
  for phase, folder in run.folders.items():
    if phase == 'prior':
      _, facts = workdirs.load_config(folder)
      steps['codes'] = prepared.load_provenance(facts['dataset'], run.data_dir)
    steps[phase] = workdirs.load_provenance(folder)
  for split, result in evaluated.items():
    steps[f'evaluation on {split}'] = (result or {}).get('made_by', {})
  steps['this page'] = workdirs.made_by()
  return {name: made_by for name, made_by in steps.items() if made_by}


def _commands(steps: dict[str, dict[str, Any]]) -> str:
  """A command, and what it made; those that made several parts once."""
  lines = []
  for command, parts in itertools.groupby(
    steps.items(), lambda step: step[1]['command']
  ):
    lines.append(command)
    for name, made_by in parts:
      versions = [f'{k} {v}' for k, v in made_by['versions'].items()]
      devices = [made_by['devices']] if 'devices' in made_by else []
      about = ', '.join([made_by['date'], *devices, *versions])
      lines.append(f'  # {name}: {about}')
  return '\n'.join(lines)


def _how(
  run: _Run, evaluated: dict[str, evaluate.Result | None]
) -> page.Section:
  listings = []
  for phase, folder in run.folders.items():
    config, _ = workdirs.load_config(folder)
    listings.append(
      page.Listing(
        f'Config of the {phase}', json.dumps(config.to_dict(), indent=2)
      )
    )
  commands = _commands(_steps(run, evaluated))
  return page.Section(
    'how',
    'How it was made',
    listings=[page.Listing('Commands', commands, open=True), *listings],
  )


def run(
  workdir: epath.PathLike, seed: int = 0, data_dir: str = ''
) -> list[epath.Path]:
  """Writes the page and its figures to `workdir/report`.

  Args:
    workdir: with a trained VQ-VAE; what needs a trained prior is left out
      without one.
    seed: of the samples.
    data_dir: where the data are, if not where the run found them.

  Returns:
    The files written, the page first.

  Raises:
    UserError: no trained VQ-VAE, its images are not to be found, or the result
      of an evaluation is damaged.
  """
  workdir = epath.Path(workdir).expanduser()
  source = _Run(workdir, seed, data_dir)
  sections = [_summary(source)]
  if source.has_samples:
    sections.append(_samples(source))
  evaluated = evaluation_page.results(workdir)
  sections += evaluation_page.sections(workdir, evaluated)
  if source.has_samples:
    sections += [_controls(source), _completions(source)]
  sections += [
    _reconstructions(source),
    _training(source),
    _data_card(source),
    _how(source, evaluated),
  ]
  h, w = source.model.grid
  return page.write(
    workdir / 'report',
    f'Skin-lesion images: {source.facts["dataset"]}',
    f'dermvq_jax, run {workdir.name}: {source.model.image_size} px images as '
    f'{h}x{w} codes of {source.model.codebook_size}',
    sections,
  )
