"""A run as one page: `WORKDIR/report/index.html`, and its figures as files.

The page is self-contained: it opens without a network and can be mailed.
"""

import dataclasses
import itertools
import json
from typing import Any

from absl import logging
from etils import epath

from dermvq_jax import inference
from dermvq_jax.evaluation import result_tables, results
from dermvq_jax.reporting import (
  data_section,
  evaluation_page,
  figures,
  model_sections,
  page,
)
from dermvq_jax.runs import phase as phase_lib
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import tasks


def _best_row(phase: phase_lib.Phase) -> dict[str, Any]:
  """The metrics of the weights in `best/`; empty if there are none."""
  metric = f'val/{tasks.best_metric(phase.config)}'
  rows = [row for row in phase.metrics() if metric in row]
  return min(rows, key=lambda row: row[metric], default={})


def _numbers(run: run_lib.Run) -> page.Section:
  table = result_tables.numbers({p.name: _best_row(p) for p in run.phases})
  logging.info('\n%s', table.as_text())
  return page.Section('numbers', 'Numbers', tables=[table])


def training(run: run_lib.Run) -> page.Section:
  """The section of the curves; `UserError` if a metrics.jsonl is damaged."""
  vqvae = run.vqvae.metrics()
  charts = [
    page.Figure(
      'vqvae_curves',
      'Training of the VQ-VAE. NMSE: the squared error, divided by the '
      'variance of the training pixels. Perplexity: the number of equally '
      'frequent codes that would be as varied as the codes in use.',
      svg=figures.curves(vqvae, 'vqvae'),
    ),
    page.Figure(
      'smoothed',
      'Error and perplexity of the training steps, smoothed.',
      svg=figures.smoothed(vqvae),
    ),
  ]
  if run.prior.started:
    charts.append(
      page.Figure(
        'prior_curves',
        'Training of the prior. It overfits where the validation curve rises.',
        svg=figures.curves(run.prior.metrics(), 'prior'),
      )
    )
  return page.Section('training', 'Training', figures=charts)


def _steps(
  run: run_lib.Run, evaluated: dict[str, results.Evaluation | None]
) -> dict[str, dict[str, Any]]:
  """How each part of the run was made, as far as known, in order."""
  steps = {'images': run.images.made_by}
  for phase in run.phases:
    if phase.name == 'prior':
      steps['codes'] = run.codes.made_by
    steps[phase.name] = phase.made_by
  for split, evaluation in evaluated.items():
    made_by = dataclasses.asdict(evaluation.made_by) if evaluation else {}
    steps[f'evaluation on {split}'] = made_by
  steps['this page'] = phase_lib.made_by()
  return {name: made_by for name, made_by in steps.items() if made_by}


def _commands(steps: dict[str, dict[str, Any]]) -> str:
  """The commands, each once, with the parts that the command made."""
  lines = []
  for command, parts in itertools.groupby(
    steps.items(), lambda step: step[1].get('command', '')
  ):
    lines.append(command or 'unknown: this is an export')
    for name, made_by in parts:
      versions = [f'{k} {v}' for k, v in made_by['versions'].items()]
      devices = [made_by['devices']] if 'devices' in made_by else []
      about = ', '.join([made_by['date'], *devices, *versions])
      lines.append(f'  # {name}: {about}')
  return '\n'.join(lines)


def _how(
  run: run_lib.Run, evaluated: dict[str, results.Evaluation | None]
) -> page.Section:
  commands = page.Listing(
    'Commands', _commands(_steps(run, evaluated)), open=True
  )
  configs = [
    page.Listing(
      f'Config of the {phase.name}',
      json.dumps(phase.config.to_dict(), indent=2),
    )
    for phase in run.phases
  ]
  return page.Section('how', 'How it was made', listings=[commands, *configs])


def report(run: run_lib.Run, seed: int = 0) -> list[epath.Path]:
  """Writes the page and its figures to the run's `report` folder.

  Args:
    run: a run with a trained VQ-VAE. Without a trained prior, the sections that
      need it are left out.
    seed: the seed of the samples.

  Returns:
    The files written, the page first.

  Raises:
    UserError: there is no trained VQ-VAE, its images are not prepared, or the
      result of an evaluation is damaged.
  """
  model = inference.Model(run)
  validation = model_sections.read_validation(run, model)
  has_prior = run.prior.started and run.prior.has_weights
  sections = [_numbers(run)]
  if has_prior:
    sections.append(model_sections.samples(model, validation, seed))
  evaluated = evaluation_page.current_results(run)
  sections += evaluation_page.sections(run, evaluated)
  if has_prior:
    sections += [
      model_sections.controls(model, seed),
      model_sections.completions(model, validation, seed),
    ]
  sections += [
    model_sections.reconstructions(run, model, validation),
    # An export has no metrics.
    *([] if run.is_exported else [training(run)]),
    data_section.section(run),
    _how(run, evaluated),
  ]
  h, w = model.grid
  return page.write(
    run.report_dir,
    f'Skin-lesion images: {run.images.name}',
    f'dermvq_jax, run {run.workdir.name}: {model.image_size} px images as '
    f'{h}x{w} codes of {model.codebook_size}',
    sections,
  )
