"""One training step of each model, in the package and in plain PyTorch.

Architecture, parameters, loss and optimiser are the same (AdamW with the values
of the config, gradient clipping if the config has it). The package's step is
the step of `dermvq train`: it also sums metrics, checks that everything is
finite and, for the VQ-VAE, restarts unused codes. Dropout and averaged weights
are off, because the prior's PyTorch twin does not have them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments import common

NUM_LAYERS, NUM_CLASSES, CODEBOOK_SIZE = 15, 7, 512
_OVERRIDES = {
  # Like the PyTorch twin and flops.vqvae.
  'vqvae': ('model.activation=relu', 'quantizer.code_dim=64'),
  'prior': (
    f'prior.num_layers={NUM_LAYERS}',
    'prior.dropout_rate=0.0',
    'conditions.label=0.0',
    'params_ema_decay=0.0',
  ),
}
_VARIANCE = 0.04  # of the pixels, about as in real training images
_RECORDS = 128


def config(work: str, batch: int, *overrides: str) -> Any:
  """Returns the config of the measured phase, 'vqvae' or 'prior'."""
  sizes = f'batch_size={batch}', 'num_train_steps=1000'
  name = 'vqvae:mse' if work == 'vqvae' else work
  return common.load_config(name, *_OVERRIDES[work], *sizes, *overrides)


def _data(work: str, size: int, count: int) -> dict[str, np.ndarray]:
  """Returns random examples; `size` is the side of the image or the grid."""
  rng = np.random.default_rng(0)
  if work == 'vqvae':
    return {'image': rng.integers(0, 256, (count, size, size, 3), np.uint8)}
  return {
    'codes': rng.integers(0, CODEBOOK_SIZE, (count, size, size), np.int32),
    'label': rng.integers(0, NUM_CLASSES, count, np.int32),
  }


def trainer(
  work: str,
  size: int,
  batch: int,
  *overrides: str,
  sources: Mapping[str, Any] | None = None,
) -> Any:
  """Returns the package's trainer.

  Args:
    work: 'vqvae' or 'prior'.
    size: side of the images or of the grids.
    batch: batch size.
    *overrides: 'field=value' of the config.
    sources: the split 'train' as a sequence of records; by default random
      records.
  """
  from dermvq_jax.training import trainer as trainer_lib

  class_names = tuple(map(str, range(NUM_CLASSES)))
  facts = {
    'image_size': size,
    'train_variance': _VARIANCE,
    'codebook_size': CODEBOOK_SIZE,
    'class_names': class_names,
    'conditions': {'label': class_names},
    'num_train': _RECORDS,
  }
  if sources is None:
    data = _data(work, size, _RECORDS)
    records = [
      {key: values[i] for key, values in data.items()} for i in range(_RECORDS)
    ]
    sources = {'train': records}
  made = trainer_lib.resolve(config(work, batch, *overrides), facts)
  return trainer_lib.Trainer(made, facts, sources)


def jax_step(
  work: str, size: int, batch: int, *overrides: str
) -> Callable[[], None]:
  """Returns a function that makes one step of the package on a fixed batch."""
  import jax

  made = trainer(work, size, batch, *overrides)
  step_fn = made.compile_train_step()
  tree = made.parallel.put_tree(made.start())
  constant = made.parallel.put_batch(next(made.train_batches()))

  def step():
    nonlocal tree
    tree = jax.block_until_ready(step_fn(tree, constant))

  return step


def torch_step(
  work: str, size: int, batch: int, *, channels_last: bool
) -> Callable[[], None]:
  """Returns a function that makes one step of the PyTorch twin."""
  import torch
  import torch.nn.functional as F  # noqa: N812

  from experiments.benchmarks import (
    torch_gated_pixelcnn,
    torch_vqvae,
    torch_vqvae_twin,
  )

  layout = torch.channels_last if channels_last else torch.contiguous_format
  made, data = config(work, batch), _data(work, size, batch)
  torch.manual_seed(0)
  if work == 'vqvae':
    model = torch_vqvae_twin.VQVAE()
    weight = made.quantizer.commitment_weight

    def loss() -> torch.Tensor:
      x = torch_vqvae.to_tensor(data['image']).contiguous(memory_format=layout)
      reconstruction, _, commitment = model(x)
      return F.mse_loss(reconstruction, x) / _VARIANCE + weight * commitment

  else:
    model = torch_gated_pixelcnn.GatedPixelCNN(
      CODEBOOK_SIZE, NUM_CLASSES, NUM_LAYERS
    )
    codes = torch.from_numpy(data['codes']).long()
    labels = torch.from_numpy(data['label']).long()

    def loss() -> torch.Tensor:
      return F.cross_entropy(model(codes, labels), codes)

  model.train().to(memory_format=layout)
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=made.optim.learning_rate,
    betas=(0.9, made.optim.b2),
    weight_decay=made.optim.weight_decay,
  )

  def step():
    optimizer.zero_grad()
    loss().backward()
    if made.optim.max_grad_norm:
      torch.nn.utils.clip_grad_norm_(
        model.parameters(), made.optim.max_grad_norm
      )
    optimizer.step()

  return step
