"""What `dermvq evaluate` measured, as sections of the report."""

from typing import Any

import numpy as np
from etils import epath

from dermvq_jax.data import images
from dermvq_jax.evaluation import evaluate
from dermvq_jax.reporting import figures, page

_NUM_CLOSEST = 12


def _number(value: float | None, form: str = '.3f') -> str:
  return '' if value is None else f'{value:{form}}'


def _reconstruction_tables(result: dict[str, Any]) -> list[page.Table]:
  row = result['reconstruction']
  return [
    page.Table(
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


def _prior_tables(result: dict[str, Any]) -> list[page.Table]:
  prior = result['prior']
  rows = [*prior['classes'].items()]
  rows.append(('all', prior | {'recall': prior['accuracy']}))
  return [
    page.Table(
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


def _generation_tables(result: dict[str, Any]) -> list[page.Table]:
  generation = result['generation']
  metrics = ('precision', 'recall', 'density', 'coverage')
  share = generation['kid_over_independent']
  tables = [
    page.Table(
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
      "from each position's frequencies alone: a prior has to beat them"
      + ('.' if share is None else f'; its KID is {share:.3f} of theirs.')
      + ' '
      'Reconstructions are of the very images that all is compared with, so '
      'that only their Frechet distance says something.',
    )
  ]
  by_class = generation['classes']
  if by_class:
    sets = list(next(iter(by_class.values())))
    tables.append(
      page.Table(
        ('class', *(evaluate.SETS.get(name, name) for name in sets)),
        [
          (name, *(_number(found[s]['frechet_distance']) for s in sets))
          for name, found in by_class.items()
        ],
        'Frechet distance of each class of 100 real images and more',
        'Compare within a row: the fewer images, the larger the distance.',
      )
    )
  return tables


def _label_tables(result: dict[str, Any]) -> list[page.Table]:
  labels = result['labels']
  sets = [name for name in labels if isinstance(labels[name], dict)]
  names = labels[sets[0]]['recalls']
  share = labels['samples_over_real']
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
    page.Table(
      ('class', *sets),
      rows,
      'Do samples show the class that they were asked for?',
      'The share that a classifier, trained on real images, sees as the class '
      'they are of. Samples that show their class are recognised as often as '
      'real images'
      + ('' if share is None else f'; here {share:.2f} as often')
      + '. If they are recognised less, try --guidance_scale.',
    )
  ]


def _memorisation_tables(result: dict[str, Any]) -> list[page.Table]:
  memorisation = result['memorisation']
  return [
    page.Table(
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
      'held-out images; how many of these are called copies is counted with a '
      'threshold learned from others. Closer to training: the share whose '
      'nearest image is a training image, not a held-out one, and what it '
      'would be by chance; a small p by pixels says that the model knows its '
      'training images better than others. By features it can also come from '
      'a classifier that was trained on them.',
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


def _confusion(result: evaluate.Result, split: str) -> page.Figure:
  """What is taken for what, by the prior and, if there is one, a classifier."""
  counts = {'Real images, by the prior': result['prior']['confusion']}
  if result.get('labels'):
    counts['Real images, by the classifier'] = result['labels']['real'][
      'confusion'
    ]
    counts['Samples, by the classifier'] = result['labels']['samples'][
      'confusion'
    ]
  name = f'confusion_{split}'
  return page.Figure(
    name,
    'How many images of each class are taken for which; the shade is the share '
    "of the class. By the prior: the class under which an image's codes are "
    'most likely. Of samples the class is the one they were asked for.',
    svg=figures.confusion(counts, list(result['prior']['classes']), name),
  )


def _closest_pairs(path: epath.Path, split: str) -> list[page.Figure]:
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
      page.Figure(
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


def results(workdir: epath.Path) -> dict[str, evaluate.Result | None]:
  """What `dermvq evaluate` wrote, by split; None if of other weights.

  Raises:
    UserError: a result is damaged.
  """
  splits = [
    path.stem.removeprefix('evaluate_')
    for path in sorted((workdir / 'report').glob('evaluate_*.json'))
  ]
  return {split: evaluate.current_result(workdir, split) for split in splits}


def sections(
  workdir: epath.Path, found: dict[str, evaluate.Result | None]
) -> list[page.Section]:
  """What `results` found, a section a split."""
  made = []
  for split, result in found.items():
    about = {'id': f'evaluation_{split}', 'title': f'Evaluation on {split}'}
    if result is None:
      text = f'It is of other weights: run dermvq evaluate --split={split}.'
      made.append(page.Section(**about, text=[text]))
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
    pictures = [_confusion(result, split)]
    pictures += _closest_pairs(
      workdir / 'report' / f'nearest_{split}.npz', split
    )
    made.append(
      page.Section(**about, text=text, tables=tables, figures=pictures)
    )
  return made
