"""The section of the report about the data, and what the prior knows."""

from collections.abc import Mapping, Sequence

import numpy as np

from dermvq_jax import errors
from dermvq_jax.data import splits
from dermvq_jax.reporting import page
from dermvq_jax.runs import run as run_lib


def section(run: run_lib.Run) -> page.Section:
  """Counts the images of a run by class and by condition.

  Raises:
    UserError: there is no VQ-VAE, or its images are not prepared.
  """
  dataset = run.images
  conditions = dict(dataset.facts['conditions'])
  values = {s: dataset.values(s, list(conditions)) for s in splits.SPLITS}

  def counts(name: str) -> dict[str, np.ndarray]:
    """Numbers of images by value, the last one of unknown values, by split."""
    length = len(conditions[name]) + 1
    return {s: np.bincount(values[s][name], minlength=length) for s in values}

  tables = [_table('class', conditions['label'], counts('label'), 'Images')]
  tables += [
    _table(name, [*names, 'not known'], counts(name), f'Images by {name}')
    for name, names in conditions.items()
    if name != 'label'
  ]
  return page.Section(
    'data',
    'Data',
    [
      dataset.description,
      f'Prepared as {dataset.name}, {dataset.facts["image_size"]} pixels a '
      'side. All images of a lesion or patient are in the same split.',
      *_what_the_prior_knows(run, conditions),
    ],
    tables=tables,
  )


def _table(
  head: str,
  names: Sequence[str],
  counts: Mapping[str, np.ndarray],
  caption: str,
) -> page.Table:
  rows = [
    (name, *(f'{numbers[i]:,}' for numbers in counts.values()))
    for i, name in enumerate(names)
  ]
  rows.append(('all', *(f'{numbers.sum():,}' for numbers in counts.values())))
  return page.Table((head, *counts), rows, caption)


def _what_the_prior_knows(
  run: run_lib.Run, conditions: Mapping[str, Sequence[str]]
) -> list[str]:
  if not run.prior.started:
    return []
  known = run.prior.config.conditions.to_dict()
  named = ', '.join(f'{name} ({rate:.0%})' for name, rate in known.items())
  others = ', '.join(name for name in conditions if name not in known)
  return [
    f'The prior knows {named}. In brackets: the share of training images in '
    'which the value was hidden, so that the prior can do without it.'
    + (f' It does not know {others}.' if others else '')
  ]


def known_conditions(run: run_lib.Run) -> dict[str, list[str]]:
  """Names what the prior knows beside the label, for a model card.

  Returns:
    By condition its values, each with the number of its training images in
    brackets if the images are at hand. Empty without a prior.
  """
  if not run.prior.started:
    return {}
  names = run.prior.facts['conditions']
  known = [name for name in run.prior.config.conditions if name != 'label']
  try:
    values = run.images.values('train', known)
  except errors.UserError:
    return {name: list(names[name]) for name in known}
  return {
    name: [
      f'{value} ({np.sum(values[name] == i):,})'
      for i, value in enumerate(names[name])
    ]
    for name in known
  }
