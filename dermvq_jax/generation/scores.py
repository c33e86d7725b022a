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
_MIN_SET = 20  # lesions of a set that is tested for drift
_NUM_DIFFERENCES = 3


@dataclasses.dataclass(frozen=True)
class Strange:
  """One of the strangest images.

  Attributes:
    row: its row of the table.
    image: uint8 `[H, W, 3]`.
    reconstruction: uint8 `[H, W, 3]`.
    strangeness: `Scores.maps` of it, float32 `[H, W]`.
  """

  row: dict[str, Any]
  image: np.ndarray
  reconstruction: np.ndarray
  strangeness: np.ndarray

  @property
  def overlay(self) -> np.ndarray:
    """The image in grey, with what is strange in orange, uint8 `[H, W, 3]`."""
    grey = 255 * statistics_lib.grey(self.image)[..., None]
    opacity = np.clip((self.strangeness - _FAINT) / (_FULL - _FAINT), 0, 1)
    opacity = _OPACITY * opacity[..., None]
    return np.uint8(np.rint((1 - opacity) * grey + opacity * _COLOUR))


@dataclasses.dataclass(frozen=True)
class Scored:
  """All images that were scored.

  Attributes:
    rows: a row of the table for each image, the strangest first.
    strangest: the images of the first rows.
    alpha: images whose p-value is at most this are flagged.
    problems: lines that say which other images are left out, and why.
    drift: in words, whether the images as a set differ from the held-out ones.
  """

  rows: list[dict[str, Any]]
  strangest: list[Strange]
  alpha: float
  problems: list[str]
  drift: str

  @property
  def num_flagged(self) -> int:
    """Number of images that are flagged."""
    return sum(row['flagged'] == 'yes' for row in self.rows)


@dataclasses.dataclass(frozen=True)
class _Item:
  """An image that is not read yet.

  Attributes:
    name: the name in the table.
    read: returns uint8 `[H, W, 3]`, or raises UserError.
    label: its class; None: not known.
    group: its lesion; its name if that is not known.
  """

  name: str
  read: Callable[[], np.ndarray]
  label: int | None
  group: str


_Readable = list[tuple[_Item, np.ndarray]]  # with uint8 `[H, W, 3]`


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
    if split != 'test':
      logging.warning(
        'The run knows the images of %s: their p-values are not calibrated.',
        split,
      )
    source = model.run.images.split(split)
    records = model.run.images.split(split, decode_images=False)
    return [
      _Item(
        record['id'].decode(errors='backslashreplace'),
        lambda i=i: source[i]['image'],
        int(record['label']),
        record['group'].decode(),
      )
      for i, record in enumerate(records)
    ]
  number = None if label is None else int(model.labels([label])[0])
  found = []
  for file, _ in inputs.find(paths, problems, keep_going=True):

    def read(file=file):
      images.check_name(file)
      return images.read_square(file, model.image_size)

    found.append(_Item(str(file), read, number, str(file)))
  return found


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
    UserError: neither or both of paths and split, alpha is out of its range, an
      unknown class, or no image is readable.
  """
  if not 0 < alpha < 1:
    raise errors.UserError(f'--alpha is {alpha}; give a number between 0 and 1')
  problems = []
  items = _items(model, paths, split, label, problems)
  ranked, values, groups = [], [], []
  with progress.bar(total=len(items), desc='score', unit='image') as bar:
    for start in range(0, len(items), _AT_ONCE):
      chunk = items[start : start + _AT_ONCE]
      if readable := _read(chunk, problems):
        scores = _score(model, readable)
        ranked += _rank(readable, scores, alpha, model.class_names)
        values.append(model.calibration.table(scores.values))
        groups += [item.group for item, _ in readable]
      ranked.sort(key=lambda entry: entry[0])
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
    _drift(model, np.concatenate(values), np.array(groups)),
  )


def _read(items: Sequence[_Item], problems: list[str]) -> _Readable:
  """Reads images; those that cannot be read are added to the problems."""
  readable = []
  for item in items:
    try:
      readable.append((item, item.read()))
    except errors.UserError as e:
      problems.append(f'{e}; it is left out')
  return readable


def _score(model: inference.Model, readable: _Readable) -> scoring.Scores:
  labels = [item.label for item, _ in readable]
  images_ = np.stack([image for _, image in readable])
  return model.score(images_, None if None in labels else labels)


def _rank(
  readable: _Readable,
  scores: scoring.Scores,
  alpha: float,
  class_names: Sequence[str],
) -> list[tuple[Any, dict[str, Any], Strange]]:
  """Returns the rank, the row and the pictures of each image."""
  results = []
  for i, (item, image) in enumerate(readable):
    row = _row(item, scores, i, alpha, class_names)
    # Copies: a part of an array would keep all of it in memory.
    made, where = scores.reconstructions[i].copy(), scores.maps[i].copy()
    strange = Strange(row, image, made, where)
    rank = (scores.p_values[i], -scores.distances[i], item.name)
    results.append((rank, row, strange))
  return results


def _drift(
  model: inference.Model, values: np.ndarray, groups: np.ndarray
) -> str:
  """Says whether a set of images differs from the held-out ones."""
  number = len(np.unique(groups))
  if number < _MIN_SET:
    return (
      f'Whether the set as a whole differs is tested from {_MIN_SET} lesions '
      f'on; these are {number}.'
    )
  found = model.calibration.drift(values, groups)
  words = [scoring.REASONS[name] for name in model.calibration.names]
  words.append(scoring.DISTANCE_REASON)
  largest = np.argsort(-np.abs(found.differences))[:_NUM_DIFFERENCES]
  reasons = ', '.join(
    f'{words[i][int(found.differences[i] > 0)]} '
    f'({found.differences[i]:+.2f} standard deviations)'
    for i in largest
  )
  return (
    f'The set as a whole, against the held-out images: p = {found.p_value:.4f}.'
    f' The largest differences on average: {reasons}.'
  )


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
  logging.info('%s', scored.drift)
  for line in scored.problems:
    logging.warning('%s', errors.printable(line))
