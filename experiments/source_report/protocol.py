"""The trainings: the report's protocol, and this package's own recipe.

- `plain`: the VQ-VAE as papers and tutorials first described it: ReLU, Adam's
  usual b2, codes of 64 dimensions that start small and at random, no restart of
  unused codes, a commitment weight of 0.25. Augmentation also changes the
  target, as if images were augmented before they reach the model. The prior
  learns by binary cross-entropy, the report's equation 3.
- `package`: the shipped configs, which flip images; targets stay clean.

Each recipe trains VQ-VAEs with and without coarse cut-out and RGB shift (p =
0.5 each), and a prior on the codes of the first seed's VQ-VAE with them.
Batches have 8 images: on all of HAM10000 ten epochs are 10,000 steps; the
report says about 12,000.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from etils import epath

from dermvq_jax.data import prepared
from dermvq_jax.generation import encode
from dermvq_jax.runs import phase as phase_lib
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop
from experiments import common
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
    'quantizer.codebook_init=random',
    'quantizer.restart_after=0',
    'augment.flips=False',
    'augment.cutout_target=augmented',
  ),
  'package': (),
}
_PRIOR = {'plain': ('loss=bce', 'class_balance=0.0'), 'package': ()}
# The report trained with squared error.
_CONFIGS = {'vqvae': 'vqvae:mse', 'prior': 'prior'}
_FULL = ('batch_size=8', 'num_epochs=10.0')
_FULL_PRIOR = ('num_epochs=20.0',)


@dataclasses.dataclass(frozen=True)
class Trial:
  """One training of a VQ-VAE, and of its prior if it has one."""

  recipe: str
  augmented: bool
  seed: int

  @property
  def name(self) -> str:
    """Name of the workdir."""
    kind = 'augmented' if self.augmented else 'unaugmented'
    return f'{self.recipe}_{kind}_{self.seed}'

  @property
  def phases(self) -> tuple[str, ...]:
    """Names of the phases that are trained, in order."""
    with_prior = self.augmented and self.seed == 0
    return ('vqvae', 'prior') if with_prior else ('vqvae',)

  def run(self, workdir: epath.Path) -> run_lib.Run:
    """Returns the trial's run in the folder of the study."""
    return run_lib.Run(workdir / self.name)


def queue(num_seeds: int) -> Iterator[Trial]:
  """Yields all trials; those that decide most come first."""
  for seed in range(num_seeds):
    for recipe in RECIPES:
      for augmented in (True, False):
        yield Trial(recipe, augmented, seed)


def configs(trial: Trial, size: str, images: prepared.Dataset):
  """Returns the configs of a trial's phases, by name."""
  full = size == 'full'
  overrides = {
    'vqvae': [
      f'dataset={images.name}',
      f'data_dir={images.data_dir}',
      *RECIPES[trial.recipe],
      *(_AUGMENTED if trial.augmented else ()),
      *(_FULL if full else ()),
    ],
    'prior': [*_PRIOR[trial.recipe], *(_FULL_PRIOR if full else ())],
  }
  return {
    phase: common.load_config(
      _CONFIGS[phase], *overrides[phase], f'seed={trial.seed}', size=size
    )
    for phase in trial.phases
  }


def train_all(
  trials: Sequence[Trial],
  workdir: epath.Path,
  size: str,
  images: prepared.Dataset,
):
  """Trains what is missing."""
  by_name = {trial.name: trial for trial in trials}
  for name in common.announced(list(by_name)):
    trial = by_name[name]
    run = trial.run(workdir)
    for phase, config in configs(trial, size, images).items():
      if phase == 'prior':
        encode.encode(run, copies=1)
      loop.train(config, run)


def _finished_rows(phase: phase_lib.Phase) -> claims.Rows:
  """Returns the metrics of a phase; nothing if its training is not finished."""
  rows = phase.metrics() if phase.started else []
  finished = rows and rows[-1]['step'] >= phase.config.num_train_steps
  return rows if finished else ()


def read_logs(workdir: epath.Path, num_seeds: int) -> dict[str, claims.Logs]:
  """Reads the logs of each recipe's finished phases."""

  def rows(trial: Trial, phase: str) -> claims.Rows:
    return _finished_rows(trial.run(workdir).phase(phase))

  return {
    recipe: claims.Logs(
      *(
        [rows(Trial(recipe, augmented, s), 'vqvae') for s in range(num_seeds)]
        for augmented in (False, True)
      ),
      prior=rows(Trial(recipe, True, 0), 'prior'),
    )
    for recipe in RECIPES
  }
