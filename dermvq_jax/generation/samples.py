"""Writes new images, and completions of given images, to a folder."""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import __version__, errors, files, inference, progress
from dermvq_jax.generation import rejections, requests, sample_folder
from dermvq_jax.inference import choosing
from dermvq_jax.models import chunks, masking
from dermvq_jax.models.priors import sampler
from dermvq_jax.runs import hosts
from dermvq_jax.runs import run as run_lib

# Images of a block, unless blocks are shards: so many are made again after a
# kill.
_BLOCK = 256
# An image that is dropped is replaced, until so many were drawn for each image.
_MAX_TRIES = 10


def _hide(
  model: inference.Model, image: epath.PathLike, mask: str
) -> tuple[np.ndarray, masking.Masked]:
  """Reads an image, uint8 `[H, W, 3]`, and hides a part of it."""
  [original] = model.preprocess(image)
  masked = model.hide(original, mask)
  logging.info(
    'Keeping %d of %d codes; resampling the rest.',
    masked.known.sum(),
    masked.known.size,
  )
  return original, masked


@dataclasses.dataclass(frozen=True)
class _Span:
  """Images to draw of a group: their ids are first, first + 1, ..."""

  group: int
  first: int
  count: int


def _split(
  spans: Sequence[_Span], size: int
) -> Iterator[list[tuple[int, int]]]:
  """Yields the groups and ids of spans, at most `size` at a time."""
  part = []
  for span in spans:
    for id_ in range(span.first, span.first + span.count):
      part.append((span.group, id_))
      if len(part) == size:
        yield part
        part = []
  if part:
    yield part


class _Maker:
  """Draws images of groups, a few at a time."""

  def __init__(
    self,
    model: inference.Model,
    groups: Sequence[requests.Group],
    reject: rejections.Rejections,
    masked: masking.Masked | None,
    choose: int,
    choose_by: str,
    **sampling,
  ):
    """Takes what all images have in common.

    Args:
      model: the run's model.
      groups: what is asked for.
      reject: what to drop.
      masked: what to complete, if anything.
      choose: see `Model.sample`, as is the next argument.
      choose_by: as there.
      **sampling: seed and controls.
    """
    self._model = model
    self._groups = groups
    self._reject = reject
    self._choose = choose
    self._choose_by = choose_by
    self._sampling = sampling
    # All calls are of one size, so that they compile once, and the pixels do
    # not depend on where a block ends.
    self._size = chunks.size_for(sum(group.count for group in groups))
    self._known = masked.repeat(self._size) if masked else {}

  def draw(
    self, block: Sequence[tuple[int, int]], bar: progress.tqdm.tqdm
  ) -> Iterator[
    tuple[int, np.ndarray, list[tuple[int, int]], Mapping[str, int]]
  ]:
    """Draws a block's images; see `SampleFolder.write_block`."""
    for start in range(0, len(block), self._size):
      which = block[start : start + self._size]
      new, which = self._images(which)
      dropped, keep = {}, np.ones(len(new), bool)
      if self._choose > 1:
        dropped[rejections.NOT_CHOSEN] = (self._choose - 1) * len(new)
      for reason, reject in self._reject.items():
        rejected = reject(new) & keep
        dropped[reason] = int(rejected.sum())
        keep &= ~rejected
      bar.update(len(which))
      yield (
        len(which) * self._choose,
        new[keep],
        [one for one, kept in zip(which, keep) if kept],
        dropped,
      )

  def _images(
    self, which: Sequence[tuple[int, int]]
  ) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Returns images and, if candidates are chosen from, their ids."""
    padded = [*which, *[which[-1]] * (self._size - len(which))]
    groups = [self._groups[group] for group, _ in padded]
    labels = np.array([group.label for group in groups], np.int32)
    ids = [id_ for _, id_ in padded]
    given = {
      name: [group.where.get(name) for group in groups]
      for name in self._model.conditions
    }

    def draw(ids: Sequence[int]) -> np.ndarray:
      return self._model.sample_codes(
        labels, ids=ids, **given, **self._sampling, **self._known
      )

    if self._choose == 1:
      codes = draw(ids)
    else:
      score = choosing.scorer(self._model, self._choose_by, labels, given)
      codes, ids = choosing.best(draw, score, ids, self._choose)
    found = [(group, int(id_)) for (group, _), id_ in zip(which, ids)]
    return self._model.decode(codes)[: len(which)], found


def _make(
  folder: sample_folder.SampleFolder,
  groups: Sequence[requests.Group],
  maker: _Maker,
  block_size: int,
) -> tuple[int, list[int]]:
  """Makes all blocks that are not there yet, and replaces what is dropped.

  Returns:
    The number of blocks, and how many images of each group are still missing.

  Raises:
    UserError: all of them.
  """
  missing = [group.count for group in groups]
  tries = [_MAX_TRIES * group.count for group in groups]
  next_id, num_blocks = collections.Counter(), 0
  while True:
    spans = []
    for i, group in enumerate(groups):
      if count := min(missing[i], tries[i]):
        spans.append(_Span(i, next_id[group.label], count))
        next_id[group.label] += count
        tries[i] -= count
    if not spans:
      break
    first = num_blocks
    num_blocks = _make_blocks(folder, maker, spans, first, block_size)
    for index in range(first, num_blocks):
      for i, _ in folder.block(index).kept:
        missing[i] -= 1
  hosts.wait_for_all('samples are counted')  # Then blocks may be removed.
  if missing == [group.count for group in groups]:
    if hosts.is_primary():  # The same call would drop them again.
      folder.remove()
    raise errors.UserError(
      'every image is dropped; lower --reject_memorised or --reject_unlike'
    )
  return num_blocks, missing


def _make_blocks(
  folder: sample_folder.SampleFolder,
  maker: _Maker,
  spans: Sequence[_Span],
  first: int,
  block_size: int,
) -> int:
  """Makes the blocks of some spans, each host its share.

  Args:
    folder: the folder to write into.
    maker: draws the images.
    spans: what to draw.
    first: the number of the first block.
    block_size: the number of images of a block.

  Returns:
    The number of the block after the last one, when all hosts are ready.
  """
  total = sum(span.count for span in spans)
  stop = first + -(-total // block_size)
  number, count = jax.process_index(), jax.process_count()
  own = [index for index in range(first, stop) if index % count == number]
  with progress.bar(
    total=sum(min(block_size, total - (i - first) * block_size) for i in own),
    desc='replacements' if first else 'sample',
    unit='image',
    disable=not hosts.is_primary(),
  ) as bar:
    for index, block in enumerate(_split(spans, block_size), first):
      if index % count != number:
        continue  # It is another host's.
      if folder.block_path(index).exists():
        bar.update(len(block))
      else:
        folder.write_block(index, maker.draw(block, bar))
  hosts.wait_for_all(f'{stop} blocks of samples')
  return stop


def sample(run: run_lib.Run, out: epath.PathLike, **what):
  """Writes new images with a run's model, see `write`.

  Args:
    run: a run with trained VQ-VAE and prior.
    out: the new folder.
    **what: what to sample, and how; see `write`.

  Raises:
    UserError: as in `write`.
  """
  write(inference.Model(run), out, **what)


def write(
  model: inference.Model,
  out: epath.PathLike,
  *,
  counts: dict[str, int] | None = None,
  balance: Sequence[str] = (),
  where: dict[str, str] | None = None,
  seed: int = 0,
  complete: epath.PathLike | None = None,
  mask: str | None = None,
  reject_memorised: float = 0.0,
  reject_unlike: float = 0.0,
  shards: int = 0,
  choose: int = 1,
  choose_by: str = 'classifier',
  **controls,
):
  """Writes new images: a folder of PNG files for each class, `metadata.csv`.

  The dataset `image_folder` can read this folder; so can torchvision's
  ImageFolder. Every image is marked as synthetic: in its name, its PNG text
  chunks and the CSV file. `sheet.png` shows some of them, `samples.json` says
  what was asked for.

  Images are written as they come, a block at a time, to `OUT.unfinished`. After
  a kill the same call makes the others, and the folder is the same as without
  the kill. Memory does not depend on the number of images. Several hosts make
  their shares of the same images; all must reach `out`.

  With `complete` they are completions of a partly hidden image: every code that
  stands for a hidden pixel is sampled anew. `original.png` and `masked.png` are
  written too and are the first row of the sheet.

  Args:
    model: a run with trained VQ-VAE and prior.
    out: the new folder.
    counts: images of each class; the class '' stands for every class.
    balance: instead of counts, tops up every class until it is as large as the
      largest class of the training split: `['label']`. With names of conditions
      too, such as `['label', 'sex']`, every combination of their values that
      training images have.
    where: the name of a value, or a number inside of its range, for some of the
      conditions that the prior knows. They are columns of `metadata.csv`.
    seed: an image depends only on seed, class, `where` and its number in the
      class.
    complete: an image file, cropped and resized as in training.
    mask: the part to hide: one of `images.MASKS`, or an image file that is
      white there.
    reject_memorised: replaces images that look copied from a training image:
      their memorisation ratio (see `memorisation`) is below this; 0: none.
    reject_unlike: replaces images that are unlike reconstructions of held-out
      images: their p-value is at most this (see `outliers.scoring`); 0: none.
    shards: instead of the folders, writes .tar files with at most this number
      of images each; 0: off.
    choose: the number of candidates for each image, of which the best is taken;
      see `Model.sample`, as is the next argument.
    choose_by: as there.
    **controls: how to sample; see `sampler.Controls`.

  Raises:
    UserError: the run is not trained, a class, condition or value is unknown or
      has no training image, a control is out of its range, there is no such
      image or mask, the mask leaves no code or hides nothing, `out` exists,
      there is nothing to balance, the training images are needed and not
      found, all images are dropped, or another call began this folder.
  """
  settings = {'seed': seed} | dataclasses.asdict(sampler.Controls(**controls))
  choosing.check(choose, choose_by)
  _check(counts, balance, complete, mask, shards)
  run = model.run
  where = requests.named(model, where or {})
  groups = requests.groups(run, model, counts, balance, where)
  pictures, masked = {}, None
  if complete is not None:
    original, masked = _hide(model, complete, mask)
    pictures = {'original': original, 'masked': masked.image}
  reject = rejections.make(model, reject_memorised, reject_unlike)
  maker = _Maker(model, groups, reject, masked, choose, choose_by, **settings)
  phases = [run.vqvae, run.prior]
  if choose > 1:
    settings |= {'choose': choose, 'choose_by': choose_by}
    if choose_by == 'classifier':
      _ = model.classifier  # Its errors come before the folder.
      phases.append(run.classifier)
  further = {
    'complete': str(complete or ''),
    'mask': str(mask or ''),
    'reject_memorised': reject_memorised,
    'reject_unlike': reject_unlike,
  }
  settings |= {name: value for name, value in further.items() if value}
  plan = {
    'version': __version__,
    'weights': {phase.name: phase.weights_id for phase in phases},
    'asked': [
      {'label': model.class_names[g.label], 'count': g.count} | g.where
      for g in groups
    ],
    **settings,
    'shards': shards,
    'hidden': _digest(masked.codes, masked.known) if masked else None,
  }
  hosts.check_same({'flags or weights': plan})
  with _folder(out) as path:
    folder = sample_folder.SampleFolder(
      path, groups, model.class_names, bool(shards)
    )
    if hosts.is_primary():
      folder.start(plan)
    hosts.wait_for_all('samples begin')
    is_complete = folder.is_complete
    hosts.wait_for_all('samples began')
    if not is_complete:
      num_blocks, missing = _make(folder, groups, maker, shards or _BLOCK)
      if hosts.is_primary():
        columns = dict.fromkeys(model.conditions, '') | settings
        found = folder.finish(num_blocks, plan, columns, pictures)
        rejections.say(found, reject_unlike)
        _say_missing(missing, groups, model.class_names)
    if hosts.is_primary():
      folder.remove_blocks()
  hosts.wait_for_all('samples end')


@contextlib.contextmanager
def _folder(out: epath.PathLike) -> Iterator[epath.Path]:
  """The folder to write into; one host makes it and gives it its name."""
  if hosts.is_primary():
    with files.resumable_folder(out) as path:
      yield path
  else:
    yield files.unfinished(out)


def _check(
  counts: dict[str, int] | None,
  balance: Sequence[str],
  complete: epath.PathLike | None,
  mask: str | None,
  shards: int,
):
  """Raises UserError if arguments of `sample` do not go together."""
  if (complete is None) != (mask is None):
    raise errors.UserError('give --complete and --mask, or neither')
  if balance and (counts or complete is not None):
    raise errors.UserError(
      '--balance cannot go with --counts or --complete; leave out one of them'
    )
  if shards < 0:
    raise errors.UserError(
      f'--shards is {shards}; give the number of images of a .tar file, such '
      'as 10000, or 0 for folders'
    )


def _say_missing(
  missing: Sequence[int],
  groups: Sequence[requests.Group],
  class_names: Sequence[str],
):
  """Warns of groups with fewer images than were asked for."""
  for group, count in zip(groups, missing):
    if count:
      logging.warning(
        '%s: %d of %d images are missing, because %d were drawn for each and '
        'dropped.',
        errors.printable(class_names[group.label]),
        count,
        group.count,
        _MAX_TRIES,
      )


def _digest(*arrays: np.ndarray) -> str:
  """Names what arrays hold."""
  return hashlib.sha256(b''.join(a.tobytes() for a in arrays)).hexdigest()[:16]
