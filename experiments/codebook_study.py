r"""Studies what keeps a codebook in use and images sharp, change by change.

```
dermvq prepare --dataset=ham10000/64 --manual_dir=DIR --data_dir=DATA
python -m experiments.codebook_study --workdir=STUDY --data_dir=DATA
python -m experiments.codebook_study --workdir=STUDY --data_dir=DATA --only=vq
python -m experiments.codebook_study --workdir=STUDY --data_dir=DATA \
  --finalists=default,vq,l2_norm
python -m experiments.codebook_study --workdir=STUDY --table
```

Each row of `ROWS` trains the default VQ-VAE (configs/vqvae.py) with one change
for 1,500 steps of 16 images; finalists train for 3,000 steps with three seeds.
If the study was interrupted, run the command again: it skips finished rows and
resumes the one that was running. The table is printed as Markdown; `psnr.png`
and `perplexity.png` are written beside the runs.

RESULTS.md also has rows for k-means initialisation, the rotation trick and the
entropy loss. They did not help, and the package no longer has these options.
"""

import argparse
import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from dermvq_jax.models import build
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop
from experiments import common

_STEPS, _FINAL_STEPS, _SEEDS = 1500, 3000, (0, 1, 2)
_DATASET = common.DATASETS['full']
_RESULT = 'result.json'

_CUTOUT = ('augment.cutout_probability=0.5',)
_SHIFT = ('augment.rgb_shift_probability=0.5',)
_AUGMENTED = ('augment.cutout_target=augmented',)
_PLAIN = ('quantizer.codebook_init=random', 'quantizer.restart_after=0')
# Name of the row: (argument of the config, overrides). By default, codes
# restart, latents initialise the codebook, and images are flipped.
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
  'default': ('', ()),
  # Initialisation and restarts.
  'random_start': ('', _PLAIN[:1]),
  'no_restart': ('', _PLAIN[1:]),
  'random_start_no_restart': ('', _PLAIN),
  # The weight of the commitment loss.
  'commitment_0.25': ('', ('quantizer.commitment_weight=0.25',)),
  # The optimiser, the activation, the size of a code.
  'b2_0.999': ('', ('optim.b2=0.999',)),
  'relu': ('', ('model.activation=relu',)),
  'code_dim_64': ('', ('quantizer.code_dim=64',)),
  # Quantizers, with 9 bits per position unless the name says otherwise.
  'vq': ('vq', ()),
  'vq_plain': ('vq', _PLAIN),
  'l2_norm': ('l2_norm', ()),
  'fsq': ('fsq', ()),
  'residual': (
    'residual',
    ('quantizer.num_levels=3', 'quantizer.codebook_size=8'),
  ),
  'fsq_18_bits': ('fsq', ('quantizer.values_per_dim=(8,8,8,8,8,8)',)),
  'residual_18_bits': ('residual', ()),
  # The number of codes.
  'codes_128': ('', ('quantizer.codebook_size=128',)),
  'codes_4096': ('', ('quantizer.codebook_size=4096',)),
  # The reconstruction loss.
  'l1': ('', ('loss.mse=0.0', 'loss.l1=1.0')),
  'mse_and_ssim': ('', ('loss.ssim=0.1',)),
  # The source report's question: which augmentations?
  'no_augmentation': ('', ('augment.flips=False',)),
  'cutout': ('', _CUTOUT),
  'cutout_augmented_target': ('', _CUTOUT + _AUGMENTED),
  'rgb_shift': ('', _SHIFT),
  'cutout_and_rgb_shift': ('', _CUTOUT + _SHIFT),
  'cutout_and_rgb_shift_augmented_target': ('', _CUTOUT + _SHIFT + _AUGMENTED),
}


def row_config(name: str, data_dir: str, steps: int, seed: int = 0):
  """Returns the config of a row."""
  argument, overrides = ROWS[name]
  return common.load_config(
    f'vqvae:mse+{argument}' if argument else 'vqvae:mse',
    *overrides,
    f'dataset={_DATASET}',
    f'data_dir={data_dir}',
    f'num_train_steps={steps}',
    f'seed={seed}',
  )


def bits_per_position(quantizer) -> float:
  """Returns the maximum number of bits in the codes of one position."""
  return quantizer.num_levels * math.log2(quantizer.codebook_size)


def _cost(model, size: int) -> dict[str, float]:
  """Counts parameters, and operations of one image's forward pass."""
  image = jnp.zeros((1, size, size, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  leaves = jax.tree.leaves(variables['params'])
  # The compiler for GPUs does not count operations.
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    cost = jax.jit(model.apply).lower(variables, image).cost_analysis()
  return {'num_params': sum(x.size for x in leaves), 'flops': cost['flops']}


def run_row(config, folder: epath.Path, **identity: Any) -> dict[str, Any]:
  """Trains a row, or resumes it, and returns its result.

  Args:
    config: config of the row.
    folder: workdir of the row.
    **identity: further entries of the result.
  """
  run = run_lib.Run(folder)
  loop.train(config, run)
  rows = run.vqvae.metrics()
  speeds = [row['step/steps_per_second'] for row in rows if _is_speed(row)]
  model, facts = build.vqvae(config), run.vqvae.facts
  seconds = 1 / statistics.median(speeds)
  result = identity | _cost(model, facts['image_size'])
  return result | {
    'steps': rows[-1]['step'],
    'bits': bits_per_position(model.quantizer),
    'num_codes': model.quantizer.num_codes,
    'seconds_per_step': seconds,
    'seconds_per_epoch': seconds * (facts['num_train'] // config.batch_size),
    'val': _last_validation(rows),
    'curve': [
      [row['step'], row['val/perplexity'], row['val/psnr']]
      for row in rows
      if 'val/psnr' in row
    ],
  }


def _is_speed(row: dict[str, float]) -> bool:
  return row.get('step/steps_per_second', 0) > 0


def _last_validation(rows: list[dict[str, float]]) -> dict[str, float]:
  last = [row for row in rows if 'val/psnr' in row][-1]
  return {
    key.removeprefix('val/'): value
    for key, value in last.items()
    if key.startswith('val/')
  }


def _results(folder: epath.Path) -> list[dict[str, Any]]:
  """Reads the results in a folder, in the order of `ROWS`."""
  found = [
    common.read_json(path / _RESULT)
    for path in (folder.iterdir() if folder.exists() else ())
    if (path / _RESULT).exists()
  ]
  order = {name: number for number, name in enumerate(ROWS)}
  # Rows of an earlier version of this study come last.
  return sorted(
    found, key=lambda r: (order.get(r['row'], len(order)), r['row'], r['seed'])
  )


_COLUMNS = (
  ('val PSNR (dB)', lambda r: r['val']['psnr'], '.2f'),
  ('val SSIM', lambda r: r['val']['ssim'], '.4f'),
  ('usage', lambda r: r['val']['codebook_usage'], '.3f'),
  ('perplexity', lambda r: r['val']['perplexity'], '.0f'),
  ('bits a position', lambda r: r['bits'], '.1f'),
  ('s a step', lambda r: r['seconds_per_step'], '.3f'),
  ('s an epoch', lambda r: r['seconds_per_epoch'], '.0f'),
  ('parameters', lambda r: r['num_params'], ',d'),
  ('GFLOPs an image', lambda r: r['flops'] / 1e9, '.2f'),
)


def table(results: list[dict[str, Any]]) -> str:
  """Returns a Markdown table; a row trained with several seeds has medians."""
  by_row: dict[str, list[dict[str, Any]]] = {}
  for result in results:
    by_row.setdefault(result['row'], []).append(result)

  def cells(name: str, runs: list[dict[str, Any]]) -> list[str]:
    # For an even number of runs the lower median, which keeps integers.
    medians = [
      format(statistics.median_low(map(value, runs)), form)
      for _, value, form in _COLUMNS
    ]
    return [name, str(len(runs)), *medians]

  return common.table(
    ['row', 'seeds', *(title for title, _, _ in _COLUMNS)],
    [cells(name, runs) for name, runs in by_row.items()],
  )


def write_plots(results: list[dict[str, Any]], folder: epath.Path):
  """Writes `psnr.png`, a bar per row, and `perplexity.png`, a curve per row."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  ordered = sorted(results, key=lambda r: r['val']['psnr'])
  figure, axis = plt.subplots(
    figsize=(7, 1 + 0.28 * len(ordered)), layout='constrained'
  )
  values = [r['val']['psnr'] for r in ordered]
  bars = axis.barh([r['row'] for r in ordered], values)
  axis.bar_label(bars, fmt='%.2f', padding=3, fontsize=8)
  axis.set(xlabel='val PSNR (dB)', xlim=(min(values) - 1, max(values) + 0.7))
  _save(figure, folder / 'psnr.png')

  figure, axis = plt.subplots(figsize=(8, 5), layout='constrained')
  for i, result in enumerate(results):
    steps, perplexities, _ = zip(*result['curve'])
    share = [p / result['num_codes'] for p in perplexities]
    style = ('-', '--', ':', '-.')[i // 10 % 4]
    axis.plot(steps, share, style, c=f'C{i % 10}', label=result['row'])
  axis.set(xlabel='step', ylabel='val perplexity / number of codes')
  axis.grid(alpha=0.3)
  figure.legend(loc='outside right upper', fontsize='x-small')
  _save(figure, folder / 'perplexity.png')


def _save(figure, path: epath.Path):
  from matplotlib import pyplot as plt

  with path.open('wb') as f:
    figure.savefig(f, dpi=120)
  plt.close(figure)


def _names(parser: argparse.ArgumentParser, text: str) -> list[str]:
  """Splits a list of rows at the commas; ends the program if one is unknown."""
  names = [name for name in text.split(',') if name]
  unknown = [name for name in names if name not in ROWS]
  if unknown:
    parser.error(f'no row {", ".join(unknown)}; there are {", ".join(ROWS)}')
  return names


def jobs(
  args: argparse.Namespace, only: list[str], finalists: list[str]
) -> dict[str, Callable[[], dict[str, Any]]]:
  """Returns the requested trainings, by the file of their result."""

  def job(folder: str, name: str, steps: int, seed: int):
    config = row_config(name, args.data_dir, steps, seed)
    return run_row(config, args.workdir / folder, row=name, seed=seed)

  if finalists:
    wanted = [
      (f'finalists/{name}_{seed}', name, _FINAL_STEPS, seed)
      for name in finalists
      for seed in _SEEDS
    ]
  else:
    wanted = [(f'rows/{name}', name, _STEPS, 0) for name in only or ROWS]
  return {
    f'{folder}/{_RESULT}': functools.partial(job, folder, *which)
    for folder, *which in wanted
  }


def main(argv: list[str] | None = None):
  """Trains what is missing and prints the tables."""
  parser = common.study_parser(__doc__, 'experiments.codebook_study')
  parser.add_argument('--data_dir', help=f'folder where {_DATASET} is prepared')
  parser.add_argument(
    '--only', default='', help='rows to train, separated by commas'
  )
  parser.add_argument(
    '--finalists',
    default='',
    help='rows to train longer, with three seeds each, separated by commas',
  )
  parser.add_argument(
    '--table', action='store_true', help='train nothing, print the tables'
  )
  args = parser.parse_args(argv)
  only, finalists = _names(parser, args.only), _names(parser, args.finalists)
  if not args.table:
    if not args.data_dir:
      parser.error(f'give --data_dir=DATA, where {_DATASET} is prepared')
    common.setup()
    with common.usage_errors(parser):
      common.run_missing(args.workdir, jobs(args, only, finalists))
  for name in ('rows', 'finalists'):
    results = _results(args.workdir / name)
    if results:
      print(f'\n{name}\n\n{table(results)}')
      if name == 'rows':
        write_plots(results, args.workdir)


if __name__ == '__main__':
  main()
