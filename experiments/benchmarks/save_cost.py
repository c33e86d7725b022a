"""How much time saving adds to a training.

```
python -m experiments.benchmarks.save_cost --data_dir=DATA
```

Trains the VQ-VAE in blocks of steps, in one process. Every second block starts
with a save, so other work on the machine slows blocks with and without a save
alike. The save runs in the background; its block ends when the save has ended.
The program prints the seconds of each block, and the median of the seconds by
which a block with a save is longer than the block before it.
"""

import pathlib
import tempfile
import time

import jax
import numpy as np

from dermvq_jax.data import prepared
from dermvq_jax.runs import checkpoints
from dermvq_jax.training import host_memory
from dermvq_jax.training import trainer as trainer_lib
from experiments import common


def run(dataset: str, data_dir: str, batch_size: int, every: int, blocks: int):
  """Measures, and prints a line for each block and one for the result."""
  images = prepared.Dataset(dataset, data_dir)
  config = common.load_config('vqvae:mse', f'batch_size={batch_size}')
  trainer = trainer_lib.Trainer(
    trainer_lib.resolve(config, images.facts),
    images.facts,
    {'train': images.split('train')},
  )
  par = trainer.parallel
  step_fn = trainer.compile_train_step()
  tree = par.put_tree(trainer.start())
  batches = trainer.train_batches()
  with tempfile.TemporaryDirectory() as name:
    saved = checkpoints.Checkpoints(pathlib.Path(name) / 'vqvae')
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
  parser = common.parser(__doc__)
  parser.add_argument('--dataset', default=common.DATASETS['full'])
  parser.add_argument(
    '--data_dir', required=True, help='folder of prepared datasets'
  )
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument(
    '--every', type=int, default=20, help='steps of a block (default: 20)'
  )
  parser.add_argument(
    '--blocks', type=int, default=25, help='pairs of blocks (default: 25)'
  )
  args = parser.parse_args()
  host_memory.keep()  # As `dermvq` does.
  run(**vars(args))
