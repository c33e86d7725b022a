"""Writes what a trained run makes: folders of PNG files with a CSV file."""

import contextlib
import csv
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import __version__, errors, inference
from dermvq_jax.data import images, prepared
from dermvq_jax.evaluation import memorisation
from dermvq_jax.generation import encode
from dermvq_jax.models.priors import sampler
from dermvq_jax.runs import workdirs

_SUFFIXES = ('.jpg', '.jpeg', '.png')
_SHEET_COLUMNS = 16
_FORMULA_STARTS = ('=', '+', '-', '@', '\t', '\r')
# In the text chunks of every image that `sample` writes.
_MARKS = {
  'Synthetic': 'true',
  'Description': 'Synthetic image, drawn by a model. Not a patient, not for '
  'diagnosis.',
  'Software': f'dermvq_jax {__version__}',
}


@contextlib.contextmanager
def _new_folder(out: epath.PathLike) -> Iterator[epath.Path]:
  """A folder that gets its name when all is in it.

  Raises:
    UserError: `out` exists already.
  """
  out = epath.Path(out).expanduser()
  partial = out.parent / f'{out.name}.incomplete'
  if workdirs.is_remote(out) and out.exists() and partial.exists():
    # A bucket renames file by file; that was interrupted.
    out.rmtree()
  if out.exists():
    raise errors.UserError(f'{out} exists already; give another --out')
  if partial.exists():  # of an earlier, interrupted run
    partial.rmtree()
  partial.mkdir(parents=True)
  try:
    yield partial
  except BaseException:
    if partial.exists():  # A bucket has no empty folders.
      partial.rmtree()
    raise
  partial.rename(out)
  logging.info('Wrote %s', out)


def _no_formula(value: Any) -> Any:
  """Text that a spreadsheet would run gets an apostrophe, numbers do not."""
  if not isinstance(value, str) or not value.startswith(_FORMULA_STARTS):
    return value
  try:
    float(value)
    return value
  except ValueError:
    return f"'{value}"


def _write_csv(path: epath.Path, rows: Sequence[dict[str, Any]]):
  with path.open('w') as f:
    writer = csv.DictWriter(f, rows[0], lineterminator='\n')
    writer.writeheader()
    for row in rows:
      writer.writerow({k: _no_formula(v) for k, v in row.items()})


def _file_stem(name: str) -> str:
  """A name from metadata as a file name that stays in its folder."""
  return re.sub(r'[^\w .()-]', '_', name).lstrip('.') or '_'


def _read_mask(mask: str, size: int) -> np.ndarray:
  """A mask by its name or from a file: bool `[size, size]`."""
  if mask in images.MASKS:
    return images.named_mask(mask, size)
  if epath.Path(mask).is_file():
    return images.read_mask(epath.Path(mask), size)
  raise errors.UserError(
    f'there is no mask {mask!r}; give {", ".join(images.MASKS)} or an image '
    'file, white where the image is to be hidden'
  )


def _hide(
  model: inference.Model, image: epath.PathLike, mask: str
) -> tuple[np.ndarray, inference.Masked]:
  """Reads an image and hides a part of it."""
  if not epath.Path(image).is_file():
    raise errors.UserError(f'there is no file {image} to complete')
  original = images.read_square(epath.Path(image), model.image_size)
  masked = model.hide(original, _read_mask(mask, model.image_size))
  logging.info(
    '%d of %d codes do not depend on what is hidden; the others are drawn.',
    masked.known.sum(),
    masked.known.size,
  )
  return original, masked


def _balancing_counts(
  model: inference.Model, workdir: epath.PathLike, data_dir: str
) -> dict[str, int]:
  """How many images each class lacks in training to be the most frequent."""
  model.check_prior()
  dataset, found_in = encode.resolve_dataset(
    model.config.prior, workdir, data_dir
  )
  # The codes have the labels, and are read much faster than images.
  labels = prepared.read_labels(dataset, found_in, 'train')
  counts = np.bincount(labels, minlength=len(model.class_names))
  counts //= prepared.describe(dataset, found_in)['copies']
  lacking = dict(zip(model.class_names, (counts.max() - counts).tolist()))
  for name, have in zip(model.class_names, counts):
    logging.info('%s: %d to train on, %d new', name, have, lacking[name])
  return lacking


def sample(
  workdir: epath.PathLike,
  out: epath.PathLike,
  *,
  counts: dict[str, int] | None = None,
  balance: bool = False,
  seed: int = 0,
  complete: epath.PathLike | None = None,
  mask: str | None = None,
  reject_memorised: float = 0.0,
  data_dir: str = '',
  **controls,
):
  """Writes new images: a folder of PNG files a class and `metadata.csv`.

  The dataset `image_folder` reads that, and torchvision's ImageFolder. Every
  image is marked as synthetic: in its name, its PNG text chunks and the CSV
  file. Beside them is `sheet.png`.

  With `complete` they are completions of an image of which a part is hidden:
  hidden pixels are blanked before encoding, and every code whose receptive
  field has one of them is drawn anew. `original.png` and `masked.png` are
  written too and are the first row of the sheet.

  Args:
    workdir: with trained VQ-VAE and prior.
    out: new folder.
    counts: images per class; the class '' stands for every class.
    balance: instead of counts, as many as even out the classes of the training
      split: each then has as many images as the most frequent one.
    seed: an image depends on seed, class and its number in the class alone.
    complete: an image file, cropped and resized as in training.
    mask: what of it to hide: one of `images.MASKS`, or an image file that is
      white there.
    reject_memorised: leaves out images that look copied from a training image,
      those with a closeness ratio below this (see `memorisation`); 0: none.
    data_dir: where the codes (for `balance`) and the training images are, if
      not where the run found them.
    **controls: of the prior; see `dermvq_jax.sample.Controls`.

  Raises:
    UserError: not trained, unknown class, a control out of its range, no such
      image or mask, a mask that leaves no code or hides nothing, `out` exists,
      nothing to balance, the training images are needed and not found, or all
      images are left out.
  """
  settings = dataclasses.asdict(sampler.Controls(**controls))
  if (complete is None) != (mask is None):
    raise errors.UserError('give --complete and --mask, or neither')
  if balance and (counts or complete is not None):
    raise errors.UserError('--balance goes without --counts and --complete')
  model = inference.load(workdir)
  if balance:
    counts = _balancing_counts(model, workdir, data_dir)
  elif counts and '' in counts:
    counts = dict.fromkeys(model.class_names, counts['']) | counts
    del counts['']
  labels = model.labels(
    [name for name, n in (counts or {}).items() for _ in range(n)]
  )
  if not len(labels):
    raise errors.UserError(
      'the classes are balanced already; give --counts for new images'
      if balance
      else '--counts asks for no image'
    )
  known, sheet = {}, []
  if complete is not None:
    original, masked = _hide(model, complete, mask)
    known = masked.repeat(len(labels))
    sheet = [np.stack([original, masked.image])]
  reject = _rejection(workdir, data_dir, reject_memorised)
  with _new_folder(out) as folder:
    new = model.sample(
      labels, seed=seed, show_progress=True, **settings, **known
    )
    if complete is not None:
      images.save_png(folder / 'original.png', original)
      images.save_png(folder / 'masked.png', masked.image)
      settings |= {'complete': str(complete), 'mask': mask}
    if reject_memorised:
      settings['reject_memorised'] = reject_memorised
    kept = np.flatnonzero(~reject(new))
    names = [model.class_names[labels[i]] for i in kept]
    ids = sampler.count_within_labels(labels)[kept]
    settings = {'seed': seed} | settings
    sheet += _write_samples(folder, new[kept], names, ids, settings)
    images.save_png(folder / 'sheet.png', images.sheet(sheet), _MARKS)


def _write_samples(
  folder: epath.Path,
  new: np.ndarray,
  names: Sequence[str],
  ids: Sequence[int],
  settings: dict[str, Any],
) -> list[np.ndarray]:
  """Writes PNG files and `metadata.csv`.

  Args:
    folder: to write into.
    new: uint8 `[B, H, W, 3]`.
    names: of their classes.
    ids: their numbers in those.
    settings: further columns.

  Returns:
    The first images of each class, uint8 `[N, H, W, 3]`.
  """
  rows, by_class = [], {}
  for name, number, image in zip(names, ids, new):
    stem = _file_stem(name)
    file = f'synthetic_{stem}_{number:05d}.png'
    (folder / stem).mkdir(exist_ok=True)
    images.save_png(folder / stem / file, image, _MARKS | {'Label': name})
    row = {'image': file, 'label': name, 'synthetic': 'true'}
    rows.append(row | {'id': number} | settings)
    by_class.setdefault(name, []).append(image)
  _write_csv(folder / 'metadata.csv', rows)
  return [np.stack(m[:_SHEET_COLUMNS]) for m in by_class.values()]


def _rejection(
  workdir: epath.PathLike, data_dir: str, limit: float
) -> Callable[[np.ndarray], np.ndarray]:
  """What tells which images look copied: uint8 `[B, H, W, 3]` to bool `[B]`.

  Raises:
    UserError: the limit is out of its range, or there are no training images.
  """
  if not 0 <= limit <= 1:
    raise errors.UserError(
      f'--reject_memorised is {limit}; give a number from 0 to 1, such as 0.6'
    )
  if not limit:
    return lambda new: np.zeros(len(new), bool)
  config, facts = workdirs.load_config(workdirs.phase_dir(workdir, 'vqvae'))
  data_dir = workdirs.data_dir(workdir, data_dir or config.data_dir)
  training = prepared.open_split(facts['dataset'], data_dir, 'train')

  def reject(new: np.ndarray) -> np.ndarray:
    bank = memorisation.make_bank(training, None, 'training images')
    near = memorisation.nearest_pixels(new, bank.pixels, bank.groups)
    copied = near.ratio < limit
    logging.info(
      'Dropped %d of %d images that look copied from a training image.',
      copied.sum(),
      len(new),
    )
    if copied.all():
      raise errors.UserError(
        'every image looks copied from a training image; lower '
        f'--reject_memorised={limit}'
      )
    return copied

  return reject


def _find_files(paths: Sequence[epath.PathLike]) -> list[epath.Path]:
  files = []
  for path in map(epath.Path, paths):
    if path.is_dir():
      found = [p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES]
      if not found:
        raise errors.UserError(f'there is no .jpg or .png file in {path}')
      files += sorted(found)
    elif path.exists():
      files.append(path)
    else:
      raise errors.UserError(f'there is no file {path}')
  return files


def _unique_stems(names: Sequence[str]) -> list[str]:
  """File names without suffix; those that came before get a number."""
  seen, stems = set(), []
  for name in names:
    base = stem = _file_stem(name.rpartition('.')[0] or name)
    number = 2
    while stem in seen:
      stem, number = f'{base}_{number}', number + 1
    seen.add(stem)
    stems.append(stem)
  return stems


def _read_inputs(model, facts, paths, split, num_images, data_dir):
  """Returns names, images uint8 `[B, H, W, 3]` and labels or None."""
  if bool(paths) == bool(split):
    raise errors.UserError('give either image files or --split')
  if paths:
    files = _find_files(paths)
    pixels = [images.read_square(f, model.image_size) for f in files]
    return [f.name for f in files], np.stack(pixels), None
  source = prepared.open_split(facts['dataset'], data_dir, split)
  if num_images < 1:
    raise errors.UserError(f'--num_images is {num_images}; give 1 or more')
  records = [source[i] for i in range(min(num_images, len(source)))]
  return (
    [record['id'].decode() for record in records],
    np.stack([record['image'] for record in records]),
    np.array([record['label'] for record in records], np.int32),
  )


def reconstruct(
  workdir: epath.PathLike,
  out: epath.PathLike,
  *,
  paths: Sequence[epath.PathLike] = (),
  split: str | None = None,
  num_images: int = 16,
  through_prior: bool = False,
  label: str | None = None,
  data_dir: str = '',
):
  """Writes reconstructions, `sheet.png` and `errors.csv`; prints the means.

  With `through_prior` each code is also replaced by the prior's most likely
  one given the image's true codes before it (the source report's inference).

  Args:
    workdir: with a trained VQ-VAE.
    out: new folder.
    paths: files or folders of images; cropped and resized as in training.
    split: instead of paths, 'train', 'val' or 'test' of the run's dataset.
    num_images: of the split.
    through_prior: whether to go through the prior too.
    label: class of the images in `paths`; by default the null label.
    data_dir: where the dataset is, if not where the run found it.

  Raises:
    UserError: not trained, unreadable images, `out` exists.
  """
  if split and label is not None:
    raise errors.UserError('--split has labels of its own; leave out --label')
  model = inference.load(workdir)
  config, facts = workdirs.load_config(workdirs.phase_dir(workdir, 'vqvae'))
  names, originals, labels = _read_inputs(
    model,
    facts,
    paths,
    split,
    num_images,
    workdirs.data_dir(workdir, data_dir or config.data_dir),
  )
  if labels is None:
    null_label = len(model.class_names)
    labels = np.repeat(
      model.labels([null_label if label is None else label]), len(names)
    )
  with _new_folder(out) as folder:
    codes = model.encode(originals)
    results = {'reconstruction': model.decode(codes)}
    rows = [{'image': name} for name in names]
    stems = _unique_stems(names)
    if through_prior:
      predicted, log_likelihood = model.predict(codes, labels)
      results['through_prior'] = model.decode(predicted)
    for result, made in results.items():
      mse = np.square((made / 255.0) - originals / 255.0).mean((1, 2, 3))
      for row, stem, image, error in zip(rows, stems, made, mse):
        images.save_png(folder / f'{stem}_{result}.png', image)
        row |= {
          f'{result}_mse': f'{error:.6g}',
          f'{result}_psnr': f'{-10 * np.log10(max(error, 1e-10)):.4g}',
        }
      logging.info(
        '%s: MSE %.5f, PSNR %.2f dB, NMSE %.4f',
        result,
        mse.mean(),
        -10 * np.log10(mse.mean()),
        mse.mean() / facts['train_variance'],
      )
    if through_prior:
      for row, value in zip(rows, log_likelihood):
        row['nll_nats'] = f'{-value:.6g}'
        row['bits_per_code'] = f'{-value / np.log(2) / codes[0].size:.5g}'
      logging.info(
        'prior: nll %.1f nats an image, %.3f bits per code; perplexity of the '
        'true codes %.1f, of the predicted %.1f',
        -log_likelihood.mean(),
        -log_likelihood.mean() / np.log(2) / codes[0].size,
        _perplexity(codes),
        _perplexity(predicted),
      )
    _write_csv(folder / 'errors.csv', rows)
    sheet = [originals, *results.values()]
    images.save_png(
      folder / 'sheet.png',
      images.sheet([row[:_SHEET_COLUMNS] for row in sheet]),
    )


def _perplexity(codes: np.ndarray) -> float:
  """exp(entropy) of the use of codes, over all of them."""
  p = np.unique(codes, return_counts=True)[1] / codes.size
  return float(np.exp(-np.sum(p * np.log(p))))
