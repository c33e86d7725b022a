"""Results as tables; the console and the page show the same rows."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dermvq_jax.evaluation import results

# metric -> its title and format
METRICS = {
  'psnr': ('PSNR (dB)', '.2f'),
  'ssim': ('SSIM', '.4f'),
  'lpips': ('LPIPS', '.4f'),
  'nmse': ('NMSE', '.4f'),
  'mse': ('MSE', '.3g'),
  'perplexity': ('Perplexity', '.1f'),
  'codebook_usage': ('Codebook usage', '.3f'),
  'dead_codes': ('Codes never used', '.0f'),
  'quantization_error': ('Squared distance to the codes', '.4g'),
  'latent_norm': ('Norm of the latents', '.3g'),
  'bits_per_code': ('Bits per code', '.3f'),
  'nll': ('Nats per code', '.3f'),
  'accuracy': ('Accuracy of the most likely code', '.3f'),
}
_RECONSTRUCTION = ('psnr', 'ssim', 'lpips', 'nmse', 'mse')
# The metrics that `numbers` shows of each phase.
_NUMBERS = {
  'vqvae': (
    *_RECONSTRUCTION,
    'perplexity',
    'codebook_usage',
    'dead_codes',
    'quantization_error',
    'latent_norm',
  ),
  'prior': ('bits_per_code', 'nll', 'accuracy'),
}
# name of a set of images (see the docstring of `results`) -> its title
_SETS = {
  'real': 'other real images (floor)',
  'reconstructions': 'reconstructions (rFID)',
  'real_codes': 'other real images, decoded',
  'samples': 'samples',
  'independent_codes': 'independent codes',
}
# name of a space of features -> what the text calls it
_SPACES = {
  'classifier': 'a classifier of such images',
  'inception': 'Inception-v3',
}


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells under columns.

  Attributes:
    columns: the titles of the columns.
    rows: the cells of each row; the first cell names the row.
    caption: the title of the table.
    text: how to read it; only the page shows it.
    better: which way is better; only the console shows it.
    words: whether the cells are words, not numbers; words are aligned left.
  """

  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  caption: str = ''
  text: str = ''
  better: str = ''
  words: bool = False

  def as_text(self) -> str:
    """The caption, the rows as lines in columns, and which way is better."""
    columns = []
    for i, cells in enumerate(zip(self.columns, *self.rows)):
      align = str.rjust if i and not self.words else str.ljust
      width = max(map(len, cells))
      columns.append([align(cell, width) for cell in cells])
    lines = ['  '.join(cells).rstrip() for cells in zip(*columns)]
    better = [self.better] if self.better else []
    return '\n'.join([self.caption, *lines, *better])


def _number(value: float | None, form: str = '.3f') -> str:
  return '-' if value is None else f'{value:{form}}'


def numbers(best: Mapping[str, Mapping[str, Any]]) -> Table:
  """The validation metrics of the weights in `best/`.

  Args:
    best: name of a phase to the row of its metrics.jsonl at which the weights
      in `best/` were saved.
  """
  rows = []
  for phase, metrics in _NUMBERS.items():
    row = best.get(phase, {})
    for metric in metrics:
      title, form = METRICS[metric]
      if (value := row.get(f'val/{metric}')) is not None:
        rows.append((title, f'{value:{form}}', phase, f'{row["step"]:,}'))
  return Table(
    ('metric', 'value', 'phase', 'at step'),
    rows,
    'Metrics on the validation split, with the weights that are kept',
  )


def _reconstruction(result: results.ReconstructionResult) -> Table:
  titles, forms = zip(*(METRICS[name] for name in _RECONSTRUCTION))
  values = [getattr(result, name) for name in _RECONSTRUCTION]
  cells = [_number(value, form) for value, form in zip(values, forms)]
  return Table(
    ('images', *titles),
    [(f'{result.num_images:,}', *cells)],
    'How close are reconstructions to their originals?',
    'PSNR and SSIM: higher is better; they hardly see missing texture. LPIPS: '
    'distance in the features of a network; lower is better. MSE: squared '
    'error of values in [0, 1]. NMSE: the same, divided by the variance of the '
    'training images.',
    'Higher is better for PSNR and SSIM, lower for the others.',
  )


def _texture(result: results.TextureResult) -> Table:
  return Table(
    ('images', *(f'{octave} cycles per pixel' for octave in result.octaves)),
    [
      (_SETS.get(name, name), *(f'{power:.2f}' for power in powers))
      for name, powers in result.power.items()
    ],
    'Do images have as much detail as real ones?',
    'The power in each octave of spatial frequency, divided by that of the '
    'real images: 1 is best; less is blur, more is noise or a grid.',
    '1 is best; less is blur, more is noise or a grid.',
  )


def _prior(result: results.PriorResult) -> Table:
  def row(name, part, recall):
    return (
      name,
      f'{part.num_images:,}',
      _number(part.bits_per_code),
      _number(part.bits_per_dim, '.4f'),
      _number(recall),
    )

  rows = [row(name, c, c.recall) for name, c in result.classes.items()]
  rows.append(row('all', result, result.accuracy))
  if result.bits_per_code_given is not None:
    bits = _number(result.bits_per_code_given)
    rows.append(('all, given conditions', '-', bits, '-', '-'))
  balanced = _number(result.balanced_accuracy)
  rows.append(('balanced accuracy', '-', '-', '-', balanced))
  return Table(
    ('class', 'images', 'bits per code', 'bits per dim', 'recall'),
    rows,
    'How well does the prior predict the codes of each class?',
    'Bits per code: the length of a code when it is compressed with the prior, '
    'given the class; lower is better. Bits per dim: the same bits, divided by '
    'the number of values in the image. Recall: the share of images whose '
    'codes are most likely under their own class (Bayes classifier, uniform '
    'class prior). Of all images it is the accuracy; the balanced accuracy is '
    'the mean over the classes. Given conditions: all that the prior knows of '
    'an image beside its class.',
    'Lower is better for bits, higher for recall.',
  )


def _groups(name: str, found: Mapping[str, results.GroupResult]) -> Table:
  def cell(estimate: results.Estimate | None, form: str) -> str:
    if estimate is None:
      return '-'
    ends = f'{estimate.low:{form}}, {estimate.high:{form}}'
    return f'{estimate.mean:{form}} [{ends}]'

  columns = {  # title -> field and format
    'bits per code': ('bits_per_code', '.3f'),
    'given conditions': ('bits_per_code_given', '.3f'),
    'MSE': ('mse', '.5f'),
    'class kept': ('agreement', '.2f'),
    'flagged': ('flagged', '.2f'),
  }
  columns = {
    title: (field, form)
    for title, (field, form) in columns.items()
    if any(getattr(group, field) for group in found.values())
  }
  but = ', but for class kept' * ('class kept' in columns)
  return Table(
    (name, 'images', *columns),
    [
      (
        value,
        f'{group.num_images:,}',
        *(cell(getattr(group, f), form) for f, form in columns.values()),
      )
      for value, group in found.items()
    ],
    f'Are some images modelled worse than others, by {name}?',
    'Bits per code given the class alone, and given also all conditions that '
    'the prior knows; the squared error of reconstructions. Class kept: the '
    'share of reconstructions that the classifier finds of the right class. '
    f'Flagged: the share of images that dermvq score flags at '
    f'{results.FLAGGED_AT}. In brackets: the 95% interval of the mean over '
    'lesions. Groups also differ in their classes and in how the images were '
    'taken.',
    f'Lower is better{but}; in brackets the 95% interval.',
  )


def _generation(result: results.GenerationResult, space: str) -> list[Table]:
  metrics = ('precision', 'recall', 'density', 'coverage')
  share = result.kid_over_independent
  tables = [
    Table(
      ('images', 'number', 'Frechet distance', 'KID', *metrics),
      [
        (
          _SETS.get(name, name),
          f'{row.num_images:,}',
          _number(row.frechet_distance),
          f'{row.kid:z.4f} ± {row.kid_standard_error:.4f}',
          *(_number(getattr(row, metric)) for metric in metrics),
        )
        for name, row in result.sets.items()
      ],
      'How close are samples to real images?',
      f'Each set is compared with {result.num_real:,} real images in the '
      f'features of {_SPACES.get(space, space)}. Frechet distance and KID: '
      'lower is closer. Precision and density: how many images look real. '
      'Recall and coverage: how much of the variety of real images is covered. '
      'Other real images: the '
      'floor, which samples cannot be expected to beat. Other real images, '
      'decoded: what a perfect prior would reach. Independent codes: '
      'each code is sampled from the frequencies of its position alone, which '
      'a prior must beat'
      + ('' if share is None else f'; its KID is {share:.3f} of theirs')
      + '. Reconstructions are compared with their own originals, so only the '
      'Frechet distance is meaningful.',
      'Lower is better for Frechet distance and KID, higher for the others; '
      'the floor is what real images reach.',
    )
  ]
  if result.classes:
    sets = list(next(iter(result.classes.values())))
    tables.append(
      Table(
        ('class', *(_SETS.get(name, name) for name in sets)),
        [
          (name, *(_number(found[s].frechet_distance) for s in sets))
          for name, found in result.classes.items()
        ],
        'Frechet distance of each class with at least 100 real images',
        'Compare only within a row: fewer images give a larger distance.',
        'Lower is better, within a row.',
      )
    )
  return tables


def about_choice(evaluation: results.Evaluation) -> str:
  """Says who chose samples and who judged them; '' if nobody chose."""
  choice = evaluation.choice
  if choice is None:
    return ''
  by = 'the likelihood of their codes'
  if choice.chooser:
    by = f'a classifier ({choice.chooser})'
  judge = f'another one ({evaluation.judge})'
  if not choice.chooser:
    judge = f'a classifier ({evaluation.judge})'
  return (
    f'Each sample is the best of {choice.candidates} candidates by {by}.'
    + (
      f' Classes and features are judged by {judge}.'
      if evaluation.judge
      else ''
    )
  )


def _labels(evaluation: results.Evaluation) -> Table:
  result = evaluation.labels
  sets = {
    'real': result.real,
    'reconstructions': result.reconstructions,
    'samples': result.samples,
  }
  share = result.samples_over_real
  rows = [
    (name, *(_number(s.recalls.get(name)) for s in sets.values()))
    for name in result.real.recalls
  ]
  rows.append(
    (
      'balanced accuracy',
      *(
        f'{s.balanced_accuracy:.3f} ± {s.standard_error:.3f}'
        for s in sets.values()
      ),
    )
  )
  if share is not None:
    rows.append(('samples / real', '-', '-', f'{share:.2f}'))
  return Table(
    ('class', *sets),
    rows,
    'Do samples show the class that they were asked for?',
    'The share of images whose class is recognised by a classifier that was '
    'trained on real images. Samples that show their class are recognised as '
    'often as real images. If they are recognised less often, try '
    '--guidance_rise.' + f' {about_choice(evaluation)}'.rstrip(),
    'Higher is better; if samples are far below real images, try '
    '--guidance_rise=2.',
  )


def _memorisation(result: results.MemorisationResult) -> Table:
  return Table(
    (
      'compared by',
      'threshold',
      'samples flagged',
      'held-out flagged',
      'closer to training',
      'by chance',
      'p',
    ),
    [
      (
        name,
        f'{row.threshold:.2f}',
        f'{row.num_copied} of {result.num_samples:,}',
        f'{row.num_held_out_copied} of {result.num_held_out:,}',
        _number(row.share_closer_to_train),
        _number(row.expected_share),
        _number(row.p_value, '.2g'),
      )
      for name, row in result.spaces.items()
    ],
    'Are samples copies of training images?',
    'Memorisation ratio: the distance to the nearest of '
    f'{result.num_train:,} training images, divided by the mean distance to '
    'the five nearest lesions. A sample is flagged as a copy if its ratio is '
    'below the threshold, which is three quarters of the first percentile of '
    'held-out images. Held-out images cannot be copies; for each half of them '
    'the threshold is learned from the other half. Closer to '
    'training: the share of samples whose nearest image is a training image, '
    'not a held-out one. By chance: what that share would be if the model knew '
    'the training images no better than others; a small p by pixels says that '
    'it knows them better. By features, a small p can also come from a '
    'classifier that was trained on them.',
    'Flagged samples look copied; about as many of the held-out images are '
    'flagged by chance.',
  )


def of_evaluation(evaluation: results.Evaluation) -> list[Table]:
  """Tables of everything that was measured."""
  tables = [
    _reconstruction(evaluation.reconstruction),
    _texture(evaluation.texture),
    _prior(evaluation.prior),
    *(_groups(name, found) for name, found in evaluation.groups.items()),
  ]
  if evaluation.generation:
    tables += _generation(evaluation.generation, evaluation.space)
  if evaluation.labels:
    tables.append(_labels(evaluation))
  if evaluation.memorisation:
    tables.append(_memorisation(evaluation.memorisation))
  return tables
