"""A run as one page: `workdir/report/index.html` and its figures as files.

The page is self-contained: it opens without a network and can be mailed.
"""

import base64
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import (
  checkpoints,
  errors,
  evaluate,
  figures,
  images,
  inference,
  logs,
  workdirs,
)
from dermvq_jax.data import prepared

_NUM_SAMPLES, _NUM_REAL = 6, 4  # of each class, side by side
_NUM_RECONSTRUCTIONS = 8
_NUM_COMPLETIONS = 6
_NUM_USAGE_IMAGES = 512
_NUM_CLOSEST = 12
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


@dataclasses.dataclass(frozen=True)
class Figure:
  """A figure: `svg` text of a chart, or `png` bytes of a picture."""

  name: str
  caption: str
  svg: str = ''
  png: bytes = b''

  @property
  def base64(self) -> str:
    """The picture as text."""
    return base64.b64encode(self.png).decode()

  def write(self, folder: epath.Path) -> epath.Path:
    """Writes it to a file of its own; returns the path."""
    path = folder / f'{self.name}.{"svg" if self.svg else "png"}'
    path.write_bytes(self.svg.encode() if self.svg else self.png)
    return path


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells under columns; the first cell names the row.

  `text` explains it. `words`: the other cells hold words, not numbers.
  """

  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  caption: str = ''
  text: str = ''
  words: bool = False


@dataclasses.dataclass(frozen=True)
class Listing:
  """Preformatted text, folded away unless `open`."""

  title: str
  text: str
  open: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page."""

  id: str
  title: str
  text: Sequence[str] = ()
  tables: Sequence[Table] = ()
  figures: Sequence[Figure] = ()
  listings: Sequence[Listing] = ()


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


def _samples(run: _Run) -> Section:
  names = run.model.class_names
  new = run.model.sample(
    np.repeat(np.arange(len(names)), _NUM_SAMPLES),
    seed=run.seed,
    show_progress=True,
  ).reshape(len(names), _NUM_SAMPLES, *run.images.shape[1:])
  real = [run.images[run.labels == i] for i in range(len(names))]
  return Section(
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
) -> Figure:
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
  return Figure(
    name,
    'New images of each class, and images of the validation split.',
    png=figures.labelled_sheet(images.sheet(rows), names, columns),
  )


def _controls(run: _Run) -> Section:
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
      Figure(
        control,
        _CONTROL_TEXTS[control],
        png=figures.labelled_sheet(
          images.sheet(rows), [f'{value:g}' for value in values], names
        ),
      )
    )
    logging.info('Drew %s', control)
  return Section(
    'controls',
    'What the controls do',
    [
      'Within a sheet only the control changes: the same classes, the same '
      'random numbers.'
    ],
    figures=drawn,
  )


def _completions(run: _Run) -> Section:
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
    return Section(
      'completions',
      'Completions',
      ['At this image size the encoder sees hidden pixels from everywhere.'],
    )
  return Section(
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
      Figure(
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
) -> Figure:
  """Images above their reconstructions and the difference.

  Args:
    originals: uint8 `[N, H, W, 3]`.
    decoded: uint8 `[N, H, W, 3]`.
    name: of the figure.
  """
  difference = np.abs(originals.astype(np.int32) - decoded)
  mse = np.mean((difference / 255) ** 2, axis=(1, 2, 3))
  shown = np.minimum(_ERROR_GAIN * difference, 255).astype(np.uint8)
  return Figure(
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
) -> Figure:
  """One image uint8 `[H, W, 3]`, its codes and what they stand for."""
  codes = model.encode(image[None])
  return Figure(
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


def _reconstructions(run: _Run) -> Section:
  originals = run.images[:_NUM_RECONSTRUCTIONS]
  codes = run.codes[:_NUM_RECONSTRUCTIONS]
  decoded = run.model.decode(codes)
  counts = np.bincount(run.codes.ravel(), minlength=run.model.codebook_size)
  distances = _distances(run)
  return Section(
    'reconstructions',
    'Reconstructions and codes',
    [
      'The first images of the validation split through encoder, codebook and '
      'decoder. What is lost here no prior can bring back.'
    ],
    figures=[
      reconstructions_figure(originals, decoded),
      code_map_figure(run.model, originals[0]),
      Figure(
        'usage',
        f'How often each of the {len(counts)} codes occurs in '
        f'{len(run.codes)} validation images; {np.sum(counts > 0)} do.',
        svg=figures.usage_histogram(counts),
      ),
      Figure(
        'code_distances',
        'The distance of each code to the nearest other one; the median is '
        f'{np.median(distances):.3g}.',
        svg=figures.distance_histogram(distances),
      ),
    ],
  )


def _training(run: _Run) -> Section:
  charts = [
    Figure(
      'vqvae_curves',
      'Phase 1, the VQ-VAE. NMSE is the squared error over the variance of the '
      'training pixels; perplexity counts the codes as if all in use were used '
      'equally often.',
      svg=figures.curves(run.logs['vqvae'], 'vqvae'),
    ),
    Figure(
      'smoothed',
      'Error and perplexity of the training steps, smoothed.',
      svg=figures.smoothed(run.logs['vqvae']),
    ),
  ]
  if 'prior' in run.logs:
    charts.append(
      Figure(
        'prior_curves',
        'Phase 2, the prior. Where the validation curve turns up, it overfits; '
        'the weights of the lowest point are kept.',
        svg=figures.curves(run.logs['prior'], 'prior'),
      )
    )
  return Section('training', 'Training', figures=charts)


def _best_row(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
  """The row with the lowest value; empty if there is none."""
  rows = [row for row in rows if metric in row]
  return min(rows, key=lambda row: row[metric], default={})


def _summary(run: _Run) -> Section:
  rows = []
  for phase, best in (('vqvae', 'val/mse'), ('prior', 'val/nll')):
    row = _best_row(run.logs.get(phase, ()), best)
    for metric, (name, form) in _METRICS[phase].items():
      value = row.get(f'val/{metric}')
      if value is not None:
        rows.append((name, f'{value:{form}}', phase, f'{row["step"]:,}'))
  return Section(
    'numbers',
    'Numbers',
    ['Of the weights that are kept, on the validation split.'],
    tables=[Table(('metric', 'value', 'phase', 'at step'), rows)],
  )


def _number(value: float | None, form: str = '.3f') -> str:
  return '' if value is None else f'{value:{form}}'


def _reconstruction_tables(result: dict[str, Any]) -> list[Table]:
  row = result['reconstruction']
  return [
    Table(
      ('images', 'PSNR (dB)', 'SSIM', 'NMSE', 'MSE'),
      [
        (
          row['num_images'],
          f'{row["psnr"]:.2f}',
          f'{row["ssim"]:.4f}',
          f'{row["nmse"]:.4f}',
          f'{row["mse"]:.3g}',
        )
      ],
      'How close reconstructions come to their originals',
    )
  ]


def _prior_tables(result: dict[str, Any]) -> list[Table]:
  prior = result['prior']
  rows = [*prior['classes'].items()]
  rows.append(('all', prior | {'recall': prior['accuracy']}))
  return [
    Table(
      ('class', 'images', 'bits per code', 'bits per dim', 'recall'),
      [
        (
          name,
          row['num_images'],
          _number(row['bits_per_code']),
          _number(row['bits_per_dim'], '.4f'),
          _number(row['recall']),
        )
        for name, row in rows
      ],
      'How well the prior knows the codes of each class',
      'Bits per code: what it takes to write a code down if the prior and the '
      'class are known; lower is better. Bits per dim: the same bits over all '
      'values of the pixels. Recall: how often the codes are most likely under '
      "their own class, which makes the prior a classifier, by Bayes' rule; "
      f'balanced accuracy {_number(prior["balanced_accuracy"])}.',
    )
  ]


def _generation_tables(result: dict[str, Any]) -> list[Table]:
  generation = result['generation']
  metrics = ('precision', 'recall', 'density', 'coverage')
  tables = [
    Table(
      ('images', 'number', 'Frechet distance', 'KID', *metrics),
      [
        (
          evaluate.SETS.get(name, name),
          row['num_images'],
          _number(row['frechet_distance']),
          f'{row["kid"]:z.4f} ± {row["kid_standard_error"]:.4f}',
          *(_number(row[metric]) for metric in metrics),
        )
        for name, row in generation['sets'].items()
      ],
      'How close samples come to real images',
      f'Sets of images against {generation["num_real"]} real ones, in the '
      f'features of {result["space"]}. Frechet distance and KID: lower is '
      'closer. Precision and density: how many look real. Recall and coverage: '
      'how much of the real variety is there. Other real images are the floor, '
      'which samples can not be expected to beat; decoded from their codes, '
      'they show what a perfect prior would reach. Independent codes are drawn '
      "from each position's frequencies alone: a prior has to beat them; its "
      f'KID is {generation["kid_over_independent"]:.3f} of theirs. '
      'Reconstructions are of the very images that all is compared with, so '
      'that only their Frechet distance says something.',
    )
  ]
  by_class = generation['classes']
  if by_class:
    sets = list(next(iter(by_class.values())))
    tables.append(
      Table(
        ('class', *(evaluate.SETS.get(name, name) for name in sets)),
        [
          (name, *(_number(found[s]['frechet_distance']) for s in sets))
          for name, found in by_class.items()
        ],
        'Frechet distance of each class of 100 real images and more',
      )
    )
  return tables


def _label_tables(result: dict[str, Any]) -> list[Table]:
  labels = result['labels']
  sets = [name for name in labels if isinstance(labels[name], dict)]
  names = labels[sets[0]]['recalls']
  rows = [
    (name, *(_number(labels[s]['recalls'].get(name)) for s in sets))
    for name in names
  ]
  rows.append(
    (
      'balanced accuracy',
      *(
        f'{labels[s]["balanced_accuracy"]:.3f} ± '
        f'{labels[s]["standard_error"]:.3f}'
        for s in sets
      ),
    )
  )
  return [
    Table(
      ('class', *sets),
      rows,
      'Do samples show the class that they were asked for?',
      'The share that a classifier, trained on real images, sees as the class '
      'they are of. Samples that show their class are recognised as often as '
      f'real images; here {labels["samples_over_real"]:.2f} as often. Guidance '
      'helps.',
    )
  ]


def _memorisation_tables(result: dict[str, Any]) -> list[Table]:
  memorisation = result['memorisation']
  return [
    Table(
      (
        'compared by',
        'copied: ratio below',
        'samples copied',
        'held-out images called copied',
        'closer to training',
        'expected by chance',
        'p',
      ),
      [
        (
          name,
          f'{row["threshold"]:.2f}',
          f'{row["num_copied"]} of {memorisation["num_samples"]}',
          f'{row["num_held_out_copied"]} of {memorisation["num_held_out"]}',
          _number(row['share_closer_to_train']),
          _number(row['expected_share']),
          _number(row['p_value'], '.2g'),
        )
        for name, row in memorisation['spaces'].items()
      ],
      'Are samples copies of training images?',
      f'Of {memorisation["num_train"]:,}. A sample counts as copied if it is '
      'much closer to one training image than to the next few: if the ratio of '
      'these distances is lower than three quarters of the first percentile of '
      'held-out images. Closer to training: the share whose nearest image is a '
      'training image, not a held-out one, and what it would be by chance; a '
      'small p by pixels says that the model knows its training images better '
      'than others. By features it can also come from a classifier that was '
      'trained on them.',
    )
  ]


# What `dermvq evaluate` may have measured.
_RESULT_TABLES = {
  'reconstruction': _reconstruction_tables,
  'prior': _prior_tables,
  'generation': _generation_tables,
  'labels': _label_tables,
  'memorisation': _memorisation_tables,
}


def _closest_pairs(path: epath.Path, split: str) -> list[Figure]:
  """The samples that are closest to training images."""
  if not path.exists():
    return []
  with path.open('rb') as f, np.load(f, allow_pickle=False) as arrays:
    spaces = [
      name.removesuffix('_closest')
      for name in arrays.files
      if name.endswith('_closest')
    ]
    return [
      Figure(
        f'closest_{space}_{split}',
        f'The samples that are closest to training images, by {space}, with '
        'the nearest training image and the nearest held-out one.',
        png=figures.labelled_sheet(
          images.sheet(
            [
              arrays[f'{space}_closest_{part}'][:_NUM_CLOSEST]
              for part in ('samples', 'train', 'held_out')
            ]
          ),
          ('sample', 'training', 'held-out'),
        ),
      )
      for space in spaces
    ]


def _evaluations(run: _Run) -> list[Section]:
  """What `dermvq evaluate` wrote, a section a split."""
  sections = []
  folder = run.workdir / 'report'
  for path in sorted(folder.glob('evaluate_*.json')):
    split = path.stem.removeprefix('evaluate_')
    result = evaluate.current_result(run.workdir, split)
    about = {'id': f'evaluation_{split}', 'title': f'Evaluation on {split}'}
    if result is None:
      text = f'It is of other weights: run dermvq evaluate --split={split}.'
      sections.append(Section(**about, text=[text]))
      continue
    controls = ', '.join(f'{k} {v:g}' for k, v in result['controls'].items())
    text = [
      f'By dermvq evaluate; seed {result["seed"]}, {controls}. Real are images '
      'of the data.'
    ]
    if result['space'] == 'classifier':
      text.append(
        'Compare rows with each other: features are those of a small '
        'classifier of these images, not those of published FIDs.'
      )
    tables = [
      table
      for name, make in _RESULT_TABLES.items()
      if result.get(name)
      for table in make(result)
    ]
    pictures = _closest_pairs(folder / f'nearest_{split}.npz', split)
    sections.append(
      Section(**about, text=text, tables=tables, figures=pictures)
    )
  return sections


def _data_card(run: _Run) -> Section:
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
  return Section(
    'data',
    'Data',
    [
      prepared.description(dataset, run.data_dir),
      f'Prepared as {dataset}, {run.facts["image_size"]} pixels a side. A '
      'lesion or patient is in one split only.',
    ],
    tables=[Table(('class', *splits), rows, 'Images')],
  )


def _how(run: _Run) -> Section:
  commands, listings = [], []
  for phase, folder in run.folders.items():
    config, _ = workdirs.load_config(folder)
    made_by = workdirs.load_provenance(folder)
    versions = ', '.join(f'{k} {v}' for k, v in made_by['versions'].items())
    commands.append(
      f'{made_by["command"]}\n'
      f'  # {phase}: {made_by["date"]}, {made_by["devices"]}, {versions}'
    )
    listings.append(
      Listing(f'Config of the {phase}', json.dumps(config.to_dict(), indent=2))
    )
  return Section(
    'how',
    'How it was made',
    listings=[Listing('Commands', '\n'.join(commands), open=True), *listings],
  )


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
  """The page as HTML that refers to nothing outside of it."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('dermvq_jax'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template('report.html').render(
    title=title, subtitle=subtitle, sections=sections
  )


def write(
  folder: epath.PathLike,
  title: str,
  subtitle: str,
  sections: Sequence[Section],
) -> list[epath.Path]:
  """Writes `folder/index.html` and its figures beside it.

  Returns:
    The files written, the page first.
  """
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  written = [f.write(folder) for section in sections for f in section.figures]
  page = folder / 'index.html'
  workdirs.write_text(page, render(title, subtitle, sections))
  logging.info('Wrote %s and %d figures beside it', page, len(written))
  return [page, *written]


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
  sections += _evaluations(source)
  if source.has_samples:
    sections += [_controls(source), _completions(source)]
  sections += [
    _reconstructions(source),
    _training(source),
    _data_card(source),
    _how(source),
  ]
  h, w = source.model.grid
  return write(
    workdir / 'report',
    f'Skin-lesion images: {source.facts["dataset"]}',
    f'dermvq_jax, run {workdir.name}: {source.model.image_size} px images as '
    f'{h}x{w} codes of {source.model.codebook_size}',
    sections,
  )
