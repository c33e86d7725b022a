"""Figures of a run, as PNG files in `workdir/report`."""

from collections.abc import Callable

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import checkpoints, images, inference, logs, workdirs
from dermvq_jax.data import prepared

_SAMPLES_PER_CLASS = 8
_NUM_RECONSTRUCTIONS = 10
_DPI = 120

# phase -> panels: (title, y label, log scale, metric)
_PANELS = {
  'vqvae': (
    ('Reconstruction error', 'NMSE', True, 'nmse'),
    ('Reconstruction quality', 'PSNR (dB)', False, 'psnr'),
    ('Perplexity of the codes', 'perplexity', False, 'perplexity'),
    ('Codebook usage', 'share of codes in use', False, 'codebook_usage'),
  ),
  'prior': (
    ('Length of the codes', 'bits per code', False, 'bits_per_code'),
    ('Most likely code is right', 'share of codes', False, 'accuracy'),
  ),
}
_SERIES = (
  ('step/', 'training, last steps'),
  ('train/', 'training, epoch'),
  ('val/', 'validation'),
)


def write_curves(folder: epath.Path, path: epath.Path):
  """Draws a phase's metrics.jsonl to one PNG."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  rows = logs.read(folder)
  panels = _PANELS[folder.name]
  figure, axes = plt.subplots(
    1, len(panels), figsize=(4.2 * len(panels), 3.4), layout='constrained'
  )
  for axis, (title, unit, log_scale, metric) in zip(axes, panels):
    for colour, (prefix, name) in enumerate(_SERIES):
      if prefix == 'step/' and metric == 'codebook_usage':
        continue  # over a few steps it says nothing
      points = [
        (r['step'], r[prefix + metric]) for r in rows if prefix + metric in r
      ]
      if points:
        marker = '' if prefix == 'step/' else 'o'
        width = 0.8 if prefix == 'step/' else 1.6
        axis.plot(
          *zip(*points),
          marker=marker,
          ms=3,
          lw=width,
          label=name,
          c=f'C{colour}',
        )
    axis.set(title=title, xlabel='step', ylabel=unit)
    if log_scale:
      axis.set_yscale('log')
    if metric == 'codebook_usage':
      axis.set_ylim(0, 1.05)
    axis.grid(alpha=0.3)
    if axis.lines:
      axis.legend(fontsize='small')
  with path.open('wb') as f:
    figure.savefig(f, dpi=_DPI)
  plt.close(figure)


def _label_rows(sheet: np.ndarray, names: tuple[str, ...], path: epath.Path):
  """Saves a sheet with a name at the left of each row."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  height, width = sheet.shape[:2]
  figure = plt.figure(figsize=(width / _DPI + 1.2, height / _DPI))
  margin = 1.2 / figure.get_figwidth()
  axis = figure.add_axes((margin, 0, 1 - margin, 1))
  axis.imshow(sheet, interpolation='nearest')
  axis.axis('off')
  for i, name in enumerate(names):
    y = 1 - (i + 0.5) / len(names)
    figure.text(margin * 0.9, y, name, ha='right', va='center', fontsize=9)
  with path.open('wb') as f:
    figure.savefig(f, dpi=_DPI)
  plt.close(figure)


def _write_reconstructions(model, originals, path):
  rows = [originals, model.reconstruct(originals)]
  _label_rows(
    _enlarge(images.sheet(rows)), ('original', 'reconstruction'), path
  )


def _enlarge(sheet: np.ndarray) -> np.ndarray:
  """Doubles small pictures, so that a page shows them without blur."""
  return sheet.repeat(2, 0).repeat(2, 1)


def _write_code_map(model, original, path):
  """One image, its grid of codes and the quantized picture."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  codes = model.encode(original[None])
  figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout='constrained')
  axes[0].imshow(original)
  axes[0].set_title('original')
  shown = axes[1].imshow(
    codes[0], cmap='nipy_spectral', vmin=0, vmax=model.codebook_size - 1
  )
  figure.colorbar(shown, ax=axes[1])
  axes[1].set_title('its codes, the input of the prior')
  axes[2].imshow(model.decode(codes)[0])
  axes[2].set_title('decoded from the codes')
  for axis in axes:
    axis.axis('off')
  with path.open('wb') as f:
    figure.savefig(f, dpi=_DPI)
  plt.close(figure)


def run(workdir: epath.PathLike, seed: int = 0) -> list[epath.Path]:
  """Writes curves, reconstructions, a code map and samples of each class.

  Args:
    workdir: with a trained VQ-VAE; the prior's figures need a trained prior.
    seed: of the samples.

  Returns:
    The files written.

  Raises:
    UserError: no trained VQ-VAE, or its images are not to be found.
  """
  workdir = epath.Path(workdir).expanduser()
  model = inference.load(workdir)
  folder = workdir / 'report'
  vqvae_dir = workdirs.phase_dir(workdir, 'vqvae')
  prior_dir = workdirs.phase_dir(workdir, 'prior')
  config, facts = workdirs.load_config(vqvae_dir)
  source = prepared.open_split(
    facts['dataset'], workdirs.data_dir(workdir, config.data_dir), 'val'
  )
  count = min(_NUM_RECONSTRUCTIONS, len(source))
  originals = np.stack([source[i]['image'] for i in range(count)])
  folder.mkdir(parents=True, exist_ok=True)
  written = []

  def write(name: str, draw: Callable[..., None], *args):
    path = folder / name
    draw(*args, path)
    written.append(path)
    logging.info('Wrote %s', path)

  write('vqvae_curves.png', write_curves, vqvae_dir)
  write('reconstructions.png', _write_reconstructions, model, originals)
  write('code_map.png', _write_code_map, model, originals[0])
  if workdirs.exists(prior_dir):
    write('prior_curves.png', write_curves, prior_dir)
  if checkpoints.has_best(prior_dir):
    samples = model.sample(
      np.repeat(np.arange(len(model.class_names)), _SAMPLES_PER_CLASS),
      seed=seed,
      show_progress=True,
    )
    rows = samples.reshape(-1, _SAMPLES_PER_CLASS, *samples.shape[1:])
    sheet = _enlarge(images.sheet(list(rows)))
    write('samples.png', _label_rows, sheet, model.class_names)
  return written
