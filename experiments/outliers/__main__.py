r"""Measures how well `dermvq score` finds outliers.

```
pip install -c constraints.txt -e '.[outliers]'
python -m experiments.outliers --run=RUN --data_dir=DATA --out=STUDY
```

RUN needs a VQ-VAE, a prior and a classifier. The inliers are the held-out
lesions of test (or of val, with --split=val, to choose a combination). The
outliers are made from them in graded strengths (`made.py`), or are photographs
that come with scikit-image and scikit-learn. With --left_out=FOLDER, the image
files there are outliers too: those of classes that the run was trained without
(`dermvq prepare --leave_out=TABLE`). Printed are:

- the false alarm rates of `dermvq score` on the inliers;
- for each kind of outlier the AUROC and the detection rate at 5% false alarms,
  of the combinations and of the baselines (`methods.py`);
- how well maps find what is wrong: that of `dermvq score`, its parts alone,
  and, with --redraw, the difference to an image whose strange codes are drawn
  anew (which takes most of the time). The overlap is the share of the worst
  tenth of the pixels that is wrong, or, if fewer pixels are wrong, the share of
  these that are in the worst tenth. A place is found if it is half or more;
- for each label whether images of other classes stand out under it;
- how often the test of a set finds that some images are changed a little.

What was measured is kept in STUDY; the same command goes on from there.
"""

import argparse
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import files, inference
from dermvq_jax.data import images as image_lib
from dermvq_jax.inference import classifier as classifier_lib
from dermvq_jax.outliers import conformal, measure, reference, restoration
from dermvq_jax.runs import run as run_lib
from experiments import common
from experiments.outliers import made, methods

_ALPHAS = (0.01, 0.05, 0.1)
_WORST = 0.1  # share of the pixels that a map points to
_NUM_TRAIN = 600  # training images that combinations are fitted on
# Kinds whose weak form is mixed into sets, the sets, and how often.
_WEAK = ('blur', 'colour_cast')
_SETS = ((50, 0.2), (50, 1.0), (200, 0.2), (400, 0.1), (400, 0.2))
_NUM_SETS = 20
_OVERLAPS = {
  'overlap': 'map',
  'overlap_error': 'error alone',
  'overlap_bits': 'bits alone',
  'overlap_distance': 'distance alone',
  'overlap_redrawn': 'redrawn',
}
_FOUND = 0.5  # overlap from which on a place counts as found


class _Study:
  """The run that is studied, and the folder that keeps what was measured."""

  def __init__(self, run: run_lib.Run, folder: epath.Path, redraw: bool):
    self._run, self._folder, self._redraw = run, folder, redraw
    self.model = inference.Model(run)
    self.calibration = self.model.calibration
    self._classifier = classifier_lib.Classifier(run)
    codes = run.codes.split('train')
    counts = np.full(self.model.codebook_size, 0.5)
    for i in range(len(codes)):
      counts += np.bincount(codes[i]['codes'].ravel(), minlength=len(counts))
    self._simple_bits = -np.log2(counts / counts.sum())

  def split(self, name: str, number: int | None = None) -> np.ndarray:
    """The images of a split, or `number` random ones, uint8 `[N, H, W, 3]`."""
    source = self._run.images.split(name)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    order = rng.permutation(len(source))[:number]
    return np.stack([source[int(i)]['image'] for i in order])

  def arrays(
    self, name: str, images: np.ndarray, wrong: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """Measures images, unless that was done before."""
    path = self._folder / f'{name}.npz'
    if not path.exists():
      logging.info('%s: %d images', name, len(images))
      self._folder.mkdir(parents=True, exist_ok=True)
      with files.replacing(path) as file:
        np.savez_compressed(file, **self._measure(images, wrong))
    return files.read_arrays(path)

  def _measure(
    self, images: np.ndarray, wrong: np.ndarray | None
  ) -> dict[str, np.ndarray]:
    found = measure.measure(self.model, images, self.calibration.class_prior)
    arrays = {
      'values': self.calibration.table(found.values),
      'simple_bits': self._simple_bits[found.codes].mean((1, 2)),
      'features': self._classifier(images),
    }
    if wrong is not None:
      maps = self.calibration.map(found.parts)
      arrays['overlap'] = overlap(maps, wrong)
      for name in ('error', 'bits', 'distance'):
        arrays[f'overlap_{name}'] = overlap(found.parts[name], wrong)
      if self._redraw:
        restored = restoration.restore(self.model, images, maps)
        arrays['overlap_redrawn'] = overlap(restored.differences, wrong)
    return arrays

  def posterior(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a split `[N]`, log p(class | codes) of all classes `[N, C]`."""
    path = self._folder / f'{name}_posterior.npz'
    if not path.exists():
      records = list(self._run.images.split(name))
      images = np.stack([record['image'] for record in records])
      log_p = self.model.classify(
        images, class_prior=self.calibration.class_prior
      ).log_probs
      with files.replacing(path) as file:
        labels = np.array([record['label'] for record in records])
        np.savez(file, labels=labels, log_p=log_p)
    arrays = files.read_arrays(path)
    return arrays['labels'], arrays['log_p']


def wrong_labels(
  calibration: reference.Calibration,
  labels: np.ndarray,
  log_p: np.ndarray,
  class_names: Sequence[str],
) -> str:
  """How well labels that were changed at random are found, for each class.

  Args:
    calibration: of the run.
    labels: the true labels, int `[N]`.
    log_p: log p(class | codes), `[N, C]`.
    class_names: the names of the C classes.
  """
  rows = []
  for given, name in enumerate(class_names):
    same = calibration.labels == given
    held_out = -calibration.label_log_probs[same]
    weights = calibration.weights[same]
    is_right = labels == given
    right, wrong = -log_p[is_right, given], -log_p[~is_right, given]
    if not len(right) or not len(held_out):
      continue
    shares = [
      (conformal.upper_p_values(held_out, weights, x) <= 0.05).mean()
      for x in (right, wrong)
    ]
    auroc = methods.auroc(right, wrong)
    counts = [name, len(held_out), len(right)]
    rows.append([*counts, *(f'{x:.3f}' for x in (auroc, *shares))])
  header = ['label', 'held-out', 'images', 'AUROC', 'right, p <= 0.05']
  return common.table([*header, 'wrong, p <= 0.05'], rows)


def overlap(maps: np.ndarray, wrong: np.ndarray) -> np.ndarray:
  """How well the worst tenth of a map `[N, H, W]` fits what is wrong, `[N]`."""
  flat, wrong = maps.reshape(len(maps), -1), wrong.reshape(len(maps), -1)
  number = round(_WORST * flat.shape[1])
  worst = np.zeros(flat.shape, bool)
  order = np.argsort(-flat, axis=1)[:, :number]
  np.put_along_axis(worst, order, True, axis=1)
  possible = np.minimum(wrong.sum(1), number)
  return (worst & wrong).sum(1) / np.maximum(possible, 1)


def _table(arrays: Mapping[str, np.ndarray]) -> methods.Table:
  names = ('values', 'simple_bits', 'features')
  return methods.Table(*(arrays[name] for name in names))


def _kinds() -> list[tuple[str, int | None]]:
  """Kinds and strengths, those of one strength with None."""
  graded = [(f.__name__, s) for f in made.GRADED for s in range(3)]
  return graded + [(f.__name__, None) for f in made.SINGLE]


def _title(kind: str, strength: int | None) -> str:
  level = '' if strength is None else f', {made.STRENGTHS[strength]}'
  return kind.replace('_', ' ') + level


def _results(
  found: Mapping[str, Mapping[str, tuple[float, float]]],
  names: Sequence[str],
  which: int,
) -> str:
  """A table of the AUROCs (0) or the detection rates (1), with the means."""
  rows = [[k, *(f'{r[n][which]:.3f}' for n in names)] for k, r in found.items()]
  means = [np.mean([r[n][which] for r in found.values()]) for n in names]
  rows.append(['mean', *(f'{mean:.3f}' for mean in means)])
  return common.table(['outliers', *names], rows)


def study(
  run: run_lib.Run,
  folder: epath.Path,
  split: str,
  number: int,
  seed: int,
  redraw: bool = False,
  left_out: epath.Path | None = None,
) -> str:
  """Measures everything and returns the tables.

  Args:
    run: a run with trained VQ-VAE, prior and classifier.
    folder: keeps what was measured.
    split: the split of the inliers, 'val' or 'test'.
    number: images of each kind of outlier.
    seed: the seed of the outliers.
    redraw: whether strange codes are drawn anew, too.
    left_out: a folder of images of classes that the run has not seen; None: no
      such images.
  """
  s = _Study(run, folder, redraw)
  train = _table(s.arrays('train', s.split('train', _NUM_TRAIN)))
  val = _table(s.arrays('val', s.split('val')))
  images = s.split(split)
  inliers = _table(s.arrays(split, images))
  outliers, overlaps = {}, {}
  for kind, strength in _kinds():
    new, wrong = made.make(kind, strength or 0, images[:number], seed)
    name = (
      f'{split}_{kind}_{strength or 0}_{number}_{seed}' + redraw * '_redraw'
    )
    arrays = s.arrays(name, new, wrong)
    outliers[_title(kind, strength)] = _table(arrays)
    if 'overlap' in arrays:
      overlaps[_title(kind, strength)] = {
        title: arrays[key] for key, title in _OVERLAPS.items() if key in arrays
      }
  if left_out is not None:
    size = s.model.image_size
    files_ = image_lib.list_images(left_out)[0]
    unseen = np.stack([image_lib.read_square(f, size) for f in files_])
    outliers['left out'] = _table(s.arrays(f'left_out_{len(unseen)}', unseen))
  p_values = s.calibration.p_values(inliers.values)
  combinations, baselines = methods.make(s.calibration.names, train, val)
  found = methods.judge(combinations | baselines, inliers, outliers)
  parts = [
    common.table(
      ['alpha', f'flagged of {len(images)}', 'share'],
      [
        [f'{a:g}', int((p_values <= a).sum()), f'{(p_values <= a).mean():.3f}']
        for a in _ALPHAS
      ],
    )
  ]
  for which, title in enumerate(('AUROC', 'Found at 5% false alarms')):
    for names in (combinations, baselines):
      parts += [f'{title}:', _results(found, list(names), which)]
  rows = [
    [
      title,
      *(
        f'{o.mean():.2f} / {(o >= _FOUND).mean():.2f}' for o in parts_.values()
      ),
    ]
    for title, parts_ in overlaps.items()
  ]
  parts += [
    'Maps, overlap / found:',
    common.table(['outliers', *next(iter(overlaps.values()))], rows),
  ]
  parts += [
    'Images of other classes under a label, against those of its own class:',
    wrong_labels(s.calibration, *s.posterior(split), s.model.class_names),
  ]
  weak = {_title(kind, 0): outliers[_title(kind, 0)].values for kind in _WEAK}
  parts += [
    'Sets that the test of drift finds at 0.05:',
    power(s.calibration, inliers.values, weak),
  ]
  return '\n\n'.join(parts)


def power(
  calibration: reference.Calibration,
  inliers: np.ndarray,
  outliers: Mapping[str, np.ndarray],
) -> str:
  """How often the test of a set finds that a part of it is changed.

  Args:
    calibration: of the run.
    inliers: statistics of new lesions, `[N, S]`.
    outliers: statistics of changed images, `[M, S]`, by their title.
  """
  rng = np.random.default_rng(0)
  rows = []
  for title, changed in {'none': inliers, **outliers}.items():
    cells = [title]
    for number, share in _SETS:
      part = round(share * number)
      p_values = []
      for _ in range(_NUM_SETS):
        chosen = np.concatenate(
          [
            rng.permutation(changed)[:part],
            rng.permutation(inliers)[: number - part],
          ]
        )
        found = calibration.drift(
          chosen, np.arange(len(chosen)), num_permutations=199
        )
        p_values.append(found.p_value)
      cells.append(f'{np.mean(np.array(p_values) <= 0.05):.2f}')
    rows.append(cells)
  sets = [f'{number} images, {share:.0%} changed' for number, share in _SETS]
  return common.table(['changed', *sets], rows)


def main(argv: list[str] | None = None):
  """Runs the study and prints the tables."""
  parser = common.parser(__doc__, 'python -m experiments.outliers')
  _add_flags(parser)
  args = parser.parse_args(argv)
  common.setup()
  with common.usage_errors(parser):
    run = run_lib.Run(args.run, args.data_dir)
    tables = study(
      run,
      args.out,
      args.split,
      args.num_images,
      args.seed,
      args.redraw,
      args.left_out,
    )
  print(tables)


def _add_flags(parser: argparse.ArgumentParser):
  parser.add_argument('--run', required=True, help='workdir of the run')
  parser.add_argument('--data_dir', default='', help="the run's datasets")
  parser.add_argument('--out', type=epath.Path, required=True)
  parser.add_argument('--split', choices=('val', 'test'), default='test')
  parser.add_argument(
    '--num_images',
    type=int,
    default=100,
    help='images of each kind of outlier (default: 100)',
  )
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--redraw', action='store_true')
  parser.add_argument(
    '--left_out', type=epath.Path, help='folder of images of unseen classes'
  )


if __name__ == '__main__':
  main()
