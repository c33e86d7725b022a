"""Which images are unlike the others, as a table and as pictures of where."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import errors, inference, progress
from dermvq_jax.data import images
from dermvq_jax.generation import inputs, tables
from dermvq_jax.outliers import scoring
from dermvq_jax.outliers import statistics as statistics_lib

_AT_ONCE = 128  # images in memory, besides the strangest ones
# Overlays begin at so many standard deviations and are full from the second on.
_FAINT, _FULL = 1.0, 3.0
_OPACITY = 0.8
_COLOUR = np.array([255, 80, 0])
_FORM = '.5g'


@dataclasses.dataclass(frozen=True)
class Strange:
  """One of the strangest images.

  Attributes:
    row: its row of the table.
    image: uint8 `[H, W, 3]`.
    reconstruction: uint8 `[H, W, 3]`.
    overlay: the image in grey, with what is strange in orange, uint8
      `[H, W, 3]`.
  """

  row: dict[str, Any]
  image: np.ndarray
  reconstruction: np.ndarray
  overlay: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scored:
  """All images that were scored.

  Attributes:
    rows: a row of the table for each image, the strangest first.
    strangest: the images of the first rows.
    alpha: images whose p-value is at most this are flagged.
    problems: why each of the other images was left out.
  """

  rows: list[dict[str, Any]]
  strangest: list[Strange]
  alpha: float
  problems: list[str]

  @property
  def num_flagged(self) -> int:
    """Number of images that are flagged."""
    return sum(row['flagged'] == 'yes' for row in self.rows)


@dataclasses.dataclass(frozen=True)
class _Item:
  """An image that is not read yet; `label` is None if it is not known."""

  name: str
  read: Callable[[], np.ndarray]
  label: int | None


def _items(
  model: inference.Model,
  paths: Sequence[epath.PathLike],
  split: str | None,
  label: str | None,
  problems: list[str],
) -> list[_Item]:
  """Finds the images that the arguments of `score` name."""
  if bool(paths) == bool(split):
    raise errors.UserError('give either image files or --split')
  if split:
    if label is not None:
      raise errors.UserError(
        'the images of --split have labels; leave out --label'
      )
    source = model.run.images.split(split)
    records = model.run.images.split(split, decode_images=False)
    return [
      _Item(
        record['id'].decode(errors='backslashreplace'),
        lambda i=i: source[i]['image'],
        int(record['label']),
      )
      for i, record in enumerate(records)
    ]
  number = None if label is None else int(model.labels([label])[0])
  found = []
  for file, _ in inputs.find(paths, lambda e: problems.append(str(e))):

    def read(file=file):
      images.check_name(file)
      return images.read_square(file, model.image_size)

    found.append(_Item(str(file), read, number))
  return found


def _overlay(image: np.ndarray, strangeness: np.ndarray) -> np.ndarray:
  """Shows a map `[H, W]` over an image, uint8 `[H, W, 3]`."""
  grey = 255 * statistics_lib.grey(image)[..., None]
  opacity = np.clip((strangeness - _FAINT) / (_FULL - _FAINT), 0, 1)
  opacity = _OPACITY * opacity[..., None]
  return np.uint8(np.rint((1 - opacity) * grey + opacity * _COLOUR))


def _row(
  item: _Item,
  scores: scoring.Scores,
  i: int,
  alpha: float,
  class_names: Sequence[str],
) -> dict[str, Any]:
  p_value = scores.p_values[i]
  row = {
    'image': item.name,
    'p_value': f'{p_value:{_FORM}}',
    'flagged': 'yes' if p_value <= alpha else 'no',
    'reasons': scores.reasons[i],
    'map': '',
    'distance': f'{scores.distances[i]:{_FORM}}',
  }
  if scores.label_probs is not None:
    row |= {
      'label': class_names[item.label],
      'label_p_value': f'{scores.label_p_values[i]:{_FORM}}',
      'label_probability': f'{scores.label_probs[i]:{_FORM}}',
      'label_bits_per_code': f'{scores.label_bits[i]:{_FORM}}',
    }
  row |= {name: f'{v[i]:{_FORM}}' for name, v in scores.values.items()}
  return row | {
    f'{name}_p_value': f'{v[i]:{_FORM}}'
    for name, v in scores.value_p_values.items()
  }


def score(
  model: inference.Model,
  *,
  paths: Sequence[epath.PathLike] = (),
  split: str | None = None,
  label: str | None = None,
  alpha: float = 0.05,
  num_maps: int = 32,
) -> Scored:
  """Scores images; few of them are in memory at a time.

  Args:
    model: a run with a trained prior.
    paths: files or folders of images; cropped and resized as in training.
      What cannot be read is left out.
    split: instead of paths, 'train', 'val' or 'test' of the run's dataset.
    label: class of the images in `paths`; None: not known.
    alpha: images whose p-value is at most this are flagged.
    num_maps: number of images in `Scored.strangest`.

  Raises:
    UserError: neither or both of paths and split, alpha or the number is out of
      its range, an unknown class, or no image is readable.
  """
  if not 0 < alpha < 1:
    raise errors.UserError(f'--alpha is {alpha}; give a number between 0 and 1')
  if num_maps < 0:
    raise errors.UserError(f'--num_maps is {num_maps}; give 0 or more')
  problems = []
  items = _items(model, paths, split, label, problems)
  ranked = []
  with progress.bar(total=len(items), desc='score', unit='image') as bar:
    for start in range(0, len(items), _AT_ONCE):
      chunk = items[start : start + _AT_ONCE]
      ranked += _score_chunk(model, chunk, alpha, problems)
      ranked.sort(key=lambda pair: pair[0])
      # Pictures of the strangest images so far are kept.
      ranked[num_maps:] = [(k, r, None) for k, r, _ in ranked[num_maps:]]
      bar.update(len(chunk))
  if not ranked:
    raise errors.UserError(f'there is no readable image: {problems[0]}')
  return Scored(
    [row for _, row, _ in ranked],
    [strange for *_, strange in ranked[:num_maps]],
    alpha,
    problems,
  )


def _score_chunk(
  model: inference.Model,
  chunk: Sequence[_Item],
  alpha: float,
  problems: list[str],
) -> list[tuple[Any, dict[str, Any], Strange]]:
  """Returns the rank, the row and the pictures of each readable image."""
  pixels, items = [], []
  for item in chunk:
    try:
      pixels.append(item.read())
      items.append(item)
    except errors.UserError as e:
      problems.append(str(e))
  if not items:
    return []
  found = np.stack(pixels)
  labels = [item.label for item in items]
  scores = model.score(found, None if None in labels else labels)
  results = []
  for i, item in enumerate(items):
    row = _row(item, scores, i, alpha, model.class_names)
    strange = Strange(
      row,
      found[i],
      scores.reconstructions[i],
      _overlay(found[i], scores.maps[i]),
    )
    rank = (scores.p_values[i], -scores.distances[i], item.name)
    results.append((rank, row, strange))
  return results


def write(folder: epath.Path, scored: Scored):
  """Writes `scores.csv`, and the overlays of the strangest images to `maps/`.

  Args:
    folder: a new folder.
    scored: the images; the column `map` of their rows is set.
  """
  maps = folder / 'maps'
  names = [row.row['image'].rpartition('/')[2] for row in scored.strangest]
  stems = tables.file_stems([n.rpartition('.')[0] or n for n in names])
  for strange, stem in zip(scored.strangest, stems):
    maps.mkdir(exist_ok=True)
    strange.row['map'] = f'maps/{stem}.png'
    images.save_png(maps / f'{stem}.png', strange.overlay)
  tables.write_csv(folder / 'scores.csv', scored.rows)


def log(scored: Scored):
  """Prints how many images are flagged, and which could not be read."""
  number = len(scored.rows)
  logging.info(
    '%d of %d images are flagged at alpha=%g; of images like the held-out '
    'ones, at most %.1f are expected.',
    scored.num_flagged,
    number,
    scored.alpha,
    scored.alpha * number,
  )
  for reason in scored.problems:
    logging.warning('Left out: %s', errors.printable(reason))
