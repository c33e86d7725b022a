"""The model card of an export: what it is, what was measured, what not."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jinja2

from dermvq_jax import __version__, errors, inference
from dermvq_jax.evaluation import result_tables, results
from dermvq_jax.reporting import data_section
from dermvq_jax.runs import phase as phase_lib
from dermvq_jax.runs import run as run_lib

# Name of a dataset -> the licence of its images; those of others are not known.
_LICENCES = {
  'ham10000': 'cc-by-nc-4.0',
  'isic2018': 'cc-by-nc-4.0',
  'isic2019': 'cc-by-nc-4.0',
  'dermamnist': 'cc-by-nc-4.0',
  'synthetic_dermoscopy': 'apache-2.0',
}
_OTHER = 'other'
# What Markdown and HTML would obey.
_ACTIVE = re.compile(r'([\\`*_{}\[\]<>#|~&$])')


def _plain(text: str) -> str:
  """Text, such as the name of a class, that Markdown shows as it is."""
  return _ACTIVE.sub(r'\\\1', errors.printable(text))


def _as_markdown(table: result_tables.Table) -> str:
  """A table with its caption and how to read it."""
  ruler = ['---'] + ['---' if table.words else '--:'] * (len(table.columns) - 1)
  rows = [
    [_plain(cell) for cell in table.columns],
    ruler,
    *([_plain(cell) for cell in row] for row in table.rows),
  ]
  lines = [f'| {" | ".join(row)} |' for row in rows]
  return '\n'.join([f'**{table.caption}**', '', *lines, '', table.text])


def _num_parameters(phase: phase_lib.Phase) -> int:
  leaves = jax.tree.leaves(phase.shapes['params'])
  return sum(math.prod(leaf.shape) for leaf in leaves)


def _described(run: run_lib.Run) -> str:
  """What the dataset says about itself; '' if it is not at hand."""
  try:
    return run.images.description
  except errors.UserError:
    return ''


def _metrics(evaluations: list[results.Evaluation]) -> list[str]:
  """What was measured, in words for the head of the card."""
  names = {
    'PSNR': True,
    'SSIM': True,
    'LPIPS': any(e.reconstruction.lpips is not None for e in evaluations),
    'bits per code': True,
    'Frechet distance': any(e.generation for e in evaluations),
    'KID': any(e.generation for e in evaluations),
    'memorisation ratio': any(e.memorisation for e in evaluations),
  }
  return [name for name, is_there in names.items() if is_there and evaluations]


def _head(
  run: run_lib.Run, evaluations: list[results.Evaluation]
) -> dict[str, Any]:
  """The fields at the top, which sites for models read."""
  dataset, _, _ = run.vqvae.facts['dataset'].partition('/')
  licence = _LICENCES.get(dataset, _OTHER)
  head = {'library_name': 'dermvq_jax', 'license': licence}
  if licence == _OTHER:
    head['license_name'] = 'that-of-the-training-images'  # as a slug
  if run.prior.started:
    head['pipeline_tag'] = 'unconditional-image-generation'
  return head | {
    'tags': ['jax', 'flax', 'vq-vae', 'dermoscopy', 'not-for-diagnosis'],
    'datasets': [dataset],
    'metrics': _metrics(evaluations),
  }


def render(
  run: run_lib.Run,
  model: inference.Model,
  evaluations: list[results.Evaluation],
  sampled: Sequence[str],
) -> str:
  """Returns the card as Markdown with a head in YAML.

  Args:
    run: the run that is exported.
    model: its model.
    evaluations: the evaluations of its weights.
    sampled: the classes in the sheet of samples, in this order.
  """
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('dermvq_jax.reporting'),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.filters['plain'] = _plain
  facts = run.vqvae.facts
  dataset, _, _ = facts['dataset'].partition('/')
  return environment.get_template('model_card.md').render(
    head=_head(run, evaluations),
    version=__version__,
    model=model,
    quantizer=model.config.vqvae.quantizer.name,
    prior=model.config.prior.prior.name if run.prior.started else '',
    conditions=data_section.known_conditions(run),
    phases={phase.name: _num_parameters(phase) for phase in run.phases},
    dataset=dataset,
    described=_described(run),
    num_train=facts.get('num_train'),
    untrained=facts.get('untrained_classes', ()),
    sampled=sampled,
    evaluations=[
      (found, [_as_markdown(t) for t in result_tables.of_evaluation(found)])
      for found in evaluations
    ],
    is_searched=any(found.memorisation for found in evaluations),
  )
