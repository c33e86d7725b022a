"""The command; see the package's docstring."""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

import experiments.usefulness
from dermvq_jax import config_files, errors, inference, progress
from dermvq_jax.data import augment, pipeline, prepare
from dermvq_jax.runs import logs, workdirs
from dermvq_jax.training import host_memory, optim, state, tasks
from experiments.usefulness import folds, statistics

# Way of training to how many times the steps are.
WAYS = {
  'real': 1,
  'oversampled': 1,
  'real_and_synthetic': 1,
  'synthetic': 1,
  'oversampled_and_synthetic': 2,
}
_PAIRS = (
  ('oversampled', 'real'),
  ('real_and_synthetic', 'real'),
  ('real_and_synthetic', 'oversampled'),
  ('synthetic', 'real'),
  ('oversampled_and_synthetic', 'oversampled'),
)
_STEPS = {'full': 1250, 'smoke': 4}
_SEEDS = {'full': 3, 'smoke': 1}
_DATASETS = {'full': 'ham10000/64', 'smoke': 'synthetic_dermoscopy/smoke'}
_TABLE, _RESULTS, _SETTINGS = 'usefulness.md', 'results', 'settings.json'
Images = dict[str, np.ndarray]


def compose(way: str, real: Images, new: np.ndarray) -> Images:
  """What a classifier is trained on.

  Args:
    way: one of `WAYS`.
    real: `image` uint8 `[N, H, W, 3]`, `label` int `[N]`.
    new: uint8 `[C, M, H, W, 3]`, M the number of the most frequent class.

  Returns:
    `image` and `label`.
  """
  if way == 'real':
    return real
  per_class = new.shape[1]
  members = [np.flatnonzero(real['label'] == c) for c in range(len(new))]
  # A class without a real image stays without, as no prior has seen it.
  wanted = np.array([per_class if len(m) else 0 for m in members])
  parts = []
  if way.startswith('oversampled'):
    chosen = [np.resize(m, n) for m, n in zip(members, wanted)]
    chosen = np.concatenate(chosen).astype(int)
    parts.append({k: real[k][chosen] for k in ('image', 'label')})
  if way == 'real_and_synthetic':
    wanted -= [len(m) for m in members]
    parts.append(real)
  if way.endswith('synthetic'):
    drawn = {
      'image': np.concatenate([x[:n] for x, n in zip(new, wanted)]),
      'label': np.repeat(np.arange(len(new)), wanted),
    }
    parts.append(drawn)
  return {k: np.concatenate([p[k] for p in parts]) for k in ('image', 'label')}


class _Records:
  """Images as the pipeline reads them."""

  def __init__(self, images: Images):
    self._images = images

  def __len__(self) -> int:
    return len(self._images['label'])

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {
      'image': self._images['image'][index],
      'label': self._images['label'][index],
    }


class Trainer:
  """Trains classifiers of one dataset; what they share is compiled once."""

  def __init__(self, config: Any, facts: dict[str, Any], num_steps: int):
    """See configs/classifier.py for the config."""
    self._config, self._facts, self._num_steps = config, facts, num_steps
    self._tx = optim.make(config.optim, num_steps)
    loss_fn = tasks.make(config, facts).loss_fn
    model = tasks.classifier_model(config, facts)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(train_state, batch):
      _, grads = jax.value_and_grad(loss_fn, has_aux=True)(
        train_state.params,
        train_state.model_state,
        batch,
        jax.random.key(0),  # it draws nothing
        train=True,
      )
      return train_state.update(
        grads, train_state.model_state, self._tx, config.params_ema_decay
      )

    @jax.jit
    def logits(params, images):
      return model.apply({'params': params}, tasks.to_unit(images))

    self._step, self._logits = step, logits

  def __call__(
    self, images: Images, seed: int, description: str
  ) -> Callable[[np.ndarray], np.ndarray]:
    """Trains on images; returns what predicts labels `[N]` of others."""
    config, source = self._config, _Records(images)
    batches = functools.partial(
      pipeline.train_batches,
      source,
      batch_size=config.batch_size,
      seed=seed,
      keys=('image', 'label'),
    )
    task = tasks.make(config, self._facts | {'num_train': len(source)})
    params, model_state = task.init(jax.random.key(seed), batches())
    train_state = state.TrainState.create(
      params, model_state, self._tx, ema=True
    )
    augmented = batches(augment=augment.Augment(**config.augment))
    with progress.bar(
      total=self._num_steps, desc=description, unit='step'
    ) as bar:
      for _ in range(self._num_steps):
        train_state = self._step(train_state, next(augmented))
        bar.update()
    if not _is_finite(train_state.params):
      raise errors.UserError(
        f'the weights of {description} became infinite or NaN; lower '
        'optim.learning_rate in configs/classifier.py'
      )
    apply = functools.partial(self._logits, train_state.eval_params)
    return lambda others: inference.in_chunks(apply, others).argmax(1)


def _is_finite(tree: Any) -> bool:
  return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def _write_json(path: epath.Path, content: Any):
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.incomplete')
  partial.write_text(json.dumps(content) + '\n')
  partial.replace(path)


def missing(
  folder: epath.Path, ways: Sequence[str], num_seeds: int
) -> list[tuple[str, int]]:
  """The ways and seeds of a fold that are not trained and tested yet."""
  return [
    (way, seed)
    for seed in range(num_seeds)
    for way in ways
    if not (folder / f'{way}_{seed}.json').exists()
  ]


def run_fold(
  fold: folds.Fold,
  workdir: epath.Path,
  size: str,
  ways: Sequence[str],
  num_seeds: int,
  guidance_scale: float,
):
  """Trains and tests what is missing of a fold; a file each in `results`.

  Raises:
    UserError: the fold's splits share lesions.
  """
  folder = workdir / _RESULTS / fold.name
  real, held_out = fold.read(['train']), fold.read(fold.held_out)
  if set(real['group']) & set(held_out['group']):
    raise errors.UserError(
      f'{fold.dataset} has images of one lesion in several splits; leave out '
      '--run'
    )
  per_class = int(np.bincount(real['label']).max())
  new = folds.samples(
    fold, per_class, workdir / 'samples' / f'{fold.name}.npz', guidance_scale
  )
  config = config_files.load(
    'classifier' + (':smoke' if size == 'smoke' else '')
  )

  @functools.cache
  def trainer(times: int) -> Trainer:
    return Trainer(config, fold.facts, times * _STEPS[size])

  for way, seed in missing(folder, ways, num_seeds):
    logging.info('%s: %s, seed %d', fold.name, way, seed)
    predict = trainer(WAYS[way])(compose(way, real, new), seed, f'{way} {seed}')
    predicted = predict(held_out['image'])
    _write_json(
      folder / f'{way}_{seed}.json',
      {
        'class_names': fold.facts['class_names'],
        'label': held_out['label'].tolist(),
        'group': held_out['group'].tolist(),
        'predicted': predicted.tolist(),
      },
    )


@dataclasses.dataclass(frozen=True)
class Results:
  """What was trained and tested in all folds that are complete.

  Attributes:
    ways: A names.
    correct: whether predictions are right, bool `[A, S, N]`.
    labels: int `[N]`.
    groups: lesion of each image, `[N]`.
    folds: its fold, int `[N]`.
    class_names: of the classes.
  """

  ways: Sequence[str]
  correct: np.ndarray
  labels: np.ndarray
  groups: Sequence[str]
  folds: np.ndarray
  class_names: Sequence[str]


def read_results(folder: epath.Path, ways: Sequence[str]) -> Results | None:
  """All folds that have these ways; None if there is none.

  Seeds count that all these folds have.
  """
  found: dict[str, dict[int, list[dict[str, Any]]]] = {}
  for fold in sorted(folder.iterdir()) if folder.exists() else ():
    for seed in range(len(list(fold.glob(f'{ways[0]}_*.json')))):
      paths = [fold / f'{way}_{seed}.json' for way in ways]
      if all(path.exists() for path in paths):
        read = [json.loads(path.read_text()) for path in paths]
        found.setdefault(fold.name, {})[seed] = read
  if not found:
    return None
  seeds = set.intersection(*(set(by_seed) for by_seed in found.values()))
  firsts = [by_seed[min(seeds)][0] for by_seed in found.values()]
  labels = np.concatenate([first['label'] for first in firsts])
  predicted = np.concatenate(
    [
      [
        [by_seed[s][a]['predicted'] for s in sorted(seeds)]
        for a in range(len(ways))
      ]
      for by_seed in found.values()
    ],
    axis=-1,
  )
  return Results(
    ways,
    predicted == labels,
    labels,
    [group for first in firsts for group in first['group']],
    np.repeat(np.arange(len(firsts)), [len(f['label']) for f in firsts]),
    firsts[0]['class_names'],
  )


def table(results: Results) -> str:
  """The result in Markdown, conclusions included."""
  correct, labels, groups = results.correct, results.labels, results.groups
  names = results.class_names
  means = statistics.recalls(correct, labels, len(names))
  draws = statistics.bootstrap_recalls(
    correct, labels, groups, results.folds, len(names)
  )
  there = [c for c in range(len(names)) if np.any(labels == c)]
  balanced, balanced_draws = means[:, there].mean(1), draws[..., there].mean(-1)

  def rows() -> Iterator[Sequence[str]]:
    yield ('trained on', 'balanced accuracy', *(names[c] for c in there))
    yield ('---',) * (2 + len(there))
    yield ('held-out images', str(len(labels))) + tuple(
      str(np.sum(labels == c)) for c in there
    )
    for a, way in enumerate(results.ways):
      yield (
        way.replace('_', ' '),
        str(statistics.estimate(balanced[a], balanced_draws[:, a])),
        *(str(statistics.estimate(means[a, c], draws[:, a, c])) for c in there),
      )

  lines = [f'| {" | ".join(row)} |' for row in rows()]
  lines += [
    '',
    f'Recall, with 95% bootstrap intervals over {len(set(groups))} lesions and '
    f'{correct.shape[1]} seed(s) of the classifier, of '
    f'{len(set(results.folds))} fold(s) with one generator each. Where all '
    'or none are right the interval has no width, however few they are. '
    'Balanced accuracy:',
    '',
  ]
  for name, against in _PAIRS:
    if not {name, against} <= set(results.ways):
      continue
    a, b = results.ways.index(name), results.ways.index(against)
    difference = statistics.estimate(
      balanced[a] - balanced[b], balanced_draws[:, a] - balanced_draws[:, b]
    )
    told = (w.replace('_', ' ') for w in (name, against))
    told = statistics.conclude(*told, difference, correct.shape[1])
    lines.append(f'- {told}')
  return '\n'.join(lines)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m experiments.usefulness',
    description=experiments.usefulness.__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--workdir', type=epath.Path, required=True)
  parser.add_argument(
    '--run', type=epath.Path, help='a trained run, instead of folds'
  )
  parser.add_argument(
    '--data_dir', default='', help='prepared datasets (default: WORKDIR/data)'
  )
  parser.add_argument(
    '--manual_dir', help='the source of the dataset, if it is not prepared yet'
  )
  parser.add_argument('--size', choices=_STEPS, default='full')
  parser.add_argument(
    '--dataset', default='', help='default: ham10000/64; of smoke, a drawn one'
  )
  parser.add_argument(
    '--guidance_scale', type=float, default=1.0, help='of samples (default: 1)'
  )
  parser.add_argument('--folds', type=int, default=5, help='default: 5')
  parser.add_argument('--seeds', type=int, help='default: 3; of smoke, 1')
  parser.add_argument(
    '--ways',
    type=lambda text: text.split(','),
    default=list(WAYS),
    help=f'some of the default: {",".join(WAYS)}',
  )
  parser.add_argument('--table', action='store_true', help='train nothing')
  return parser


def _check_settings(args: argparse.Namespace):
  """Keeps results of different settings apart.

  Raises:
    UserError: the workdir was started with others.
  """
  settings = {
    'run': str(args.run.resolve()) if args.run else None,
    'weights': folds.weights(args.run) if args.run else None,
    'dataset': None if args.run else args.dataset or _DATASETS[args.size],
    'folds': None if args.run else args.folds,
    'size': args.size,
    'guidance_scale': args.guidance_scale,
  }
  path = args.workdir / _SETTINGS
  before = json.loads(path.read_text()) if path.exists() else settings
  for name, value in settings.items():
    if before.get(name) != value:
      raise errors.UserError(
        f'{args.workdir} was started with {name} {before.get(name)!r}, not '
        f'{value!r}; use another --workdir, or the old value'
      )
  _write_json(path, settings)


def _train(args: argparse.Namespace, num_seeds: int):
  def go_on(name: str, make: Callable[[], folds.Fold]):
    if missing(args.workdir / _RESULTS / name, args.ways, num_seeds):
      run_fold(
        make(),
        args.workdir,
        args.size,
        args.ways,
        num_seeds,
        args.guidance_scale,
      )

  if args.run:
    fold = folds.of_run(args.run, args.data_dir)
    _check_settings(args)
    go_on(fold.name, lambda: fold)
    return
  dataset = args.dataset or _DATASETS[args.size]
  data_dir = workdirs.data_dir(args.workdir, args.data_dir)
  prepare.run(dataset, data_dir, args.manual_dir)
  _check_settings(args)
  for i in range(args.folds):
    name = folds.folder_name(i, args.folds)
    go_on(
      name,
      functools.partial(
        folds.make_fold,
        args.workdir / name,
        dataset,
        data_dir,
        i,
        args.folds,
        args.size,
      ),
    )


def main(argv: list[str] | None = None):
  """Trains what is missing and prints the table."""
  parser = _parser()
  args = parser.parse_args(argv)
  if args.folds < 2:
    parser.error(f'--folds is {args.folds}; give 2 or more, or --run')
  if not args.ways or set(args.ways) - set(WAYS):
    parser.error(f'--ways are some of {",".join(WAYS)}')
  host_memory.keep()
  logs.setup_console()
  try:
    if not args.table:
      _train(args, args.seeds or _SEEDS[args.size])
  except errors.UserError as e:
    parser.error(str(e))
  results = read_results(args.workdir / _RESULTS, args.ways)
  if results is None:
    parser.error('no fold is complete yet; leave out --table')
  text = table(results)
  (args.workdir / _TABLE).write_text(text + '\n')
  print(text)


if __name__ == '__main__':
  main()
