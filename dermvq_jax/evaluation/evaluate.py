"""How good a trained run is: its parts, and the images that it makes."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, inference, progress
from dermvq_jax.data import prepared
from dermvq_jax.evaluation import (
  feature_spaces,
  generation_metrics,
  memorisation,
)
from dermvq_jax.generation import encode
from dermvq_jax.models import losses
from dermvq_jax.models.priors import sampler
from dermvq_jax.runs import checkpoints, workdirs

_CHANNELS = 3
# The classifier's recall of a class is measured on at least so many samples.
_MIN_CLASS_SAMPLES = 25
_MIN_SAMPLES = 10
_NUM_CLOSEST = 24
# Samples are compared with real images of a split; as the floor, the real
# images of another one are.
_FLOOR_SPLIT = {'train': 'val', 'val': 'test', 'test': 'val'}
Result = dict[str, Any]


def _mean(values: np.ndarray) -> float | None:
  """None if there are none; JSON knows no nan."""
  return float(np.mean(values)) if len(values) else None


def _share(part: float, whole: float) -> float | None:
  """None of nothing, or of less."""
  return float(part / whole) if whole > 0 else None


def _confusion(
  labels: np.ndarray, predicted: np.ndarray, number: int
) -> list[list[int]]:
  """How many images, `[true][predicted]`."""
  counts = np.zeros((number, number), int)
  np.add.at(counts, (labels, predicted), 1)
  return counts.tolist()


def measure_prior(
  likelihoods: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str],
  num_codes: int,
  num_values: int,
) -> Result:
  """What a split's likelihoods say, as JSON values.

  Args:
    likelihoods: log p(codes | class) in nats, `[N, C]`.
    labels: int `[N]`, the true classes.
    class_names: of the C classes.
    num_codes: of an image, h * w.
    num_values: of an image, H * W * 3.

  Returns:
    Of the split: `num_images`, `nll_nats` of an image given its class (mean),
    `bits_per_code`, `bits_per_dim` (the same bits over the image's values),
    `accuracy` and `balanced_accuracy` (mean recall of the classes that occur)
    of the most probable class with a uniform class prior, `confusion` (images,
    `[true][predicted]`); `classes`: the same of each class, with its `recall`.
  """
  number = len(class_names)
  nll = -likelihoods[np.arange(len(labels)), labels]
  uniform = np.full(number, 1 / number)
  predicted = inference.posterior(likelihoods, uniform).argmax(axis=1)

  def likelihood(chosen: np.ndarray) -> Result:
    nats = _mean(nll[chosen])
    bits = None if nats is None else nats / np.log(2)
    return {
      'num_images': int(chosen.sum()),
      'nll_nats': nats,
      'bits_per_code': None if bits is None else bits / num_codes,
      'bits_per_dim': None if bits is None else bits / num_values,
    }

  classes = {}
  for label, name in enumerate(class_names):
    chosen = labels == label
    recall = _mean(predicted[chosen] == label)
    classes[name] = likelihood(chosen) | {'recall': recall}
  recalls = [c['recall'] for c in classes.values() if c['recall'] is not None]
  return likelihood(np.ones(len(labels), bool)) | {
    'accuracy': _mean(predicted == labels),
    'balanced_accuracy': _mean(recalls),
    'classes': classes,
    'confusion': _confusion(labels, predicted, number),
  }


_COLUMNS = ('images', 'bits/code', 'bits/dim', 'recall')


def _prior_table(result: Result) -> str:
  """The prior's result as lines of text."""
  rows = [*result['classes'].items()]
  rows.append(('all', result | {'recall': result['accuracy']}))
  width = max(len(name) for name, _ in rows)
  lines = [' ' * width + ''.join(f'{name:>11}' for name in _COLUMNS)]
  for name, row in rows:
    numbers = (row['bits_per_code'], row['bits_per_dim'], row['recall'])
    cells = [f'{row["num_images"]:11d}']
    cells += [f'{"-" if n is None else format(n, ".4f"):>11}' for n in numbers]
    lines.append(f'{name:<{width}}' + ''.join(cells))
  return '\n'.join(lines)


def measure_reconstruction(
  originals: np.ndarray, made: np.ndarray, train_variance: float
) -> Result:
  """Errors and SSIM of reconstructions, uint8 `[N, H, W, 3]`."""
  mse = np.mean(
    [np.square(a / 255.0 - b / 255.0).mean() for a, b in zip(originals, made)]
  )
  ssim = inference.in_chunks(
    jax.jit(lambda a, b: losses.ssim(a / 255.0, b / 255.0)), originals, made
  )
  return {
    'num_images': len(made),
    'mse': float(mse),
    'nmse': float(mse / train_variance),
    'psnr': float(-10 * np.log10(max(mse, 1e-10))),
    'ssim': float(ssim.mean()),
  }


def independent_codes(
  codes: np.ndarray, number: int, rng: np.random.Generator
) -> np.ndarray:
  """Codes each drawn from the training counts of its position alone.

  Args:
    codes: int `[N, h, w]`, those of the training images.
    number: of grids to draw, B.
    rng: source of randomness.

  Returns:
    int `[B, h, w]`; what a prior must beat.
  """
  chosen = rng.integers(len(codes), size=(number, *codes.shape[1:]))
  return np.take_along_axis(codes, chosen, axis=0)


def measure_labels(
  classifier: feature_spaces.Classifier,
  sets: dict[str, tuple[np.ndarray, np.ndarray]],
) -> Result:
  """How often the classifier sees in an image the class it should have.

  Args:
    classifier: trained on real images.
    sets: `real`, `reconstructions` (of these) and `samples`: of each images
      uint8 `[N, H, W, 3]` and the labels they have or were asked for `[N]`.

  Returns:
    Of each set `num_images`, `balanced_accuracy`, its `standard_error`, the
    `recalls` of the classes, `confusion` (images, `[asked for][predicted]`);
    `samples_over_real`, of the balanced accuracies over the classes that both
    have (None if no real image is recognised).
  """
  number = len(classifier.class_names)
  result = {}
  for name, (images, asked) in sets.items():
    predicted = classifier.predict(images)
    accuracy, error = generation_metrics.balanced_accuracy(
      predicted, asked, number
    )
    result[name] = {
      'num_images': len(images),
      'balanced_accuracy': accuracy,
      'standard_error': error,
      'recalls': {
        class_name: _mean(predicted[asked == label] == label)
        for label, class_name in enumerate(classifier.class_names)
      },
      'confusion': _confusion(asked, predicted, number),
    }
  real, made = result['real']['recalls'], result['samples']['recalls']
  # Other classes would count on one side only.
  both = [c for c in real if None not in (real[c], made[c])]
  share = _share(sum(made[c] for c in both), sum(real[c] for c in both))
  return result | {'samples_over_real': share}


# What a result's `generation` and `labels` are of.
SETS = {
  'real': 'other real images (floor)',
  'reconstructions': 'reconstructions (rFID)',
  'real_codes': 'other real images, decoded',
  'samples': 'samples',
  'independent_codes': 'independent codes',
}


def _generation_table(result: Result) -> str:
  """The generation's result as lines of text."""
  columns = ('Frechet', 'KID', '+-', 'precision', 'recall', 'density')
  width = max(map(len, SETS.values()))
  lines = [
    ' ' * width + ''.join(f'{c:>11}' for c in (*columns, 'coverage')),
  ]
  for key, row in result['sets'].items():
    numbers = [v for k, v in row.items() if k != 'num_images']
    lines.append(
      f'{SETS[key]:<{width}}' + ''.join(f'{n:11.4g}' for n in numbers)
    )
  return '\n'.join(lines)


def _memorisation_table(result: Result) -> str:
  lines = []
  for name, space in result['spaces'].items():
    lines.append(
      f'{name}: {space["num_copied"]} of {result["num_samples"]} samples look '
      f'copied (ratio below {space["threshold"]:.2f}; so do '
      f'{space["num_held_out_copied"]} of {result["num_held_out"]} held-out '
      f'images); {space["share_closer_to_train"]:.1%} are closer to training '
      f'images, expected {space["expected_share"]:.1%} '
      f'(p {space["p_value"]:.3g})'
    )
  return '\n'.join(lines)


def _read_images(source: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 `[N, H, W, 3]` and labels int32 `[N]` of a split."""
  records = [
    source[i] for i in progress.bar(range(len(source)), desc=f'read {name}')
  ]
  return (
    np.stack([record['image'] for record in records]),
    np.array([record['label'] for record in records], np.int32),
  )


def _draw(
  model: inference.Model,
  labels: np.ndarray,
  seed: int,
  controls: sampler.Controls,
) -> tuple[np.ndarray, np.ndarray]:
  """A sample for each label, then more of the classes that have few of them.

  Returns:
    uint8 `[N, H, W, 3]` and the labels `[N]`.
  """
  counts = np.bincount(labels, minlength=len(model.class_names))
  missing = np.maximum(_MIN_CLASS_SAMPLES - counts, 0)
  labels = np.concatenate([labels, np.repeat(np.arange(len(counts)), missing)])
  images = model.sample(
    labels, seed=seed, show_progress=True, **dataclasses.asdict(controls)
  )
  return images, labels


def _closest(
  samples: np.ndarray,
  arrays: dict[str, np.ndarray],
  sources: dict[str, Sequence[dict[str, Any]]],
) -> dict[str, np.ndarray]:
  """The samples closest to training images, as pictures, by each space."""
  pictures = {}
  for name in ('pixels', 'features'):
    if f'{name}_ratio' not in arrays:
      continue
    order = np.argsort(arrays[f'{name}_ratio'])[:_NUM_CLOSEST]
    pictures[f'{name}_closest'] = order
    pictures[f'{name}_closest_samples'] = samples[order]
    for bank, source in sources.items():
      pictures[f'{name}_closest_{bank}'] = np.stack(
        [source[int(i)]['image'] for i in arrays[f'{name}_{bank}_index'][order]]
      )
  return pictures


class _Chain:
  """Several sequences as one, in which nothing is read before it is asked."""

  def __init__(self, parts: Sequence[Any]):
    self._parts = parts

  def __len__(self) -> int:
    return sum(map(len, self._parts))

  def __getitem__(self, index: int) -> Any:
    for part in self._parts:
      if index < len(part):
        return part[index]
      index -= len(part)
    raise IndexError


def _evaluate_samples(
  model: inference.Model,
  space: feature_spaces.Features | None,
  classifier: feature_spaces.Classifier | None,
  sources: dict[str, Any],
  train_codes: np.ndarray,
  split: str,
  num_samples: int,
  seed: int,
  controls: sampler.Controls,
) -> tuple[Result, dict[str, np.ndarray]]:
  """What of `run` needs samples: `generation`, `labels`, `memorisation`."""
  rng = np.random.default_rng(seed)
  real, real_labels = _read_images(sources[split], split)
  floor, floor_labels = _read_images(sources[_FLOOR_SPLIT[split]], 'others')
  chosen = rng.permutation(len(floor))[:num_samples]
  floor, floor_labels = floor[chosen], floor_labels[chosen]
  drawn, drawn_labels = _draw(model, floor_labels, seed, controls)
  samples = drawn[:num_samples]
  result = {'generation': None, 'labels': None}
  decoded = model.reconstruct(real)
  if classifier is not None:
    result['labels'] = measure_labels(
      classifier,
      {
        'real': (real, real_labels),
        'reconstructions': (decoded, real_labels),
        'samples': (drawn, drawn_labels),
      },
    )
  if space is not None:
    baseline = independent_codes(train_codes, num_samples, rng)
    sets = {
      'real': (floor, floor_labels),
      'reconstructions': (decoded, real_labels),
      'real_codes': (model.reconstruct(floor), floor_labels),
      'samples': (samples, floor_labels),
      'independent_codes': (model.decode(baseline), None),
    }
    found = {
      name: (feature_spaces.extract(space, images, f'{name}: features'), labels)
      for name, (images, labels) in sets.items()
    }
    of_real = feature_spaces.extract(space, real, f'{split}: features')
    result['generation'] = {
      'num_features': of_real.shape[1],
      'num_real': len(real),
      'floor_split': _FLOOR_SPLIT[split],
      **generation_metrics.measure(
        of_real, real_labels, found, model.class_names
      ),
    }
    kids = result['generation']['sets']
    result['generation']['kid_over_independent'] = _share(
      kids['samples']['kid'], kids['independent_codes']['kid']
    )
  held_out = _Chain([sources['val'], sources['test']])
  # The classifier's features, where they are, of images in all positions: any
  # other's may take hours.
  near = classifier or space
  banks = {
    'train': memorisation.make_bank(sources['train'], near, 'training images'),
    'held_out': memorisation.make_bank(held_out, near, 'held-out images'),
  }
  result['memorisation'], arrays = memorisation.measure(
    samples,
    model.reconstruct(_read_images(held_out, 'held-out images')[0]),
    banks,
    near,
  )
  arrays |= {
    'label': floor_labels,
    'sample_id': sampler.count_within_labels(floor_labels),
    **_closest(
      samples, arrays, {'train': sources['train'], 'held_out': held_out}
    ),
  }
  return result, arrays


def _result_path(workdir: epath.PathLike, split: str) -> epath.Path:
  return epath.Path(workdir) / 'report' / f'evaluate_{split}.json'


def _weights(workdir: epath.Path) -> dict[str, str]:
  folders = {
    phase: workdirs.phase_dir(workdir, phase)
    for phase in ('vqvae', 'prior', 'classifier')
  }
  return {k: checkpoints.best_id(f) for k, f in folders.items() if f.exists()}


def current_result(
  workdir: epath.PathLike, split: str = 'val'
) -> Result | None:
  """What `run` wrote, if that is of the weights that are there now.

  Raises:
    UserError: the file is damaged.
  """
  path = _result_path(workdir, split)
  if not path.exists():
    return None
  try:
    result = json.loads(path.read_text())
    evaluated, _ = result['weights'].items(), result['made_by']
  except (ValueError, KeyError, AttributeError) as e:
    raise errors.UserError(
      f'{path} is damaged or of an earlier version; remove it, or run dermvq '
      f'evaluate --split={split} again'
    ) from e
  weights = _weights(epath.Path(workdir))
  is_current = all(weights.get(phase) == name for phase, name in evaluated)
  return result if is_current else None


def run(
  workdir: epath.PathLike,
  split: str = 'val',
  data_dir: str = '',
  *,
  space: feature_spaces.Features | None = None,
  num_samples: int | None = None,
  seed: int = 0,
  **controls,
) -> Result:
  """Evaluates a run; prints tables and writes them to `workdir/report`.

  `report/evaluate_<split>.json` holds what is returned:

  - `split`, `dataset` (of images), `seed`, `controls` (of the samples), `space`
    (name of the feature space, None if there was none), `weights` (what tells
    the weights of each phase from others), `made_by` (see `workdirs.made_by`).
  - `prior`: of the codes of the split; see `measure_prior`.
  - `reconstruction`: of its images; see `measure_reconstruction`.
  - `generation` (None without a space): `num_features`, `num_real` (images of
    the split, with which all is compared), `sets`: each with what
    `generation_metrics.compare` gives: `real` (images of `floor_split`: the
    floor), `reconstructions` (of the split's own images: rFID), `real_codes`
    (of `floor_split`'s images: what a perfect prior would reach), `samples`
    (one for each image of `floor_split`, of its class), `independent_codes`
    (decoded from codes that are drawn independently from each position's
    training counts). All but `reconstructions` have as many images.
    `kid_over_independent`: KID of samples over that of independent codes (None
    if features do not tell these from real images).
    `classes`: class to sets, for classes of 100 real images and more.
  - `labels` (None without a classifier): see `measure_labels`.
  - `memorisation`: `num_samples`, `num_train`, `num_held_out` (all of val and
    test) and `spaces`: of `pixels` and, with a classifier or a space (the
    former if there are both), `features`:
    `threshold` (closeness ratio below which a sample counts as copied),
    `num_copied`, `num_held_out_copied`, `ratio_quantiles`,
    `held_out_ratio_quantiles`, `ratio_p_value`, `share_closer_to_train`,
    `expected_share`, `p_value`; the module `memorisation` explains them.

  The last three are missing with `num_samples` 0. Otherwise
  `report/nearest_<split>.npz` has, of every sample: `label`, `sample_id` (its
  number in its class), and for `<space>` pixels or features `<space>_ratio`,
  `<space>_copied`, `<space>_<bank>_id`, `_index`, `_distance` of the nearest
  image, `<bank>` being train or held_out. And of the 24 with the lowest ratio:
  `<space>_closest` (their numbers), `<space>_closest_samples`,
  `<space>_closest_train` and `<space>_closest_held_out`, uint8 `[24, H, W, 3]`.

  Args:
    workdir: with trained VQ-VAE and prior.
    split: 'train', 'val' or 'test' of the codes the prior was trained on.
    data_dir: where the data are, if not where the run found them.
    space: features in which images are compared: a function of uint8
      `[B, H, W, 3]` to `[B, F]`, such as `features.Inception(file)`. By default
      the run's classifier, if trained.
    num_samples: how many to draw; by default one for each image of the split
      that measures the floor. 0: none.
    seed: of the samples.
    **controls: of the samples; see `dermvq_jax.sample.Controls`.

  Raises:
    UserError: not trained, the data are not in `data_dir`, a number of samples
      or a control out of its range, or features that are none.
  """
  chosen = sampler.Controls(**controls)
  workdir = epath.Path(workdir).expanduser()
  model = inference.load(workdir)
  model.check_prior()
  codes_dataset, codes_dir = encode.resolve_dataset(
    model.config.prior, workdir, data_dir
  )
  codes = {
    name: prepared.open_split(codes_dataset, codes_dir, name)
    for name in {split, 'train'}
  }
  _, facts = workdirs.load_config(workdirs.phase_dir(workdir, 'vqvae'))
  images_dir = workdirs.data_dir(
    workdir, data_dir or model.config.vqvae.data_dir
  )
  sources = {
    name: prepared.open_split(facts['dataset'], images_dir, name)
    for name in ('train', 'val', 'test')
  }
  fewest = min(len(sources[name]) for name in (split, _FLOOR_SPLIT[split]))
  if num_samples != 0 and fewest < _MIN_SAMPLES:
    raise errors.UserError(
      f'samples are compared with {_MIN_SAMPLES} real images or more, but '
      f'{split} or {_FLOOR_SPLIT[split]} has {fewest}; give --num_samples=0 to '
      'measure the rest'
    )
  most = len(sources[_FLOOR_SPLIT[split]])
  num_samples = most if num_samples is None else num_samples
  if num_samples and not _MIN_SAMPLES <= num_samples <= most:
    raise errors.UserError(
      f'{num_samples} samples: give --num_samples from {_MIN_SAMPLES} to '
      f'{most}, the number of real images that measure the floor, or 0 for none'
    )
  classifier = None
  if feature_spaces.has_classifier(workdir):
    classifier = feature_spaces.Classifier(workdir)
  if space is None:
    space = classifier
  result = {
    'split': split,
    'dataset': facts['dataset'],
    'seed': seed,
    'controls': dataclasses.asdict(chosen),
    'space': space and getattr(space, '__name__', type(space).__name__),
    'weights': _weights(workdir),
    'made_by': workdirs.made_by(),
  }

  records = [codes[split][i] for i in range(len(codes[split]))]
  grids = np.stack([record['codes'] for record in records])
  result['prior'] = {'dataset': codes_dataset} | measure_prior(
    model.class_log_likelihoods(grids, show_progress=True),
    np.array([record['label'] for record in records]),
    model.class_names,
    num_codes=grids[0].size,
    num_values=model.image_size**2 * _CHANNELS,
  )
  originals, _ = _read_images(sources[split], split)
  result['reconstruction'] = measure_reconstruction(
    originals, model.reconstruct(originals), facts['train_variance']
  )
  path = _result_path(workdir, split)
  path.parent.mkdir(parents=True, exist_ok=True)
  nearest = path.with_name(f'nearest_{split}.npz')
  nearest.unlink(missing_ok=True)  # of another evaluation
  if num_samples:
    train_codes = np.stack(
      [codes['train'][i]['codes'] for i in range(len(codes['train']))]
    )
    measured, arrays = _evaluate_samples(
      model,
      space,
      classifier,
      sources,
      train_codes,
      split,
      num_samples,
      seed,
      chosen,
    )
    result |= measured
    partial = nearest.with_name(f'{nearest.name}.incomplete')
    with partial.open('wb') as f:
      np.savez_compressed(f, **arrays)
    partial.replace(nearest)
    logging.info('Wrote %s', nearest)
  _tell(result, workdir)
  workdirs.write_text(path, json.dumps(result, indent=2) + '\n')
  logging.info('Wrote %s', path)
  return result


def _tell(result: Result, workdir: epath.Path):
  """Prints the result."""
  prior, reconstruction = result['prior'], result['reconstruction']
  logging.info('%s', _prior_table(prior))
  logging.info(
    "Classes by Bayes' rule, each as likely before: accuracy %.4f, balanced "
    '%.4f',
    prior['accuracy'],
    prior['balanced_accuracy'],
  )
  logging.info(
    'Reconstructions: MSE %.3g, NMSE %.4f, PSNR %.2f dB, SSIM %.4f',
    reconstruction['mse'],
    reconstruction['nmse'],
    reconstruction['psnr'],
    reconstruction['ssim'],
  )
  if 'memorisation' not in result:
    return
  if result['generation']:
    logging.info('%s', _generation_table(result['generation']))
  else:
    logging.info(
      'No space of features to compare samples in; run dermvq train '
      '--config=classifier --workdir=%s for one.',
      workdir,
    )
  if result['labels']:
    told = ', '.join(
      f'{row["balanced_accuracy"]:.3f} on {name}'
      for name, row in result['labels'].items()
      if isinstance(row, dict)
    )
    share = result['labels']['samples_over_real']
    logging.info(
      'The classifier: balanced accuracy %s%s',
      told,
      '' if share is None else f' ({share:.2f} of real)',
    )
  logging.info('%s', _memorisation_table(result['memorisation']))
