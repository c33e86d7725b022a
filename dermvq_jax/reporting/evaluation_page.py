"""Sections of the report about evaluations."""

from dermvq_jax.data import images
from dermvq_jax.evaluation import evaluate, result_tables, results
from dermvq_jax.reporting import figures, page, pictures
from dermvq_jax.runs import run as run_lib

_NUM_CLOSEST = 12


def _confusion(evaluation: results.Evaluation) -> page.Figure:
  """Shows how the images of each class are classified."""
  prior, labels = evaluation.prior, evaluation.labels
  counts = {'Real images, by the prior': prior.confusion}
  if labels:
    counts['Real images, by the classifier'] = labels.real.confusion
    counts['Samples, by the classifier'] = labels.samples.confusion
  name = f'confusion_{evaluation.split}'
  return page.Figure(
    name,
    'The number of images by their class and predicted class; the shade is the '
    'share of the class. The prior predicts the class under which the codes of '
    'an image are most likely. The class of a sample is the class that was '
    'asked for.',
    svg=figures.confusion(counts, list(prior.classes), name),
  )


def _closest_pairs(run: run_lib.Run, split: str) -> list[page.Figure]:
  """Shows the samples that are closest to training images, by each space."""
  return [
    page.Figure(
      f'closest_{space}_{split}',
      f'The samples that are closest to training images, by {space}, with '
      'their nearest training image and their nearest held-out image.',
      png=pictures.labelled_sheet(
        images.sheet([row[:_NUM_CLOSEST] for row in rows]),
        ('sample', 'training', 'held-out'),
      ),
    )
    for space, rows in evaluate.closest_images(run, split).items()
  ]


def current_results(run: run_lib.Run) -> dict[str, results.Evaluation | None]:
  """Reads what `dermvq evaluate` wrote, by split; None if out of date.

  Raises:
    UserError: a result is damaged.
  """
  splits = [
    path.stem.removeprefix('evaluate_')
    for path in sorted(run.report_dir.glob('evaluate_*.json'))
  ]
  return {split: evaluate.current_result(run, split) for split in splits}


def sections(
  run: run_lib.Run, evaluated: dict[str, results.Evaluation | None]
) -> list[page.Section]:
  """Returns a section for each of the `current_results`."""
  return [_section(run, split, found) for split, found in evaluated.items()]


def _section(
  run: run_lib.Run, split: str, evaluation: results.Evaluation | None
) -> page.Section:
  about = {'id': f'evaluation_{split}', 'title': f'Evaluation on {split}'}
  if evaluation is None:
    text = (
      'The weights have changed since this evaluation. Run dermvq evaluate '
      f'--split={split} again.'
    )
    return page.Section(**about, text=[text])
  controls = ', '.join(f'{k} {v:g}' for k, v in evaluation.controls.items())
  text = [
    f'Measured by dermvq evaluate with seed {evaluation.seed}, {controls}. '
    'Real images come from the dataset.'
  ]
  if evaluation.choice:
    text.append(result_tables.about_choice(evaluation))
  if evaluation.space == 'classifier':
    text.append(
      'Compare rows with each other, not with published FIDs: the features '
      'come from a small classifier that was trained on these images.'
    )
  return page.Section(
    **about,
    text=text,
    tables=result_tables.of_evaluation(evaluation),
    figures=[_confusion(evaluation), *_closest_pairs(run, split)],
  )
