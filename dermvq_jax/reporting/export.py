"""Writes a run as a folder to give away: weights, samples, a model card."""

import dataclasses

from absl import logging
from etils import epath

from dermvq_jax import errors, files, inference
from dermvq_jax.evaluation import evaluate, results
from dermvq_jax.generation import samples
from dermvq_jax.outliers import reference
from dermvq_jax.reporting import evaluation_page, model_card
from dermvq_jax.runs import run as run_lib

_NUM_SAMPLES = 4  # of each class


def _evaluations(run: run_lib.Run) -> dict[str, results.Evaluation]:
  """The evaluations of the run's weights by split, without command lines."""
  return {
    split: dataclasses.replace(
      found, made_by=dataclasses.replace(found.made_by, command='')
    )
    for split, found in evaluation_page.current_results(run).items()
    if found
  }


def _check_search(run: run_lib.Run, searched: list[results.Evaluation]):
  """Raises UserError unless samples were searched for copies."""
  if not searched:
    raise errors.UserError(
      f'no evaluation has searched samples of the weights in {run.workdir} for '
      f'copies of training images; run dermvq evaluate --workdir={run.workdir} '
      'first, or give --without_search'
    )
  for evaluation in searched:
    for space, found in evaluation.memorisation.spaces.items():
      if found.num_copied:
        logging.warning(
          'By %s, %d of %d samples look like copies of training images. Look '
          'at them before you give this away: dermvq report shows them.',
          space,
          found.num_copied,
          evaluation.memorisation.num_samples,
        )


def export(
  run: run_lib.Run, out: epath.PathLike, *, without_search: bool = False
):
  """Writes what others need to use a run, and nothing else of it.

  The folder has for each phase `config.json`, without paths and commands, and
  `weights.safetensors`; `report` with the evaluations of these weights, and
  what `dermvq score` knows of the images, without the names of lesions;
  `samples`; and a model card, `README.md`. `inference.load` and the commands
  that use a run take it in place of the run, and make the same images.

  Args:
    run: a run with a trained VQ-VAE.
    out: the new folder, local or gs://.
    without_search: whether to export a prior although no evaluation has
      searched its samples for copies of training images.

  Raises:
    UserError: there is no trained VQ-VAE, the training of a phase has saved no
      weights yet, something is damaged, samples were not searched for copies,
      or `out` exists.
  """
  model = inference.Model(run)  # The parts fit together.
  evaluations = _evaluations(run)
  searched = [found for found in evaluations.values() if found.memorisation]
  has_prior = run.prior.started
  untrained = run.vqvae.facts.get('untrained_classes', ())
  trained = [name for name in model.class_names if name not in untrained]
  if has_prior and not without_search:
    _check_search(run, searched)
  with files.new_folder(out) as folder:
    exported = run.export(folder)
    inference.Model(exported)  # It can be read.
    exported.report_dir.mkdir()
    for split, found in evaluations.items():
      path = evaluate.result_path(exported, split)
      path.write_text(results.as_json(found))
    reference.copy(run, exported)
    if has_prior:
      # As in an evaluation, which searched such samples for copies.
      same = searched[0] if searched else None
      controls = same.controls if same else {}
      if same and same.choice:
        by = same.choice.by
        controls |= {'choose': same.choice.candidates, 'choose_by': by}
      samples.sample(
        run,
        folder / 'samples',
        counts=dict.fromkeys(trained, _NUM_SAMPLES),
        seed=same.seed if same else 0,
        **controls,
      )
    card = model_card.render(run, model, list(evaluations.values()), trained)
    (folder / 'README.md').write_bytes(card.encode())
  logging.info('Wrote %s; use it by dermvq_jax.load(%r)', out, str(out))
