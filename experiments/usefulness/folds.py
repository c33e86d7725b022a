"""Folds by lesion, each with a generator that never saw it."""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from dermvq_jax import config_files, inference
from dermvq_jax.data import prepare, prepared
from dermvq_jax.data.datasets import builder
from dermvq_jax.generation import encode
from dermvq_jax.runs import checkpoints, workdirs
from dermvq_jax.training import loop

_VAL_EVERY = 10  # of the lesions that are not held out
# Beyond it these few images only overfit: on 4,001 val was best at epoch 10.
_PRIOR_EPOCHS = 12.0


@dataclasses.dataclass(frozen=True)
class Fold:
  """Images to train on and held-out ones, and where the generator is.

  Attributes:
    name: of the fold.
    workdir: of the generator's run.
    dataset: what the generator was trained on.
    data_dir: where that is prepared.
    held_out: the splits that nothing was trained on.
  """

  name: str
  workdir: epath.Path
  dataset: str
  data_dir: epath.Path
  held_out: tuple[str, ...]

  @functools.cached_property
  def facts(self) -> dict[str, Any]:
    """Of the dataset."""
    return prepared.describe(self.dataset, self.data_dir)

  def read(self, splits: Sequence[str]) -> dict[str, np.ndarray]:
    """All of some splits: `image`, `label`, `group`, `[N, ...]` each."""
    sources = [
      prepared.open_split(self.dataset, self.data_dir, split)
      for split in splits
    ]
    records = [source[i] for source in sources for i in range(len(source))]
    return {
      'image': np.stack([record['image'] for record in records]),
      'label': np.array([record['label'] for record in records], np.int32),
      'group': np.array([record['group'].decode() for record in records]),
    }


@dataclasses.dataclass(kw_only=True)
class FoldConfig(builder.ImageConfig):
  """One fold; `records` have their splits and, as source, their image."""

  class_names: Sequence[str]
  records: Sequence[builder.Record]


class Builder(builder.ImageBuilder, skip_registration=True):
  """Images of another dataset, of which one fold of lesions is held out."""

  name = 'folds'
  VERSION = tfds.core.Version('1.0.0')

  @property
  def class_names(self) -> Sequence[str]:
    """Those of the other dataset."""
    return self.builder_config.class_names

  def read_records(self, manual_dir: epath.Path | None) -> list[builder.Record]:
    """Returns those of the config."""
    del manual_dir
    return list(self.builder_config.records)

  def read_image(self, record: builder.Record) -> np.ndarray:
    """Returns the image as it was prepared."""
    source, index = record.source
    return source[index]['image']


def assign(
  groups: Sequence[str], labels: Sequence[str], fold: int, num_folds: int
) -> list[str]:
  """The split of each example: 'test' is the fold, 'val' chooses best steps.

  Whole groups, in the order of a hash, dealt out class by class: every class is
  in every fold as evenly as can be. A group's class is its most frequent label.
  """
  votes = collections.defaultdict(collections.Counter)
  for group, label in zip(groups, labels):
    votes[group][label] += 1
  by_class = collections.defaultdict(list)
  for group, counter in votes.items():
    label = min(counter, key=lambda name: (-counter[name], name))
    by_class[label].append(group)
  split_of = {}
  for members in by_class.values():
    members.sort(key=lambda g: hashlib.sha256(g.encode()).digest())
    others = [g for i, g in enumerate(members) if i % num_folds != fold]
    split_of |= dict.fromkeys(members, 'test')
    split_of |= dict.fromkeys(others, 'train')
    # Never the only one: a class to be tested was trained on.
    split_of |= dict.fromkeys(others[_VAL_EVERY - 1 :: _VAL_EVERY], 'val')
  return [split_of[group] for group in groups]


def prepare_fold(
  dataset: str, data_dir: epath.PathLike, fold: int, num_folds: int
) -> str:
  """Prepares a fold of a prepared dataset; returns the new dataset's name."""
  facts = prepared.describe(dataset, data_dir)
  names = facts['class_names']
  records = []
  for split in ('train', 'val', 'test'):
    images = prepared.open_split(dataset, data_dir, split)
    raw = prepared.open_split(dataset, data_dir, split, decode_images=False)
    for i in range(len(raw)):
      record = raw[i]
      records.append(
        builder.Record(
          id=record['id'].decode(),
          label=names[record['label']],
          group=record['group'].decode(),
          source=(images, i),
        )
      )
  splits = assign(
    [r.group for r in records], [r.label for r in records], fold, num_folds
  )
  records = [dataclasses.replace(r, split=s) for r, s in zip(records, splits)]
  config = FoldConfig(
    name=f'{dataset.replace("/", "_")}_{fold + 1}of{num_folds}',
    size=facts['image_size'],
    class_names=names,
    records=records,
  )
  prepare.write(lambda: Builder(config=config, data_dir=data_dir))
  return f'folds/{config.name}'


def folder_name(fold: int, num_folds: int) -> str:
  """Of a fold."""
  return f'fold_{fold + 1}of{num_folds}'


def make_fold(
  folder: epath.Path,
  dataset: str,
  data_dir: epath.PathLike,
  fold: int,
  num_folds: int,
  size: str,
) -> Fold:
  """Prepares a fold and trains its generator in `folder`, or goes on."""
  name = prepare_fold(dataset, data_dir, fold, num_folds)
  suffix = ':smoke' if size == 'smoke' else ''
  overrides = [f'--config.dataset={name}', f'--config.data_dir={data_dir}']
  loop.run(config_files.load(f'vqvae{suffix}', overrides), folder)
  encode.run(folder)
  prior = config_files.load(f'prior{suffix}')
  if not prior.num_train_steps:
    prior.num_epochs = _PRIOR_EPOCHS
  loop.run(prior, folder)
  return Fold(folder.name, folder, name, epath.Path(data_dir), ('test',))


def of_run(run: epath.Path, data_dir: str = '') -> Fold:
  """The fold that a trained run has: its training split against test.

  Val is in neither: it chose the run's best steps, and the guidance of samples.
  """
  config, facts = workdirs.load_config(workdirs.phase_dir(run, 'vqvae'))
  data_dir = workdirs.data_dir(run, data_dir or config.data_dir)
  return Fold('run', run, facts['dataset'], data_dir, ('test',))


def weights(run: epath.Path) -> dict[str, str]:
  """What tells the generator of a run from one that is trained anew."""
  return {
    phase: checkpoints.best_id(workdirs.phase_dir(run, phase))
    for phase in ('vqvae', 'prior')
  }


def samples(
  fold: Fold, per_class: int, path: epath.Path, guidance_scale: float
) -> np.ndarray:
  """Samples of the generator, uint8 `[C, per_class, H, W, 3]`.

  Their codes are kept in the file `path`, and drawn only if it is not there.
  """
  model = inference.load(fold.workdir)
  shape = (len(model.class_names), per_class)
  if not path.exists():
    codes = model.sample_codes(
      np.repeat(np.arange(shape[0]), per_class),
      seed=0,
      guidance_scale=guidance_scale,
      show_progress=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.incomplete')
    with partial.open('wb') as f:
      np.savez_compressed(f, codes=codes)
    partial.replace(path)
  with path.open('rb') as f, np.load(f, allow_pickle=False) as stored:
    decoded = model.decode(stored['codes'])
  return decoded.reshape(*shape, *decoded.shape[1:])
