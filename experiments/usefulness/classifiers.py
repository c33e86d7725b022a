"""Which images a classifier is trained on, and its training."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dermvq_jax import errors, progress
from dermvq_jax.models import build, chunks
from dermvq_jax.training import state
from dermvq_jax.training import trainer as trainer_lib
from experiments import common

# Factor on the number of steps of a size, by the way of training.
WAYS = {
  'real': 1,
  'oversampled': 1,
  'real_and_synthetic': 1,
  'synthetic': 1,
  'oversampled_and_synthetic': 2,
}
_STEPS = {'full': 1250, 'smoke': 4}
Images = dict[str, np.ndarray]


def compose(way: str, real: Images, new: np.ndarray) -> Images:
  """Returns the images that a classifier is trained on.

  Args:
    way: one of `WAYS`.
    real: `image` uint8 `[N, H, W, 3]`, `label` int `[N]`.
    new: uint8 `[C, M, H, W, 3]`, samples of each class; M is the size of the
      largest class.

  Returns:
    `image` and `label`.
  """
  if way == 'real':
    return real
  per_class = new.shape[1]
  members = [np.flatnonzero(real['label'] == c) for c in range(len(new))]
  # A class without real images gets no samples: the prior has not seen it.
  wanted = np.array([per_class if len(m) else 0 for m in members])
  parts = []
  if way.startswith('oversampled'):
    chosen = [np.resize(m, n) for m, n in zip(members, wanted)]
    chosen = np.concatenate(chosen).astype(int)
    parts.append({k: real[k][chosen] for k in ('image', 'label')})
  if way == 'real_and_synthetic':
    wanted -= [len(m) for m in members]
    parts.append(real)
  if way.endswith('synthetic'):
    sampled = {
      'image': np.concatenate([x[:n] for x, n in zip(new, wanted)]),
      'label': np.repeat(np.arange(len(new)), wanted),
    }
    parts.append(sampled)
  return {k: np.concatenate([p[k] for p in parts]) for k in ('image', 'label')}


class _Records:
  """Images as a sequence of records, which the pipeline reads."""

  def __init__(self, images: Images):
    self._images = images

  def __len__(self) -> int:
    return len(self._images['label'])

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {key: self._images[key][index] for key in ('image', 'label')}


class Classifiers:
  """Trains classifiers; those with the same number of steps compile once."""

  def __init__(self, facts: Mapping[str, Any], size: str):
    """Sets up the trainings.

    Args:
      facts: facts of a dataset with these classes and this size of images.
      size: size of configs/classifier.py, 'full' or 'smoke'.
    """
    self._facts, self._size = facts, size
    self._compiled: dict[int, Callable[..., Any]] = {}  # by number of steps
    model = build.classifier(common.load_config('classifier', size=size), facts)
    self._logits = jax.jit(
      lambda params, images: model.apply(
        {'params': params}, build.to_unit(images)
      )
    )

  def train(
    self, images: Images, way: str, seed: int
  ) -> Callable[[np.ndarray], np.ndarray]:
    """Trains a classifier.

    Args:
      images: `image` and `label`, from `compose`.
      way: one of `WAYS`.
      seed: seed of the initial values, of the order and of the augmentation.

    Returns:
      A function that predicts the labels `[N]` of other images.

    Raises:
      UserError: the training diverged.
    """
    num_steps = WAYS[way] * _STEPS[self._size]
    facts = {**self._facts, 'num_train': len(images['label'])}
    config = common.load_config(
      'classifier',
      f'seed={seed}',
      f'num_train_steps={num_steps}',
      size=self._size,
    )
    config = trainer_lib.resolve(config, facts)
    trainer = trainer_lib.Trainer(config, facts, {'train': _Records(images)})
    # Nothing in a classifier's step is random, so it serves every seed.
    if num_steps not in self._compiled:
      self._compiled[num_steps] = trainer.compile_train_step()
    step = self._compiled[num_steps]
    # Not the default key: results of earlier versions stay reproducible.
    tree = trainer.parallel.put_tree(trainer.start(jax.random.key(seed)))
    batches = trainer.train_batches()
    description = f'{way} {seed}'
    for _ in progress.bar(range(num_steps), desc=description, unit='step'):
      tree = step(tree, trainer.parallel.put_batch(next(batches)))
    failed_step, what = jax.device_get(tree['state'].failure)
    if failed_step:
      raise errors.UserError(
        f'{state.FAILURES[what - 1]} of {description} became infinite or NaN '
        f'at step {failed_step}; lower optim.learning_rate in '
        'configs/classifier.py'
      )
    params = tree['state'].eval_params
    return lambda others: chunks.apply(
      lambda chunk: self._logits(params, chunk), others
    ).argmax(1)
