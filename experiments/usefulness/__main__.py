"""The command; see the package's docstring."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

import experiments.usefulness
from dermvq_jax import errors, files
from dermvq_jax.runs import run as run_lib
from experiments import common
from experiments.usefulness import classifiers, folds, results

_SEEDS = {'full': 3, 'smoke': 1}
_TABLE, _RESULTS, _SETTINGS = 'usefulness.md', 'results', 'settings.json'


@dataclasses.dataclass(frozen=True)
class FoldImages:
  """The images of one fold.

  Attributes:
    real: `image` and `label` of the training split.
    new: samples of each class, uint8 `[C, M, H, W, 3]`.
    held_out: `image`, `label` and `group` of the test split.
  """

  real: classifiers.Images
  new: np.ndarray
  held_out: classifiers.Images


def read_fold(
  fold: folds.Fold, workdir: epath.Path, guidance_scale: float
) -> FoldImages:
  """Reads the images of a fold and samples from its generator.

  Raises:
    UserError: the fold's splits share lesions.
  """
  real, held_out = fold.read('train'), fold.read('test')
  if set(real['group']) & set(held_out['group']):
    raise errors.UserError(
      f'{fold.run.images.name} has images of one lesion in several splits; '
      'leave out --run'
    )
  per_class = int(np.bincount(real['label']).max())
  path = workdir / 'samples' / f'{fold.name}.npz'
  new = folds.samples(fold, per_class, path, guidance_scale)
  return FoldImages(real, new, held_out)


def jobs(
  makers: Mapping[str, Callable[[], folds.Fold]],
  trained: classifiers.Classifiers,
  class_names: list[str],
  args: argparse.Namespace,
) -> dict[str, Callable[[], dict[str, Any]]]:
  """Returns all trainings of the study by the file of their result.

  Args:
    makers: functions that return the folds, by name.
    trained: trains the classifiers.
    class_names: names of the classes.
    args: parsed flags.
  """

  @functools.lru_cache(maxsize=1)  # A fold may take a gigabyte of memory.
  def images(name: str) -> FoldImages:
    return read_fold(makers[name](), args.workdir, args.guidance_scale)

  def job(name: str, way: str, seed: int) -> dict[str, Any]:
    fold = images(name)
    composed = classifiers.compose(way, fold.real, fold.new)
    predict = trained.train(composed, way, seed)
    predicted = predict(fold.held_out['image'])
    return results.result(class_names, fold.held_out, predicted)

  return {
    results.file_name(name, way, seed): functools.partial(job, name, way, seed)
    for name in makers
    for seed in range(args.seeds or _SEEDS[args.size])
    for way in args.ways
  }


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of the command's flags."""
  parser = common.study_parser(
    experiments.usefulness.__doc__, 'experiments.usefulness'
  )
  common.add_data_flags(parser)
  parser.add_argument(
    '--run', type=epath.Path, help='workdir of a trained run, instead of folds'
  )
  parser.add_argument(
    '--guidance_scale',
    type=float,
    default=1.0,
    help='guidance scale of the samples (default: 1)',
  )
  parser.add_argument(
    '--folds', type=int, default=5, help='number of folds (default: 5)'
  )
  parser.add_argument(
    '--seeds',
    type=int,
    help='seeds of each classifier (default: 3; 1 with --size=smoke)',
  )
  parser.add_argument(
    '--ways',
    type=lambda text: text.split(','),
    default=list(classifiers.WAYS),
    help='ways of training, separated by commas (default: '
    f'{",".join(classifiers.WAYS)})',
  )
  parser.add_argument(
    '--table', action='store_true', help='train nothing, print the table'
  )
  return parser


def check_settings(args: argparse.Namespace):
  """Checks that a study is resumed with its original settings.

  Raises:
    UserError: the workdir was started with other settings.
  """
  settings = {
    'run': str(args.run.resolve()) if args.run else None,
    'weights': folds.weights(run_lib.Run(args.run)) if args.run else None,
    'dataset': None if args.run else args.dataset or common.DATASETS[args.size],
    'folds': None if args.run else args.folds,
    'size': args.size,
    'guidance_scale': args.guidance_scale,
  }
  path = args.workdir / _SETTINGS
  before = common.read_json(path) if path.exists() else settings
  for name, value in settings.items():
    if before.get(name) != value:
      raise errors.UserError(
        f'{args.workdir} was started with {name} {before.get(name)!r}, not '
        f'{value!r}; use another --workdir, or the old value'
      )
  common.write_json(path, settings)


def _train(args: argparse.Namespace):
  """Trains and tests the classifiers whose results are missing."""
  if args.run:
    fold = folds.fold_of_run(run_lib.Run(args.run, args.data_dir))
    images, makers = fold.run.images, {fold.name: lambda: fold}
  else:
    images = common.prepare_data(args)
    makers = {
      folds.fold_name(i, args.folds): functools.partial(
        folds.make_fold, args.workdir, images, i, args.folds, args.size
      )
      for i in range(args.folds)
    }
  check_settings(args)
  trained = classifiers.Classifiers(images.facts, args.size)
  common.run_missing(
    args.workdir / _RESULTS,
    jobs(makers, trained, images.facts['class_names'], args),
  )


def main(argv: list[str] | None = None):
  """Trains what is missing and prints the table."""
  parser = make_parser()
  args = parser.parse_args(argv)
  if args.folds < 2:
    parser.error(f'--folds is {args.folds}; give 2 or more, or --run')
  if set(args.ways) - set(classifiers.WAYS):
    parser.error(f'--ways: give some of {",".join(classifiers.WAYS)}')
  common.setup()
  if not args.table:
    with common.usage_errors(parser):
      _train(args)
  found = results.read(args.workdir / _RESULTS, args.ways)
  if found is None:
    parser.error('no fold is complete yet; leave out --table')
  text = results.table(found)
  files.write_text(args.workdir / _TABLE, text + '\n')
  print(text)


if __name__ == '__main__':
  main()
