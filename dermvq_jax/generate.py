"""Writes what a trained run makes: folders of PNG files with a CSV file."""

import contextlib
import csv
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, images, inference, memorisation, workdirs
from dermvq_jax import sample as sampler
from dermvq_jax.data import prepared

_SUFFIXES = ('.jpg', '.jpeg', '.png')
_SHEET_COLUMNS = 16


@contextlib.contextmanager
def _new_folder(out: epath.PathLike) -> Iterator[epath.Path]:
  """A folder that gets its name when all is in it.

  Raises:
    UserError: `out` exists already.
  """
  out = epath.Path(out).expanduser()
  if out.exists():
    raise errors.UserError(f'{out} exists already; give another --out')
  partial = out.with_name(f'{out.name}.incomplete')
  if partial.exists():  # of an earlier, interrupted run
    partial.rmtree()
  partial.mkdir(parents=True)
  try:
    yield partial
  except BaseException:
    partial.rmtree()
    raise
  partial.rename(out)
  logging.info('Wrote %s', out)


def _write_csv(path: epath.Path, rows: Sequence[dict[str, Any]]):
  with path.open('w') as f:
    writer = csv.DictWriter(f, rows[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)


def _named_mask(name: str, size: int) -> np.ndarray:
  """Where `name`, of `MASKS`, hides the image: bool `[size, size]`."""
  y, x = np.mgrid[:size, :size]
  half, third, edge = size // 2, -(-size // 3), max(1, size // 16)
  inner = (slice(third, size - third),) * 2
  rest = (slice(edge, size - edge),) * 2
  center, border = np.zeros((size, size), bool), np.ones((size, size), bool)
  center[inner], border[rest] = True, False
  return {
    'left': x < half,
    'right': x >= half,
    'top': y < half,
    'bottom': y >= half,
    'center': center,
    'border': border,
  }[name]


# Halves of the image; the central third of its side, rounded down, so that the
# codes of images of 64 px see enough around it; a border of a sixteenth.
MASKS = ('left', 'right', 'top', 'bottom', 'center', 'border')
_BLANK = 128  # grey


@dataclasses.dataclass(frozen=True)
class _Completion:
  """What completions of an image start from.

  Attributes:
    original: uint8 `[H, W, 3]`.
    masked: the same with the hidden pixels blanked.
    codes: int32 `[h, w]`, of the masked image.
    known: bool `[h, w]`, the codes that no hidden pixel has a part in.
  """

  original: np.ndarray
  masked: np.ndarray
  codes: np.ndarray
  known: np.ndarray


def _read_completion(
  model: inference.Model, image: epath.PathLike, mask: str
) -> _Completion:
  """Reads an image, hides a part of it and encodes the rest."""
  if not epath.Path(image).is_file():
    raise errors.UserError(f'there is no file {image} to complete')
  original = images.read_square(epath.Path(image), model.image_size)
  if mask in MASKS:
    hidden = _named_mask(mask, model.image_size)
  elif epath.Path(mask).is_file():
    hidden = images.read_mask(epath.Path(mask), model.image_size)
  else:
    raise errors.UserError(
      f'there is no mask {mask!r}; give {", ".join(MASKS)} or an image file, '
      'white where the image is to be hidden'
    )
  if not hidden.any():
    raise errors.UserError(f'the mask {mask} hides nothing; nothing is white')
  masked = np.where(hidden[..., None], np.uint8(_BLANK), original)
  known = model.codes_without(hidden)
  if not known.any():
    raise errors.UserError(
      f'the mask {mask} leaves no code: the encoder sees hidden pixels from '
      'everywhere; hide less'
    )
  logging.info(
    '%d of %d codes do not depend on what is hidden; the others are drawn.',
    known.sum(),
    known.size,
  )
  return _Completion(original, masked, model.encode(masked[None])[0], known)


def sample(
  workdir: epath.PathLike,
  out: epath.PathLike,
  *,
  counts: dict[str, int],
  seed: int = 0,
  complete: epath.PathLike | None = None,
  mask: str | None = None,
  reject_memorised: float = 0.0,
  data_dir: str = '',
  **controls,
):
  """Writes new images: PNG files, `sheet.png` and `samples.csv`.

  With `complete` they are completions of an image of which a part is hidden:
  hidden pixels are blanked before encoding, and every code whose receptive
  field has one of them is drawn anew. `original.png` and `masked.png` are
  written too and are the first row of the sheet.

  Args:
    workdir: with trained VQ-VAE and prior.
    out: new folder.
    counts: images per class; the class '' stands for every class.
    seed: an image depends on seed, class and its number in the class alone.
    complete: an image file, cropped and resized as in training.
    mask: what of it to hide: one of `MASKS`, or an image file that is white
      there.
    reject_memorised: leaves out images that look copied from a training image,
      those with a closeness ratio below this (see `memorisation`); 0: none.
    data_dir: where the training images are, if not where the run found them.
    **controls: of the prior; see `dermvq_jax.sample.Controls`.

  Raises:
    UserError: not trained, unknown class, a control out of its range, no such
      image or mask, a mask that leaves no code or hides nothing, `out` exists,
      the training images are needed and not found, or all images are left out.
  """
  settings = dataclasses.asdict(sampler.Controls(**controls))
  if (complete is None) != (mask is None):
    raise errors.UserError('give --complete and --mask, or neither')
  model = inference.load(workdir)
  if '' in counts:
    counts = dict.fromkeys(model.class_names, counts['']) | counts
    del counts['']
  labels = model.labels([name for name, n in counts.items() for _ in range(n)])
  if not len(labels):
    raise errors.UserError('--counts asks for no image')
  known, sheet = {}, []
  if complete is not None:
    start = _read_completion(model, complete, mask)
    for name, array in (('codes', start.codes), ('mask', start.known)):
      known[f'known_{name}'] = np.repeat(array[None], len(labels), axis=0)
    sheet = [np.stack([start.original, start.masked])]
  reject = _rejection(workdir, data_dir, reject_memorised)
  with _new_folder(out) as folder:
    new = model.sample(
      labels, seed=seed, show_progress=True, **settings, **known
    )
    if complete is not None:
      images.save_png(folder / 'original.png', start.original)
      images.save_png(folder / 'masked.png', start.masked)
      settings |= {'complete': str(complete), 'mask': mask}
    ids = sampler.count_within_labels(labels)
    if reject_memorised:
      settings['reject_memorised'] = reject_memorised
    rows, by_class = [], {}
    for i in np.flatnonzero(~reject(new)):
      name = model.class_names[labels[i]]
      file = f'{name}_{ids[i]:05d}.png'
      images.save_png(folder / file, new[i])
      row = {'file': file, 'label': name, 'id': ids[i], 'seed': seed}
      rows.append(row | settings)
      by_class.setdefault(name, []).append(new[i])
    _write_csv(folder / 'samples.csv', rows)
    sheet += [np.stack(m[:_SHEET_COLUMNS]) for m in by_class.values()]
    images.save_png(folder / 'sheet.png', images.sheet(sheet))


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
    copied = memorisation.nearest_pixels(new, bank.pixels).ratio < limit
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
    base = stem = name.rpartition('.')[0] or name
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
