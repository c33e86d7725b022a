"""Evaluates a run: its parts, and the images that it makes."""

import dataclasses

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, files, inference
from dermvq_jax.evaluation import (
  feature_spaces,
  groups,
  image_split,
  measures,
  result_tables,
  results,
  sample_measures,
)
from dermvq_jax.inference import choosing
from dermvq_jax.inference import classifier as classifier_lib
from dermvq_jax.models.priors import sampler
from dermvq_jax.runs import phase as phase_lib
from dermvq_jax.runs import run as run_lib

_CHANNELS = 3
_MIN_SAMPLES = 10


@dataclasses.dataclass(frozen=True)
class _CodeBits:
  """Bits per code of N grids of codes; several can be of the same image.

  Attributes:
    ids: the id of the image of each, str `[N]`.
    of_class: given its class, float `[N]`.
    given: given also what else the prior knows; None if it knows nothing else.
  """

  ids: np.ndarray
  of_class: np.ndarray
  given: np.ndarray | None

  def of_images(self, ids: np.ndarray) -> dict[str, np.ndarray | None]:
    """Means of the grids of each image, as in `results.GroupResult`."""
    names, index = np.unique(self.ids, return_inverse=True)
    places = np.searchsorted(names, ids)

    def mean(bits: np.ndarray | None) -> np.ndarray | None:
      if bits is None:
        return None
      return (np.bincount(index, bits) / np.bincount(index))[places]

    return {
      'bits_per_code': mean(self.of_class),
      'bits_per_code_given': mean(self.given),
    }


def _measure_codes(
  run: run_lib.Run, subject: sample_measures.Subject
) -> tuple[results.PriorResult, _CodeBits]:
  """Measures the prior on the codes of a split."""
  model, records = subject.model, list(run.codes.split(subject.split))
  codes = np.stack([record['codes'] for record in records])
  labels = np.array([record['label'] for record in records])
  likelihoods = model.class_log_likelihoods(codes, show_progress=True)
  result = measures.measure_prior(
    likelihoods,
    labels,
    model.class_names,
    dataset=run.codes.name,
    num_codes=codes[0].size,
    num_values=model.image_size**2 * _CHANNELS,
  )
  nats, given = codes[0].size * np.log(2), None
  if model.conditions:
    values = {
      name: [(*names, None)[record[name]] for record in records]
      for name, names in model.conditions.items()
    }
    given = -model.log_likelihood(codes, labels, **values) / nats
    result = dataclasses.replace(
      result, bits_per_code_given=float(given.mean())
    )
  return result, _CodeBits(
    ids=np.array([record['id'].decode() for record in records]),
    of_class=-likelihoods[np.arange(len(labels)), labels] / nats,
    given=given,
  )


def _check_num_samples(
  subject: sample_measures.Subject, num_samples: int | None
) -> int:
  """Returns the number of samples, by default the number of floor images.

  Raises:
    UserError: there are too few images to compare with, or the number of
      samples is out of its range.
  """
  real, floor = subject.real, subject.floor
  fewest, most = min(len(real), len(floor)), len(floor)
  if num_samples != 0 and fewest < _MIN_SAMPLES:
    raise errors.UserError(
      f'samples are compared with at least {_MIN_SAMPLES} real images, but '
      f'{real.name} or {floor.name} has {fewest}; give --num_samples=0 to '
      'measure everything else'
    )
  num_samples = most if num_samples is None else num_samples
  if num_samples and not _MIN_SAMPLES <= num_samples <= most:
    raise errors.UserError(
      f'--num_samples={num_samples} is out of its range; give --num_samples '
      f'from {_MIN_SAMPLES} to {most}, the size of {floor.name}, or 0 for none'
    )
  return num_samples


def result_path(run: run_lib.Run, split: str) -> epath.Path:
  """The file that `evaluate` writes."""
  return run.report_dir / f'evaluate_{split}.json'


def nearest_path(run: run_lib.Run, split: str) -> epath.Path:
  """The file of arrays that `evaluate` writes if there are samples."""
  return run.report_dir / f'nearest_{split}.npz'


def closest_images(run: run_lib.Run, split: str) -> dict[str, list[np.ndarray]]:
  """Reads the samples that are closest to training images, from `nearest_path`.

  Returns:
    For each space: the samples, their nearest training images and their nearest
    held-out images, uint8 `[N, H, W, 3]` each; empty if there is no such file.

  Raises:
    UserError: the file is damaged.
  """
  path = nearest_path(run, split)
  if not path.exists():
    return {}
  try:
    arrays = files.read_arrays(path)
    spaces = [n[: -len('_closest')] for n in arrays if n.endswith('_closest')]
    found = {
      space: [
        arrays[f'{space}_closest_{part}']
        for part in ('samples', 'train', 'held_out')
      ]
      for space in spaces
    }
    for one in (array for three in found.values() for array in three):
      if one.dtype != np.uint8 or one.ndim != 4 or one.shape[-1] != 3:
        raise ValueError(f'{one.dtype} {list(one.shape)} are no images')
  except (ValueError, KeyError) as e:
    raise errors.UserError(
      f'{path} is damaged ({errors.one_line(e)}); remove it, or run dermvq '
      f'evaluate --split={split} again'
    ) from e
  return found


def _weights(run: run_lib.Run) -> dict[str, str]:
  return {phase.name: phase.weights_id for phase in run.phases}


def current_result(
  run: run_lib.Run, split: str = 'val'
) -> results.Evaluation | None:
  """Reads what `evaluate` wrote.

  Returns:
    The result; None if there is none, or if the weights of a phase have changed
    since then.

  Raises:
    UserError: the file is damaged.
  """
  path = result_path(run, split)
  if not path.exists():
    return None
  evaluation, weights = results.read(path), _weights(run)
  is_current = all(
    weights.get(phase) == name for phase, name in evaluation.weights.items()
  )
  return evaluation if is_current else None


def evaluate(
  run: run_lib.Run,
  split: str = 'val',
  *,
  space: feature_spaces.Features | None = None,
  num_samples: int | None = None,
  seed: int = 0,
  choose: int = 1,
  choose_by: str = 'classifier',
  judge: run_lib.Run | None = None,
  **controls,
) -> results.Evaluation:
  """Evaluates a run, prints tables, and writes the result to `report/`.

  `evaluate_<split>.json` holds the returned value. With samples,
  `nearest_<split>.npz` has for every sample its `label` and `sample_id` (its
  number in its class), the arrays of `memorisation.measure`, and about the 24
  samples with the lowest ratio in each space `<space>_closest` (their
  positions), `<space>_closest_samples`, `<space>_closest_train` and
  `<space>_closest_held_out` (pictures, uint8 `[24, H, W, 3]`).

  Args:
    run: a run with trained VQ-VAE and prior.
    split: 'train', 'val' or 'test'.
    space: the space of features in which sets of images are compared, such as
      `feature_spaces.Inception(file)`. By default it is the run's classifier,
      if there is one.
    num_samples: how many samples to make; by default as many as there are
      other real images. 0: none.
    seed: the seed of the samples.
    choose: the number of candidates for each sample, see `Model.sample`, as is
      the next argument.
    choose_by: as there.
    judge: a run whose classifier judges samples, in place of this run's. A
      classifier that chooses samples never judges them, so it is needed for
      `choose_by='classifier'`, with another seed and another architecture.
    **controls: how to sample; see `sampler.Controls`.

  Raises:
    UserError: the run is not trained, its data are not prepared, a control or
      the number of samples is out of its range, `space` does not return
      features, or the classifier that chooses would judge.
  """
  chosen = sampler.Controls(**controls)
  choosing.check(choose, choose_by)
  classifier = _judge(run, judge)
  choice = None
  if choose > 1 and num_samples != 0:
    choice = _choice(run, choose, choose_by, classifier)
  subject = _subject(run, split, classifier, space)
  num_samples = _check_num_samples(subject, num_samples)
  prior, bits = _measure_codes(run, subject)
  evaluation = results.Evaluation(
    split=split,
    dataset=run.images.name,
    seed=seed,
    controls=dataclasses.asdict(chosen),
    space=_name(subject.space),
    weights=_weights(run),
    made_by=results.MadeBy(**phase_lib.made_by()),
    prior=prior,
    reconstruction=measures.measure_reconstruction(
      subject.real.images,
      subject.real.reconstructions,
      run.vqvae.facts['train_variance'],
    ),
    texture=measures.measure_texture(
      subject.real.images, {'reconstructions': subject.real.reconstructions}
    ),
    groups=groups.of_subject(run, subject, bits.of_images(subject.real.ids)),
  )
  files.make_folder(run.report_dir)
  paths, arrays = [result_path(run, split)], {}
  if num_samples:
    found, arrays = sample_measures.measure_samples(
      subject,
      run.codes.split('train'),
      num_samples,
      seed=seed,
      sampling=dataclasses.asdict(chosen)
      | {'choose': choose, 'choose_by': choose_by},
    )
    evaluation = dataclasses.replace(
      evaluation,
      choice=choice,
      judge=classifier and classifier.description,
      **found,
    )
    paths.append(nearest_path(run, split))
  _print(evaluation, run)
  if not num_samples:  # It belongs to an earlier evaluation.
    nearest_path(run, split).unlink(missing_ok=True)
  with files.replacing_together(*paths) as opened:
    opened[0].write(results.as_json(evaluation).encode())
    if num_samples:
      np.savez_compressed(opened[1], **arrays)
  for path in paths:
    logging.info('Wrote %s', path)
  return evaluation


def _judge(
  run: run_lib.Run, judge: run_lib.Run | None
) -> classifier_lib.Classifier | None:
  """The classifier that judges samples, if there is one.

  Raises:
    UserError: that of `judge` was not trained, or was trained on other images.
  """
  if judge is None:
    return (
      classifier_lib.Classifier(run) if run.classifier.has_weights else None
    )
  if not judge.classifier.has_weights:
    raise errors.MissingError(
      f'--judge: {judge.workdir} has no trained classifier; '
      + _how_to_train_a_judge(run)
    )
  return classifier_lib.Classifier(judge, of=run)


def _how_to_train_a_judge(run: run_lib.Run) -> str:
  config = run.vqvae.config
  return (
    'train one with another seed and architecture: dermvq train '
    f'--config=classifier --workdir=JUDGE --config.dataset={config.dataset} '
    f'--config.data_dir={run.data_dir()} --config.seed=1 '
    '--config.classifier.features=64 --config.classifier.num_stages=4'
  )


def _choice(
  run: run_lib.Run,
  candidates: int,
  by: str,
  judge: classifier_lib.Classifier | None,
) -> results.Choice:
  """Checks that what chooses samples does not judge them as well.

  Raises:
    UserError: the classifier that chooses would judge, or one with the same
      seed or architecture.
  """
  if by != 'classifier':
    return results.Choice(candidates, by, None)
  chooser = inference.Model(run).classifier
  for same, what in (
    (judge.config.seed == chooser.config.seed, 'seed'),
    (judge.config.classifier == chooser.config.classifier, 'architecture'),
  ):
    if same:
      raise errors.UserError(
        'a classifier that chooses samples must not judge them, nor may one of '
        f'the same {what}; give --judge=JUDGE; ' + _how_to_train_a_judge(run)
      )
  return results.Choice(candidates, by, chooser.description)


def _subject(
  run: run_lib.Run,
  split: str,
  classifier: classifier_lib.Classifier | None,
  space: feature_spaces.Features | None,
) -> sample_measures.Subject:
  """Opens everything that `evaluate` measures."""
  model = inference.Model(run)
  model.check_prior()
  run.codes.split(split)  # Raises a clear error before the work begins.
  held_out = sample_measures.HELD_OUT
  return sample_measures.Subject(
    model=model,
    splits={
      name: image_split.ImageSplit(
        name,
        run.images.split(name),
        model,
        # The training images may not fit into memory.
        in_memory=name == split or name in held_out,
      )
      for name in ('train', *held_out)
    },
    split=split,
    classifier=classifier,
    space=classifier if space is None else space,
  )


def _print(evaluation: results.Evaluation, run: run_lib.Run):
  for table in result_tables.of_evaluation(evaluation):
    logging.info('\n%s', table.as_text())
  if evaluation.choice:
    logging.info('\n%s', result_tables.about_choice(evaluation))
  if evaluation.memorisation and evaluation.generation is None:
    logging.info(
      '\nSamples were not compared with real images, because the run has no '
      'classifier. Train one with dermvq train --config=classifier '
      '--workdir=%s, or give --inception.',
      run.workdir,
    )


def _name(space: feature_spaces.Features | None) -> str | None:
  if space is None:
    return None
  return getattr(space, '__name__', type(space).__name__)
