"""Reconstructions of images as a folder of files."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, files, inference
from dermvq_jax.data import images
from dermvq_jax.generation import inputs, tables
from dermvq_jax.runs import run as run_lib

_SHEET_COLUMNS = 16


@dataclasses.dataclass
class _Inputs:
  """What is reconstructed.

  Attributes:
    names: the name of each image.
    pixels: uint8 `[H, W, 3]` each.
    labels: int32 `[B]`; None if they are not known.
    skipped: says which other files in the given folders are left out, and why.
  """

  names: list[str] = dataclasses.field(default_factory=list)
  pixels: list[np.ndarray] = dataclasses.field(default_factory=list)
  labels: np.ndarray | None = None
  skipped: list[str] = dataclasses.field(default_factory=list)


def _read_files(paths: Sequence[epath.PathLike], size: int) -> _Inputs:
  """Reads the given image files, and those in the given folders.

  Raises:
    UserError: a given file is missing or unreadable, or a folder has no image.
  """
  found = _Inputs()
  for file, is_given in inputs.find(paths, found.skipped):
    try:
      images.check_name(file)
      found.pixels.append(images.read_square(file, size))
      found.names.append(file.name)
    except errors.UserError as e:
      if is_given:
        raise
      found.skipped.append(f'{e}; it is left out')
  if not found.names:
    raise errors.UserError(f'there is no readable image: {found.skipped[0]}')
  return found


def _read_inputs(
  model: inference.Model,
  paths: Sequence[epath.PathLike],
  split: str | None,
  num_images: int,
) -> _Inputs:
  """Reads the images that the arguments of `reconstruct` name."""
  if bool(paths) == bool(split):
    raise errors.UserError('give either image files or --split')
  if paths:
    return _read_files(paths, model.image_size)
  source = model.run.images.split(split)
  if num_images < 1:
    raise errors.UserError(f'--num_images is {num_images}; give 1 or more')
  records = [source[i] for i in range(min(num_images, len(source)))]
  return _Inputs(
    [record['id'].decode(errors='backslashreplace') for record in records],
    [record['image'] for record in records],
    np.array([record['label'] for record in records], np.int32),
  )


def reconstruct(
  run: run_lib.Run,
  out: epath.PathLike,
  *,
  paths: Sequence[epath.PathLike] = (),
  split: str | None = None,
  num_images: int = 16,
  through_prior: bool = False,
  label: str | None = None,
):
  """Writes reconstructions, `sheet.png` and `errors.csv`; prints the means.

  With `through_prior` each code is also replaced by the prior's most likely
  one given the image's true codes before it (the source report's inference).

  Args:
    run: a run with a trained VQ-VAE.
    out: the new folder.
    paths: files or folders of images; cropped and resized as in training. A
      file in a folder that cannot be read is left out, and is named at the end.
    split: instead of paths, 'train', 'val' or 'test' of the run's dataset.
    num_images: number of images of the split.
    through_prior: whether to use the prior, too.
    label: class of the images in `paths`; by default the null label.

  Raises:
    UserError: the run is not trained, a given image is unreadable, or `out`
      exists.
  """
  if split and label is not None:
    raise errors.UserError(
      'the images of --split have labels; leave out --label'
    )
  model = inference.Model(run)
  train_variance = run.vqvae.facts['train_variance']
  found = _read_inputs(model, paths, split, num_images)
  names, originals = found.names, np.stack(found.pixels)
  labels = found.labels
  if labels is None:
    null_label = len(model.class_names)
    labels = np.repeat(
      model.labels([null_label if label is None else label]), len(names)
    )
  with files.new_folder(out) as folder:
    codes = model.encode(originals)
    results = {'reconstruction': model.decode(codes)}
    rows = [{'image': name} for name in names]
    stems = tables.file_stems([n.rpartition('.')[0] or n for n in names])
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
        mse.mean() / train_variance,
      )
    if through_prior:
      for row, value in zip(rows, log_likelihood):
        row['nll_nats'] = f'{-value:.6g}'
        row['bits_per_code'] = f'{-value / np.log(2) / codes[0].size:.5g}'
      logging.info(
        'prior: nll %.1f nats per image, %.3f bits per code; perplexity of the '
        'true codes %.1f, of the predicted codes %.1f',
        -log_likelihood.mean(),
        -log_likelihood.mean() / np.log(2) / codes[0].size,
        _perplexity(codes),
        _perplexity(predicted),
      )
    tables.write_csv(folder / 'errors.csv', rows)
    sheet = [originals, *results.values()]
    images.save_png(
      folder / 'sheet.png',
      images.sheet([row[:_SHEET_COLUMNS] for row in sheet]),
    )
  logging.info('Wrote %s', out)
  for line in found.skipped:
    logging.warning('%s', errors.printable(line))


def _perplexity(codes: np.ndarray) -> float:
  """exp(entropy of code usage) over all codes."""
  p = np.unique(codes, return_counts=True)[1] / codes.size
  return float(np.exp(-np.sum(p * np.log(p))))
