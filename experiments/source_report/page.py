"""The page: the report's figures 3 to 9, repeated, beside its statements."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from dermvq_jax import inference
from dermvq_jax.reporting import figures, model_sections, page
from dermvq_jax.runs import run as run_lib
from experiments.source_report import claims, protocol

_TITLES = {
  'plain': 'plain recipe',
  'package': "this package's recipe",
}
_NUM_IMAGES, _NUM_SAMPLES = 8, 6
# The real images of each class are taken from this many validation images.
_SEARCHED = 512

# The report's statements about its figures.
_FIG_3 = (
  'The report: around 0.15 initially, decreasing in each of 10 epochs (about '
  '12,000 iterations), reaching approximately 0.'
)
_FIG_4 = 'The report: perplexity increases with the epochs.'
_FIG_5 = 'The report: the normalized MSE falls, the perplexity rises.'
_FIG_6 = 'The report: original and reconstructed images.'
_FIG_7 = 'The report: a feature map, the input of the Gated PixelCNN.'
_FIG_8 = (
  'The report: the loss falls sharply at first, then gradually, over 20 epochs.'
)
_FIG_9 = 'The report: samples of generated images.'


def verdicts(logs: dict[str, claims.Logs]) -> page.Section:
  """Returns the section of the claims, their verdicts and the rules."""
  rows = [
    (claim.text, *(str(claim.decide(logs[recipe])) for recipe in logs))
    for claim in claims.CLAIMS
  ]
  return page.Section(
    'claims',
    'The claims',
    [
      'Each claim is decided by a rule that was written down before the '
      'training. A verdict is about these data and recipes; the report used '
      'others.'
    ],
    tables=[
      page.Table(('claim', *(_TITLES[r] for r in logs)), rows, words=True),
      page.Table(
        ('claim', 'rule'),
        [(claim.text, claim.rule) for claim in claims.CLAIMS],
        'The rules',
        words=True,
      ),
    ],
  )


def _numbers(logs: dict[str, claims.Logs]) -> page.Section:
  columns = ('val PSNR (dB)', 'NMSE', 'perplexity', 'codebook usage')
  metrics = ('psnr', 'nmse', 'perplexity', 'codebook_usage')
  rows = []
  for recipe, found in logs.items():
    for kind in ('augmented', 'plain'):
      for seed, run in enumerate(getattr(found, kind)):
        values = [claims.series(run, f'val/{m}')[1] for m in metrics]
        seconds = claims.seconds_an_epoch(run)
        name = 'augmented' if kind == 'augmented' else 'unaugmented'
        rows.append(
          (
            f'{recipe}, {name}, seed {seed}',
            *(f'{v[-1]:.4g}' if len(v) else 'not run' for v in values),
            f'{seconds[1]:.1f}' if len(seconds) else '',
          )
        )
  return page.Section(
    'numbers',
    'The runs',
    [
      'Values of the last validation. Times depend on other work on the '
      'machine.'
    ],
    tables=[page.Table(('VQ-VAE', *columns, 's an epoch'), rows)],
  )


def _pair(found: claims.Logs) -> dict[str, claims.Rows]:
  """Returns the VQ-VAEs of the first seed by their augmentation."""
  return {
    'no augmentation': found.plain[0] if found.plain else (),
    'cut-out and RGB shift': found.vqvae,
  }


def _curves(logs: dict[str, claims.Logs]) -> list[page.Section]:
  """Returns figures 3 to 5."""

  def compare(metric: str, unit: str, log_scale: bool = False):
    return [
      page.Figure(
        f'{unit}_{recipe}'.lower(),
        f'{unit} during training, {_TITLES[recipe]}.',
        svg=figures.compare(
          _pair(found),
          metric,
          unit,
          name=f'{unit}_{recipe}',
          log_scale=log_scale,
        ),
      )
      for recipe, found in logs.items()
    ]

  smoothed = [
    page.Figure(
      f'smoothed_{recipe}',
      f'NMSE and perplexity, smoothed, with augmentation, {_TITLES[recipe]}.',
      svg=figures.smoothed(found.vqvae, f'smoothed_{recipe}'),
    )
    for recipe, found in logs.items()
  ]
  return [
    page.Section(
      'fig3',
      'Fig 3: Reconstruction loss of the VQ-VAE',
      [_FIG_3],
      figures=compare('step/mse', 'MSE', True),
    ),
    page.Section(
      'fig4',
      'Fig 4: Perplexity of the VQ-VAE',
      [_FIG_4],
      figures=compare('step/perplexity', 'Perplexity'),
    ),
    page.Section(
      'fig5',
      'Fig 5: Normalized mean square error and perplexity',
      [_FIG_5],
      figures=smoothed,
    ),
  ]


def _validation_images(run: run_lib.Run) -> tuple[np.ndarray, np.ndarray]:
  """Returns validation images and their labels."""
  source = run.images.split('val')
  records = [source[i] for i in range(min(_SEARCHED, len(source)))]
  return (
    np.stack([record['image'] for record in records]),
    np.array([record['label'] for record in records]),
  )


def _pictures(
  logs: dict[str, claims.Logs], workdir: epath.Path
) -> list[page.Section]:
  """Returns figures 6 to 9 of the recipes that are trained."""
  reconstructions, maps, losses, samples = [], [], [], []
  for recipe, found in logs.items():
    if not found.vqvae:
      continue
    run = protocol.Trial(recipe, True, 0).run(workdir)
    model = inference.Model(run)
    real, labels = _validation_images(run)
    shown = real[:_NUM_IMAGES]
    reconstructions.append(
      model_sections.reconstructions_figure(
        shown, model.reconstruct(shown), f'reconstructions_{recipe}'
      )
    )
    maps.append(
      model_sections.code_map_figure(model, shown[0], f'code_map_{recipe}')
    )
    if not found.prior:
      continue
    losses.append(
      page.Figure(
        f'prior_loss_{recipe}',
        f'Training loss of the Gated PixelCNN, {_TITLES[recipe]}.',
        svg=figures.compare(
          {'training, last steps': found.prior},
          'step/loss',
          f'{model.config.prior.loss} (nats per code)',
          name=f'prior_loss_{recipe}',
          # The loss starts a hundred times as high as it ends.
          log_scale=model.config.prior.loss == 'bce',
        ),
      )
    )
    names = model.class_names
    new = model.sample(
      np.repeat(np.arange(len(names)), _NUM_SAMPLES), show_progress=True
    )
    samples.append(
      model_sections.samples_figure(
        new.reshape(len(names), _NUM_SAMPLES, *new.shape[1:]),
        [real[labels == i] for i in range(len(names))],
        names,
        f'samples_{recipe}',
      )
    )
  order = "The plain recipe first, then this package's."
  return [
    page.Section(
      'fig6',
      'Fig 6: Original and reconstructed images',
      [_FIG_6, f'Here: validation images. {order}'],
      figures=reconstructions,
    ),
    page.Section(
      'fig7', 'Fig 7: Input of the Gated PixelCNN', [_FIG_7], figures=maps
    ),
    page.Section(
      'fig8',
      'Fig 8: Training loss of the Gated PixelCNN',
      [_FIG_8],
      figures=losses,
    ),
    page.Section(
      'fig9',
      'Fig 9: Generated images',
      [_FIG_9, f'Here: not selected by hand. Not for diagnosis. {order}'],
      figures=samples,
    ),
  ]


def write(
  workdir: epath.Path, logs: dict[str, claims.Logs]
) -> Sequence[epath.Path]:
  """Writes `workdir/index.html` from the trainings that are finished.

  Args:
    workdir: folder of the study.
    logs: from `protocol.read_logs`.

  Returns:
    The files written, the page first.
  """
  sections = [
    verdicts(logs),
    _numbers(logs),
    *_curves(logs),
    *_pictures(logs, workdir),
  ]
  return page.write(
    workdir,
    'The source report, repeated',
    'A VQ-VAE for 10 epochs, a Gated PixelCNN on its codes for 20',
    sections,
  )
