"""Folds by lesion, each with a generator that never saw its lesions."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from dermvq_jax import files, inference
from dermvq_jax.data import prepare, prepared, splits
from dermvq_jax.data.datasets import builder
from dermvq_jax.generation import encode
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop
from experiments import common


@dataclasses.dataclass(frozen=True)
class Fold:
  """Images to train on and held-out images, and a generator.

  Attributes:
    name: name of the fold.
    run: the run of the generator. It and the classifiers train on the training
      split of its images; the test split is held out.
  """

  name: str
  run: run_lib.Run

  def read(self, split: str) -> dict[str, np.ndarray]:
    """Returns `image`, `label` and `group` of a split, `[N, ...]` each."""
    records = list(self.run.images.split(split))
    return {
      'image': np.stack([record['image'] for record in records]),
      'label': np.array([record['label'] for record in records], np.int32),
      'group': np.array([record['group'].decode() for record in records]),
    }


@dataclasses.dataclass(kw_only=True)
class FoldConfig(builder.ImageConfig):
  """One fold of a dataset.

  Attributes:
    class_names: the class names of the dataset.
    records: its images, with their split in this fold; the source of each is
      the split and the number of the image in the dataset.
  """

  class_names: Sequence[str]
  records: Sequence[builder.Record]


class Builder(builder.ImageBuilder, skip_registration=True):
  """Images of another dataset, with one fold of lesions held out."""

  name = 'folds'
  VERSION = tfds.core.Version('1.0.0')

  @property
  def class_names(self) -> Sequence[str]:
    """The class names of the other dataset."""
    return self.builder_config.class_names

  def read_records(self, folder) -> list[builder.Record]:
    """Returns the records of the config."""
    del folder
    return list(self.builder_config.records)

  def read_image(self, record: builder.Record) -> np.ndarray:
    """Returns the image as it was prepared."""
    images, index = record.source
    return images[index]['image']


def prepare_fold(
  dataset: prepared.Dataset, fold: int, num_folds: int
) -> prepared.Dataset:
  """Prepares a fold of a prepared dataset, unless it is already prepared."""
  names = dataset.facts['class_names']
  records = []
  for split in splits.SPLITS:
    images = dataset.split(split)
    for i, raw in enumerate(dataset.split(split, decode_images=False)):
      records.append(
        builder.Record(
          id=raw['id'].decode(),
          label=names[raw['label']],
          group=raw['group'].decode(),
          source=(images, i),
        )
      )
  assigned = splits.assign_fold(
    [r.group for r in records], [r.label for r in records], fold, num_folds
  )
  records = [dataclasses.replace(r, split=s) for r, s in zip(records, assigned)]
  config = FoldConfig(
    name=_dataset_name(dataset, fold, num_folds),
    size=dataset.facts['image_size'],
    class_names=names,
    records=records,
  )
  data_dir = dataset.data_dir
  prepare.write(lambda: Builder(config=config, data_dir=data_dir))
  return prepared.Dataset(f'{Builder.name}/{config.name}', data_dir)


def _dataset_name(dataset: prepared.Dataset, fold: int, num_folds: int) -> str:
  """Names a fold of these images; images that changed give another name."""
  content = json.dumps(dataset.facts['fingerprint'], sort_keys=True)
  digest = hashlib.sha256(content.encode()).hexdigest()[:8]
  name = dataset.name.replace('/', '_')
  return f'{name}_{digest}_{fold + 1}of{num_folds}'


def fold_name(fold: int, num_folds: int) -> str:
  """Returns the name of a fold and of its folders."""
  return f'fold_{fold + 1}of{num_folds}'


def make_fold(
  workdir: epath.Path,
  dataset: prepared.Dataset,
  fold: int,
  num_folds: int,
  size: str,
) -> Fold:
  """Prepares a fold and trains its generator, or resumes.

  Args:
    workdir: folder of the study; the run of the generator is in it.
    dataset: all images.
    fold: number of the fold, from 0.
    num_folds: number of folds.
    size: size of the configs, 'full' or 'smoke'.
  """
  images = prepare_fold(dataset, fold, num_folds)
  name = fold_name(fold, num_folds)
  run = run_lib.Run(workdir / name)
  overrides = f'dataset={images.name}', f'data_dir={images.data_dir}'
  loop.train(common.load_config('vqvae', *overrides, size=size), run)
  encode.encode(run)
  loop.train(common.load_config('prior', size=size), run)
  return Fold(name, run)


def fold_of_run(run: run_lib.Run) -> Fold:
  """Returns a trained run as a fold: its training split against its test split.

  The validation split is not used: it chose the run's best steps, and the
  guidance scale of the samples.
  """
  run.images.check()
  return Fold('run', run)


def weights(run: run_lib.Run) -> dict[str, str]:
  """Identifies the generator of a run; another training changes it."""
  return {phase.name: phase.weights_id for phase in (run.vqvae, run.prior)}


def samples(
  fold: Fold, per_class: int, path: epath.Path, guidance_scale: float
) -> np.ndarray:
  """Returns samples of the generator, uint8 `[C, per_class, H, W, 3]`.

  Their codes are sampled only once and then kept in the file `path`.
  """
  model = inference.Model(fold.run)
  shape = (len(model.class_names), per_class)
  if not path.exists():
    codes = model.sample_codes(
      np.repeat(np.arange(shape[0]), per_class),
      seed=0,
      guidance_scale=guidance_scale,
      show_progress=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as f:
      np.savez_compressed(f, codes=codes)
  with path.open('rb') as f, np.load(f, allow_pickle=False) as stored:
    decoded = model.decode(stored['codes'])
  return decoded.reshape(*shape, *decoded.shape[1:])
