"""What is trained: the report's protocol, and this package's own recipe.

- `plain`: the VQ-VAE as papers and tutorials first had it: ReLU, Adam's usual
  b2, codes of 64 dimensions that start small and at random, unused ones not
  restarted, commitment 0.25. Augmentation changes the target too, as it does
  where images are augmented before the model sees them. The prior learns by
  binary cross-entropy, the report's equation 3.
- `package`: the shipped configs, with their flips; targets stay clean.

Each with coarse cut-out and RGB shift (p = 0.5 each) and without, and a prior
on the first seed's augmented VQ-VAE. Batches of 8: on the whole HAM10000 ten
epochs are 10,000 steps, where the report says about 12,000.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from absl import logging
from etils import epath

from dermvq_jax import config_files
from dermvq_jax.generation import encode
from dermvq_jax.runs import logs, workdirs
from dermvq_jax.training import loop
from experiments.source_report import claims

_AUGMENTED = (
  'augment.cutout_probability=0.5',
  'augment.rgb_shift_probability=0.5',
)
RECIPES: dict[str, tuple[str, ...]] = {
  'plain': (
    'model.activation=relu',
    'optim.b2=0.999',
    'quantizer.code_dim=64',
    'quantizer.commitment_weight=0.25',
    'quantizer.codebook_start=random',
    'quantizer.restart_after=0',
    'augment.flips=False',
    'augment.cutout_target=augmented',
  ),
  'package': (),
}
_PRIOR = {'plain': ('loss=bce',), 'package': ()}
_FULL = ('batch_size=8', 'num_epochs=10.0')
_FULL_PRIOR = ('num_epochs=20.0',)
DATASETS = {'full': 'ham10000/64', 'smoke': 'synthetic_dermoscopy/smoke'}


@dataclasses.dataclass(frozen=True)
class Run:
  """One training of a VQ-VAE, and of a prior where there is one."""

  recipe: str
  augmented: bool
  seed: int

  @property
  def name(self) -> str:
    """Of its workdir."""
    kind = 'augmented' if self.augmented else 'unaugmented'
    return f'{self.recipe}_{kind}_{self.seed}'

  @property
  def phases(self) -> tuple[str, ...]:
    """What is trained, in order."""
    with_prior = self.augmented and self.seed == 0
    return ('vqvae', 'prior') if with_prior else ('vqvae',)


def queue(num_seeds: int) -> Iterator[Run]:
  """All runs; those that decide most come first."""
  for seed in range(num_seeds):
    for recipe in RECIPES:
      for augmented in (True, False):
        yield Run(recipe, augmented, seed)


def configs(run: Run, size: str, dataset: str, data_dir: epath.PathLike):
  """The configs of a run's phases, by name."""
  suffix = ':smoke' if size == 'smoke' else ''
  full = size == 'full'
  overrides = {
    'vqvae': [
      f'dataset={dataset}',
      f'data_dir={data_dir}',
      *RECIPES[run.recipe],
      *(_AUGMENTED if run.augmented else ()),
      *(_FULL if full else ()),
    ],
    'prior': [*_PRIOR[run.recipe], *(_FULL_PRIOR if full else ())],
  }
  return {
    phase: config_files.load(
      f'{phase}{suffix}',
      [f'--config.{o}' for o in (*overrides[phase], f'seed={run.seed}')],
    )
    for phase in run.phases
  }


def is_done(folder: epath.Path, phase: str) -> bool:
  """Whether a phase was trained to its end."""
  folder = workdirs.phase_dir(folder, phase)
  if not workdirs.exists(folder):
    return False
  rows = logs.read(folder)
  last = workdirs.load_config(folder)[0].num_train_steps
  return bool(rows) and rows[-1]['step'] >= last


def train_all(
  runs: Sequence[Run],
  workdir: epath.Path,
  size: str,
  dataset: str,
  data_dir: epath.PathLike,
) -> Iterator[Run]:
  """Trains what is missing; yields each run when it is done."""
  for number, run in enumerate(runs, 1):
    logging.info('\n== %d/%d %s', number, len(runs), run.name)
    folder = workdir / run.name
    for phase, config in configs(run, size, dataset, data_dir).items():
      if phase == 'prior':
        encode.run(folder)
      loop.run(config, folder)
    yield run


def read_logs(workdir: epath.Path, num_seeds: int) -> dict[str, claims.Logs]:
  """The logs of each recipe, of the phases that are done."""

  def rows(run: Run, phase: str) -> claims.Rows:
    folder = workdir / run.name
    return logs.read(folder / phase) if is_done(folder, phase) else ()

  return {
    recipe: claims.Logs(
      *(
        [rows(Run(recipe, augmented, s), 'vqvae') for s in range(num_seeds)]
        for augmented in (False, True)
      ),
      prior=rows(Run(recipe, True, 0), 'prior'),
    )
    for recipe in RECIPES
  }
