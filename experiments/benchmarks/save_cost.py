"""What saving costs a training.

```
python -m experiments.benchmarks.save_cost --data_dir=DATA
```

Trains the VQ-VAE in blocks of steps in one process, every second block with a
save before its first step, so that other work on the machine meets both kinds
alike. The save goes on in the background; its block ends when it is done.
Prints the seconds of each block, and the median of what a save adds to the
block before it.
"""

import argparse
import pathlib
import tempfile
import time

import jax
import numpy as np

from dermvq_jax import config_files
from dermvq_jax.data import prepared
from dermvq_jax.runs import checkpoints
from dermvq_jax.training import host_memory, loop


def run(dataset: str, data_dir: str, batch_size: int, every: int, blocks: int):
  """Prints a line a pair of blocks, then the ratio."""
  config = config_files.load(
    'vqvae',
    [
      f'--config.dataset={dataset}',
      f'--config.data_dir={data_dir}',
      f'--config.batch_size={batch_size}',
    ],
  )
  facts = prepared.describe(dataset, data_dir)
  sources = {
    split: prepared.open_split(dataset, data_dir, split)
    for split in ('train', 'val')
  }
  config = loop._resolve(config, facts)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / 'vqvae'
    trainer = loop._Trainer(config, folder, facts, sources)
    par = trainer.parallel
    step_fn = trainer.compile_train_step()
    tree = par.put_tree(trainer.start())
    batches = trainer.train_batches(0)
    saved = checkpoints.Checkpoints(folder)
    step, seconds = 0, {True: [], False: []}
    for block in range(2 * blocks + 2):
      saves = block % 2 == 1
      since = time.perf_counter()
      if saves:
        saved.save(step, {'tree': tree, 'best': np.float32(0)})
      for _ in range(every):
        tree = step_fn(tree, par.put_batch(next(batches)))
        step += 1
      jax.block_until_ready(tree)
      saved.wait()
      taken = time.perf_counter() - since
      if block >= 2:  # The first two compile.
        seconds[saves].append(taken)
        print(f'{"with" if saves else "without"}: {taken:.3f} s', flush=True)
    saved.close()
  without, added = (
    np.median(seconds[False]),
    np.median(np.subtract(seconds[True], seconds[False])),
  )
  print(
    f'{every} steps of {batch_size}: {without:.3f} s, a save adds {added:.3f} '
    f's, {100 * added / without:.2f}%'
  )


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--dataset', default='ham10000/64')
  parser.add_argument('--data_dir', required=True)
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--every', type=int, default=20)
  parser.add_argument('--blocks', type=int, default=25)
  args = parser.parse_args()
  host_memory.keep()  # As `dermvq` does.
  run(**vars(args))
