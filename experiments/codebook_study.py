r"""What keeps a codebook in use and images sharp, one factor at a time.

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
Start it again when it was stopped: finished rows are skipped, the one that was
running goes on. The table is printed as Markdown; `psnr.png` and
`perplexity.png` are written beside the runs.
"""

import argparse
import json
import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from dermvq_jax import config_files
from dermvq_jax.data import prepared
from dermvq_jax.runs import logs
from dermvq_jax.training import host_memory, loop, tasks

_STEPS, _FINAL_STEPS, _SEEDS = 1500, 3000, (0, 1, 2)
_DATASET = 'ham10000/64'
_RESULT = 'result.json'

_CUTOUT = ('augment.cutout_probability=0.5',)
_SHIFT = ('augment.rgb_shift_probability=0.5',)
_AUGMENTED = ('augment.cutout_target=augmented',)
_PLAIN = ('quantizer.codebook_start=random', 'quantizer.restart_after=0')
# Name: (argument of the config, overrides). Restart, start from latents and
# flips are on by default.
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
  'default': ('', ()),
  # The start and the restart.
  'random_start': ('', _PLAIN[:1]),
  'no_restart': ('', _PLAIN[1:]),
  'random_start_no_restart': ('', _PLAIN),
  'k_means': ('', ('quantizer.codebook_start=k_means',)),
  'k_means_no_restart': ('', ('quantizer.codebook_start=k_means', _PLAIN[1])),
  # The gradient and the weights of the losses.
  'rotation': ('', ('quantizer.gradient=rotation',)),
  'commitment_0.25': ('', ('quantizer.commitment_weight=0.25',)),
  'entropy': ('', ('quantizer.entropy_weight=0.1',)),
  # The optimizer, the activation, the size of a code.
  'b2_0.999': ('', ('optim.b2=0.999',)),
  'relu': ('', ('model.activation=relu',)),
  'code_dim_64': ('', ('quantizer.code_dim=64',)),
  # Quantizers; 9 bits a position unless said.
  'vq': ('vq', ()),
  'vq_plain': ('vq', _PLAIN),
  'l2_norm': ('l2_norm', ()),
  'l2_norm_rotation': ('l2_norm', ('quantizer.gradient=rotation',)),
  'fsq': ('fsq', ()),
  'residual': (
    'residual',
    ('quantizer.num_levels=3', 'quantizer.codebook_size=8'),
  ),
  'fsq_18_bits': ('fsq', ('quantizer.levels=(8,8,8,8,8,8)',)),
  'residual_18_bits': ('residual', ()),
  # The number of codes.
  'codes_128': ('', ('quantizer.codebook_size=128',)),
  'codes_4096': ('', ('quantizer.codebook_size=4096',)),
  # The loss.
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
  """The config of a row."""
  argument, overrides = ROWS[name]
  return config_files.load(
    f'vqvae:{argument}' if argument else 'vqvae',
    [
      *(f'--config.{override}' for override in overrides),
      f'--config.dataset={_DATASET}',
      f'--config.data_dir={data_dir}',
      f'--config.num_train_steps={steps}',
      f'--config.seed={seed}',
    ],
  )


def bits_per_position(quantizer) -> float:
  """How many bits the codes of one position hold at most."""
  return quantizer.num_levels * math.log2(quantizer.codebook_size)


def _cost(model, size: int) -> dict[str, float]:
  """Parameters, and floating point operations of one image's forward pass."""
  image = jnp.zeros((1, size, size, 3))
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  leaves = jax.tree.leaves(variables['params'])
  # A GPU's compiler does not count them.
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    cost = jax.jit(model.apply).lower(variables, image).cost_analysis()
  return {'num_params': sum(x.size for x in leaves), 'flops': cost['flops']}


def run_row(config, folder: epath.Path, **identity: Any) -> dict[str, Any]:
  """Trains a row, unless that was done; returns what it gave.

  Args:
    config: of the row.
    folder: its workdir; the result is `result.json` in it.
    **identity: to be kept with the result.
  """
  path = folder / _RESULT
  if path.exists():
    return json.loads(path.read_text())
  logging.info('Training %s.', folder)
  loop.run(config, folder)
  rows = logs.read(folder / 'vqvae')
  speeds = [row['step/steps_per_second'] for row in rows if _is_speed(row)]
  model = tasks.vqvae_model(config)
  facts = prepared.describe(config.dataset, config.data_dir)
  seconds = 1 / statistics.median(speeds)
  result = identity | _cost(model, facts['image_size'])
  result |= {
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
  partial = path.with_name(f'{_RESULT}.incomplete')
  partial.write_text(json.dumps(result, indent=2) + '\n')
  partial.replace(path)
  return result


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
  """Those that there are, in the order of `ROWS`."""
  found = [
    json.loads((path / _RESULT).read_text())
    for path in (folder.iterdir() if folder.exists() else ())
    if (path / _RESULT).exists()
  ]
  order = list(ROWS)
  return sorted(found, key=lambda r: (order.index(r['row']), r['seed']))


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
  """A Markdown table, a row a run; rows of several seeds are their medians."""
  header = ['row', 'seeds', *(title for title, _, _ in _COLUMNS)]
  lines = [f'| {" | ".join(header)} |', '|' + '---|' * len(header)]
  by_row: dict[str, list[dict[str, Any]]] = {}
  for result in results:
    by_row.setdefault(result['row'], []).append(result)
  for name, runs in by_row.items():
    cells = [name, str(len(runs))]
    for _, value, form in _COLUMNS:
      # Of an even number the lower, which is a whole number where all are.
      cells.append(format(statistics.median_low(map(value, runs)), form))
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def write_plots(results: list[dict[str, Any]], folder: epath.Path):
  """Draws `psnr.png`, a bar a row, and `perplexity.png`, a curve a row."""
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
  names = [name for name in text.split(',') if name]
  unknown = [name for name in names if name not in ROWS]
  if unknown:
    parser.error(f'no row {", ".join(unknown)}; there are {", ".join(ROWS)}')
  return names


def main(argv: list[str] | None = None):
  """Trains what is missing and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', type=epath.Path, required=True)
  parser.add_argument('--data_dir', help=f'where {_DATASET} is prepared')
  parser.add_argument('--only', default='', help='rows to train, by commas')
  parser.add_argument(
    '--finalists', default='', help='rows to train longer, three seeds each'
  )
  parser.add_argument('--table', action='store_true', help='only the table')
  args = parser.parse_args(argv)
  only, finalists = _names(parser, args.only), _names(parser, args.finalists)
  rows, finals = args.workdir / 'rows', args.workdir / 'finalists'
  if not args.table:
    if not args.data_dir:
      parser.error(f'give --data_dir=DATA, where {_DATASET} is prepared')
    host_memory.keep()
    logs.setup_console()
    for name in finalists:
      for seed in _SEEDS:
        config = row_config(name, args.data_dir, _FINAL_STEPS, seed)
        run_row(config, finals / f'{name}_{seed}', row=name, seed=seed)
    for name in () if finalists else only or ROWS:
      config = row_config(name, args.data_dir, _STEPS)
      run_row(config, rows / name, row=name, seed=0)
  for folder in (rows, finals):
    results = _results(folder)
    if results:
      print(f'\n{folder.name}\n\n{table(results)}')
      if folder == rows:
        write_plots(results, args.workdir)


if __name__ == '__main__':
  main()
