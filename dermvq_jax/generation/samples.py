"""Writes new images, and completions of given images, to a folder."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import __version__, errors, files, inference
from dermvq_jax.data import images
from dermvq_jax.evaluation import nearest_images
from dermvq_jax.generation import tables
from dermvq_jax.models.priors import randomness, sampler
from dermvq_jax.outliers import reference, scoring
from dermvq_jax.runs import run as run_lib

_Counts = dict[str, int]  # number of images of each class
_Where = dict[str, str]  # the name of a value of each condition
_SHEET_COLUMNS = 16
_MAX_IMAGES = 100_000  # They are in memory together.
# In the text chunks of every image that is made.
MARKS = {
  'Synthetic': 'true',
  'Description': 'Synthetic image, made by a model. Not a patient, not for '
  'diagnosis.',
  'Software': f'dermvq_jax {__version__}',
}


def _hide(
  model: inference.Model, image: epath.PathLike, mask: str
) -> tuple[np.ndarray, inference.Masked]:
  """Reads an image, uint8 `[H, W, 3]`, and hides a part of it."""
  [original] = model.preprocess(image)
  masked = model.hide(original, mask)
  logging.info(
    'Keeping %d of %d codes; resampling the rest.',
    masked.known.sum(),
    masked.known.size,
  )
  return original, masked


def balancing_counts(
  labels: np.ndarray, class_names: Sequence[str], copies: int = 1
) -> dict[str, int]:
  """How many images each class lacks to be as large as the largest one.

  Args:
    labels: int `[N]`, the labels of the training images.
    class_names: names of the labels.
    copies: how often each training image occurs in `labels`.
  """
  counts = np.bincount(labels, minlength=len(class_names)) // copies
  lacking = dict(zip(class_names, (counts.max() - counts).tolist()))
  for name, have in zip(class_names, counts):
    shown = errors.printable(name)
    logging.info('%s: %d training images, %d new', shown, have, lacking[name])
  return lacking


def _check_seen(
  run: run_lib.Run, model: inference.Model, counts: _Counts, where: _Where
):
  """Checks that the prior has seen what is asked for.

  Reads records of the training split only until each class has come, with the
  values of all conditions. The codes need not be where the samples are made;
  then nothing is checked.

  Raises:
    UserError: a class or a value has no training image, so its samples mean
      nothing.
  """
  names = [name for name, number in counts.items() if number]
  unseen = dict(zip(model.labels(names).tolist(), names))
  values = model.condition_values(where)
  values = {name: int(values[name][0]) for name in where}
  unseen_values, never_together = dict(values), dict(unseen)
  try:
    for record in run.codes.split('train'):
      label = int(record['label'])
      shown = [name for name in values if record[name] == values[name]]
      unseen.pop(label, None)
      for name in shown:
        unseen_values.pop(name, None)
      if len(shown) == len(values):
        never_together.pop(label, None)
      if not never_together:
        return
  except errors.UserError as e:
    if run.prior.is_exported:  # It has no data, but knows the classes.
      untrained = {*names} & {*run.vqvae.facts.get('untrained_classes', ())}
      if untrained:
        _refuse_unseen(untrained, counts)
      return
    logging.info('Not checked if each class has training images: %s', e)
    return
  if unseen:
    _refuse_unseen(set(unseen.values()), counts)
  for name in unseen_values:
    raise errors.UserError(
      f'no training image has {name} {where[name]}, so the prior has not '
      'learned it; leave it out of --where'
    )
  logging.warning(
    'No training image of %s has %s together: the prior combines what it '
    'learned of each alone.',
    errors.printable(', '.join(never_together.values())),
    errors.printable(', '.join(f'{k} {v}' for k, v in where.items())),
  )


def _refuse_unseen(unseen: set[str], counts: _Counts):
  """Raises UserError for classes without a training image."""
  rest = ','.join(
    f'{name}={number}'
    for name, number in counts.items()
    if number and name not in unseen
  )
  raise errors.UserError(
    f'no training image has the class {", ".join(sorted(unseen))}, so the '
    'prior has not learned it; leave it out'
    + (f': --counts={rest}' if rest else '')
  )


def _named(model: inference.Model, where: _Where) -> _Where:
  """Returns the conditions with the names of their values.

  Raises:
    UserError: the prior knows no such condition or value.
  """
  if not where:
    return {}
  numbers, names = model.condition_values(where), model.conditions
  return {name: names[name][int(numbers[name][0])] for name in where}


def _choose_labels(
  run: run_lib.Run,
  model: inference.Model,
  counts: _Counts | None,
  balance: bool,
  where: _Where,
) -> np.ndarray:
  """Returns the label of each image to make; arguments as in `sample`."""
  if balance:
    model.check_prior()
    # The codes have the labels, and are read much faster than images.
    training = run.codes.labels('train')
    counts = balancing_counts(
      training, model.class_names, run.codes.facts['copies']
    )
    seen = {model.class_names[label] for label in np.unique(training)}
    if unseen := set(model.class_names) - seen:
      _refuse_unseen(unseen, counts)
  elif counts and '' in counts:
    counts = dict.fromkeys(model.class_names, counts['']) | counts
    del counts['']
  total = sum((counts or {}).values())
  if total > _MAX_IMAGES:
    raise errors.UserError(
      f'{"--balance" if balance else "--counts"} asks for {total:,} images; '
      f'give --counts for {_MAX_IMAGES:,} at most, and another --seed and '
      '--out for the next'
    )
  labels = model.labels(
    [name for name, n in (counts or {}).items() for _ in range(n)]
  )
  if not len(labels):
    raise errors.UserError(
      'the classes are balanced already; give --counts for new images'
      if balance
      else '--counts asks for no image'
    )
  model.check_prior()
  if where or not balance:
    _check_seen(run, model, counts, where)
  return labels


@dataclasses.dataclass(frozen=True)
class Samples:
  """New images, without those that were dropped.

  Attributes:
    images: uint8 `[B, H, W, 3]`.
    names: the class of each, `[B]`.
    ids: the number of each in its class, `[B]`.
    settings: how they were made; columns of `metadata.csv`.
    start: of completions: the image, and the same with its hidden part grey,
      uint8 `[2, H, W, 3]`; otherwise None.
  """

  images: np.ndarray
  names: list[str]
  ids: np.ndarray
  settings: dict[str, Any]
  start: np.ndarray | None


def draw(
  model: inference.Model,
  *,
  counts: dict[str, int] | None = None,
  balance: bool = False,
  where: dict[str, str] | None = None,
  seed: int = 0,
  complete: epath.PathLike | None = None,
  mask: str | None = None,
  reject_memorised: float = 0.0,
  reject_unlike: float = 0.0,
  **controls,
) -> Samples:
  """Samples new images, or completions of an image, but writes nothing.

  With `complete` every code that stands for a hidden pixel is sampled anew.

  Args:
    model: a run with trained VQ-VAE and prior.
    counts: images of each class; the class '' stands for every class.
    balance: instead of counts, tops up every class until it is as large as the
      largest class of the training split.
    where: the name of a value, or a number inside of its range, for some of the
      conditions that the prior knows. They are columns of `metadata.csv`.
    seed: an image depends only on seed, class, `where` and its number in the
      class.
    complete: an image file, cropped and resized as in training.
    mask: the part to hide: one of `images.MASKS`, or an image file that is
      white there.
    reject_memorised: drops images that look copied from a training image:
      their memorisation ratio (see `memorisation`) is below this; 0: drops no
      image.
    reject_unlike: drops images that are unlike reconstructions of held-out
      images: their p-value is at most this (see `outliers.scoring`); 0: drops
      no image.
    **controls: how to sample; see `sampler.Controls`.

  Raises:
    UserError: the run is not trained, a class, condition or value is unknown or
      has no training image, a control is out of its range, there is no such
      image or mask, the mask leaves no code or hides nothing, there
      is nothing to balance, the training images are needed and not found, or
      all images are dropped.
  """
  settings = dataclasses.asdict(sampler.Controls(**controls))
  if (complete is None) != (mask is None):
    raise errors.UserError('give --complete and --mask, or neither')
  if balance and (counts or complete is not None):
    raise errors.UserError(
      '--balance cannot go with --counts or --complete; leave out one of them'
    )
  run = model.run
  where = _named(model, where or {})
  labels = _choose_labels(run, model, counts, balance, where)
  known, start = {}, None
  if complete is not None:
    original, masked = _hide(model, complete, mask)
    known = masked.repeat(len(labels))
    start = np.stack([original, masked.image])
  rejections = [
    _rejection(run, reject_memorised),
    _rejection_of_unlike(model, reject_unlike),
  ]
  new = model.sample(
    labels, seed=seed, show_progress=True, **settings, **known, **where
  )
  if complete is not None:
    settings |= {'complete': str(complete), 'mask': mask}
  if reject_memorised:
    settings['reject_memorised'] = reject_memorised
  if reject_unlike:
    settings['reject_unlike'] = reject_unlike
  kept = np.flatnonzero(~_rejected(rejections, new))
  return Samples(
    new[kept],
    [model.class_names[labels[i]] for i in kept],
    randomness.count_within_labels(labels)[kept],
    dict.fromkeys(model.conditions, '') | where | {'seed': seed} | settings,
    start,
  )


def sample(run: run_lib.Run, out: epath.PathLike, **what):
  """Draws new images and writes them, see `write`, to a new folder.

  Args:
    run: a run with trained VQ-VAE and prior.
    out: the new folder.
    **what: what to sample, and how; see `draw`.

  Raises:
    UserError: `out` exists, or as in `draw`.
  """
  model = inference.Model(run)
  with files.new_folder(out) as folder:
    write(folder, draw(model, **what), model.class_names)


def write(
  folder: epath.Path, drawn: Samples, class_names: Sequence[str]
) -> list[epath.Path]:
  """Writes a folder of PNG files for each class, and `metadata.csv`.

  The dataset `image_folder` can read this folder; so can torchvision's
  ImageFolder. Every image is marked as synthetic: in its name, its PNG text
  chunks and the CSV file. `sheet.png` shows some of them.

  Of completions `original.png` and `masked.png` are written too and are the
  first row of the sheet.

  Args:
    folder: an empty folder.
    drawn: the images.
    class_names: all classes of the run.

  Returns:
    The file of each image.
  """
  paths, rows, by_class, sheet = [], [], {}, []
  if drawn.start is not None:
    for name, image in zip(('original', 'masked'), drawn.start):
      images.save_png(folder / f'{name}.png', image)
    sheet = [drawn.start]
  stems = dict(zip(class_names, tables.file_stems(class_names)))
  for name, number, image in zip(drawn.names, drawn.ids, drawn.images):
    stem = stems[name]
    path = folder / stem / f'synthetic_{stem}_{number:05d}.png'
    path.parent.mkdir(exist_ok=True)
    images.save_png(path, image, MARKS | {'Label': name})
    row = {'image': path.name, 'label': name, 'synthetic': 'true'}
    rows.append(row | {'id': number} | drawn.settings)
    by_class.setdefault(name, []).append(image)
    paths.append(path)
  tables.write_csv(folder / 'metadata.csv', rows)
  sheet += [np.stack(m[:_SHEET_COLUMNS]) for m in by_class.values()]
  images.save_png(folder / 'sheet.png', images.sheet(sheet), MARKS)
  return paths


_Rejection = Callable[[np.ndarray], np.ndarray]  # [B, H, W, 3] to bool [B]


def _rejected(rejections: Sequence[_Rejection], new: np.ndarray) -> np.ndarray:
  """Which images are dropped, bool `[B]`.

  Raises:
    UserError: all of them.
  """
  rejected = np.any([reject(new) for reject in rejections], axis=0)
  if rejected.all():
    raise errors.UserError(
      'every image is dropped; lower --reject_memorised or --reject_unlike'
    )
  return rejected


def _rejection_of_unlike(model: inference.Model, limit: float) -> _Rejection:
  """Makes the function that finds images unlike the run's own.

  Args:
    model: the model that made them.
    limit: the p-value up to which an image is unlike; 0: none is.

  Raises:
    UserError: the limit is out of its range, or the run's images are needed and
      not found.
  """
  if not 0 <= limit < 1:
    raise errors.UserError(
      f'--reject_unlike is {limit}; give a number from 0 to 1, such as 0.05'
    )
  if not limit:
    return lambda new: np.zeros(len(new), bool)
  calibration = reference.load(model.run, model, reconstructed=True)

  def reject(new: np.ndarray) -> np.ndarray:
    unlike = scoring.score(model, calibration, new).p_values <= limit
    logging.info(
      'Dropped %d of %d images that are unlike reconstructions of held-out '
      'images; of these reconstructions, %.1f would be dropped.',
      unlike.sum(),
      len(new),
      limit * len(new),
    )
    return unlike

  return reject


def _rejection(run: run_lib.Run, limit: float) -> _Rejection:
  """Makes the function that finds images that look copied.

  Args:
    run: the run whose training images may have been copied.
    limit: the memorisation ratio below which an image looks copied; 0: none
      does.

  Returns:
    A function of uint8 `[B, H, W, 3]`, to bool `[B]`.

  Raises:
    UserError: the limit is out of its range, or there are no training images.
  """
  if not 0 <= limit <= 1:
    raise errors.UserError(
      f'--reject_memorised is {limit}; give a number from 0 to 1, such as 0.6'
    )
  if not limit:
    return lambda new: np.zeros(len(new), bool)
  training = run.images.split('train')

  def reject(new: np.ndarray) -> np.ndarray:
    bank = nearest_images.make_bank(training, None, 'training images')
    near = nearest_images.nearest_pixels(new, bank.pixels, bank.groups)
    copied = near.ratio < limit
    logging.info(
      'Dropped %d of %d images that look copied from a training image.',
      copied.sum(),
      len(new),
    )
    return copied

  return reject
