"""The source report's claims and the rules that decide them.

A rule reads only logs: rows of metrics.jsonl. It was written down before the
training. If the logs do not suffice, the verdict is 'not decided'.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats

Rows = Sequence[dict[str, Any]]

CONFIRMED, REFUTED, OPEN = 'confirmed', 'not confirmed', 'not decided'
_NEAR_ZERO = 0.05  # NMSE
_SIGNIFICANCE = 0.05
_FEW_EPOCHS = 1 / 4  # as a share of all epochs
# A value that is higher than the best one by these shares is worse, and clearly
# worse.
_WORSE, _CLEARLY_WORSE = 0.01, 0.02
_MOST = 0.95  # as a share of the improvement
_FACTOR = 1.1  # times that differ by more are different


@dataclasses.dataclass(frozen=True)
class Logs:
  """The logs of one recipe; the log of a training that was not run is empty.

  Attributes:
    plain: logs of the VQ-VAEs without augmentation, by seed.
    augmented: logs of the VQ-VAEs with cut-out and RGB shift, by seed.
    prior: log of the prior on the codes of the first augmented VQ-VAE.
  """

  plain: Sequence[Rows] = ()
  augmented: Sequence[Rows] = ()
  prior: Rows = ()

  @property
  def vqvae(self) -> Rows:
    """The log of the VQ-VAE whose codes the prior learns."""
    return self.augmented[0] if self.augmented else ()


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Whether a claim holds, and the numbers behind it."""

  status: str
  number: str

  def __str__(self) -> str:
    """Formats the status and the numbers."""
    return f'{self.status}: {self.number}'


@dataclasses.dataclass(frozen=True)
class Claim:
  """A claim and where the report makes it, its rule in words and in code."""

  text: str
  rule: str
  decide: Callable[[Logs], Verdict]


def _not_run(what: str) -> Verdict:
  return Verdict(OPEN, f'{what} was not run long enough')


def _verdict(holds: bool, number: str) -> Verdict:
  return Verdict(CONFIRMED if holds else REFUTED, number)


def series(rows: Rows, metric: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns steps and values of a metric, `[N]` each."""
  found = [(row['step'], row[metric]) for row in rows if metric in row]
  steps, values = zip(*found) if found else ((), ())
  return np.array(steps, np.float64), np.array(values, np.float64)


def _loss_falls(logs: Logs) -> Verdict:
  values = series(logs.vqvae, 'train/mse')[1]
  if len(values) < 3:
    return _not_run('the VQ-VAE')
  rises = int(np.sum(np.diff(values) >= 0))
  return _verdict(
    not rises,
    f'MSE {values[0]:.4f} to {values[-1]:.4f}, no fall in {rises} of '
    f'{len(values) - 1} epochs',
  )


def _loss_near_zero(logs: Logs) -> Verdict:
  values = series(logs.vqvae, 'val/nmse')[1]
  if len(values) < 3:
    return _not_run('the VQ-VAE')
  mse = [series(logs.vqvae, m)[1] for m in ('step/mse', 'val/mse')]
  span = (
    f'MSE {mse[0][0]:.3f} to {mse[1][-1]:.4f}, ' if all(map(len, mse)) else ''
  )
  return _verdict(values[-1] < _NEAR_ZERO, f'{span}NMSE {values[-1]:.4f}')


def _perplexity_rises(logs: Logs) -> Verdict:
  values = series(logs.vqvae, 'train/perplexity')[1]
  if len(values) < 5:
    return _not_run('the VQ-VAE')
  span = f'{values[0]:.1f} to {values[-1]:.1f}'
  if np.ptp(values) == 0:
    return Verdict(REFUTED, f'{span}, constant')
  tau, p = scipy.stats.kendalltau(np.arange(len(values)), values)
  number = f"{span}, Kendall's tau {tau:.2f} (p = {p:.2g})"
  if p >= _SIGNIFICANCE:
    return Verdict(OPEN, number)
  return _verdict(tau > 0 and values[-1] > values[0], number)


def seed_interval(differences: Sequence[float]) -> tuple[float, float]:
  """Returns the 95% t interval of the mean; infinite for a single value."""
  n = len(differences)
  if n < 2:
    return -math.inf, math.inf
  mean, error = np.mean(differences), np.std(differences, ddof=1) / n**0.5
  half = scipy.stats.t.ppf(0.975, n - 1) * error
  return float(mean - half), float(mean + half)


def _by_interval(differences: Sequence[float], unit: str) -> Verdict:
  """Confirmed if the interval is above 0, not confirmed if it is below 0."""
  if not differences:
    return _not_run('the pair of VQ-VAEs')
  low, high = seed_interval(differences)
  number = f'{np.mean(differences):+.3g} {unit}, '
  if len(differences) < 2:
    return Verdict(OPEN, number + 'one seed')
  number += f'95% [{low:.3g}, {high:.3g}], {len(differences)} seeds'
  if low <= 0 <= high:
    return Verdict(OPEN, number)
  return _verdict(low > 0, number)


def _augmentation_better(logs: Logs) -> Verdict:
  differences = []
  for plain, augmented in zip(logs.plain, logs.augmented):
    values = [series(rows, 'val/psnr')[1] for rows in (plain, augmented)]
    if all(map(len, values)):
      differences.append(values[1].max() - values[0].max())
  return _by_interval(differences, 'dB of val PSNR')


def steps_to(rows: Rows, metric: str, target: float) -> float:
  """Returns the step at which a falling metric first reaches `target`.

  It is interpolated between validations, and NaN if the target is not reached.
  """
  steps, values = series(rows, metric)
  reached = np.flatnonzero(values <= target)
  if not len(reached):
    return math.nan
  i = reached[0]
  if not i:
    return float(steps[0])
  share = (values[i - 1] - target) / (values[i - 1] - values[i])
  return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def _augmentation_slower(logs: Logs) -> Verdict:
  differences = []
  for pair in zip(logs.plain, logs.augmented):
    values = [series(rows, 'val/mse')[1] for rows in pair]
    if not all(map(len, values)):
      continue
    target = max(v.min() for v in values)  # Both reach it.
    plain, augmented = (steps_to(rows, 'val/mse', target) for rows in pair)
    differences.append(100 * (augmented / plain - 1))
  return _by_interval(differences, '% more steps')


def seconds_a_step(rows: Rows) -> np.ndarray:
  """Returns quartiles over the log windows, `[3]`; empty if none was timed."""
  speeds = series(rows, 'step/steps_per_second')[1]
  speeds = speeds[speeds > 0]
  return np.quantile(1 / speeds, (0.25, 0.5, 0.75)) if len(speeds) else speeds


def seconds_an_epoch(rows: Rows) -> np.ndarray:
  """Returns the quartiles of an epoch's time, `[3]`; empty if none was timed.

  The first validation marks the end of the first epoch.
  """
  ends = [row['step'] for row in rows if any(k[:4] == 'val/' for k in row)]
  seconds = seconds_a_step(rows)
  return seconds * min(ends) if ends else seconds[:0]


def _vqvae_faster(logs: Logs) -> Verdict:
  vqvae, prior = (seconds_an_epoch(rows) for rows in (logs.vqvae, logs.prior))
  if not len(vqvae) or not len(prior):
    return _not_run('the VQ-VAE or the prior')
  number = (
    f'{vqvae[1]:.0f} s an epoch [{vqvae[0]:.0f}, {vqvae[2]:.0f}], the prior '
    f'{prior[1]:.0f} s [{prior[0]:.0f}, {prior[2]:.0f}]'
  )
  if vqvae[2] < prior[0] or prior[2] < vqvae[0]:
    return _verdict(vqvae[1] < prior[1], number)
  return Verdict(OPEN, number)


def _few_epochs(logs: Logs) -> Verdict:
  values = series(logs.prior, 'val/bits_per_code')[1]
  if len(values) < 4:
    return _not_run('the prior')
  few = int(len(values) * _FEW_EPOCHS)
  early, best = values[:few].min(), values.min()
  number = (
    f'{early:.3f} bits per code within {few} epochs, {best:.3f} within '
    f'{len(values)}'
  )
  if _WORSE <= early / best - 1 <= _CLEARLY_WORSE:
    return Verdict(OPEN, number)
  return _verdict(early / best - 1 > _CLEARLY_WORSE, number)


def _steps_to_most(rows: Rows, metric: str) -> float:
  """Returns the steps until most of the improvement over the first epoch."""
  values = series(rows, metric)[1]
  return steps_to(rows, metric, values[0] - _MOST * (values[0] - values.min()))


def _slow_prior(logs: Logs) -> Verdict:
  seconds, texts = {}, []
  for rows, metric, what in (
    (logs.prior, 'val/nll', 'the prior'),
    (logs.vqvae, 'val/mse', 'the VQ-VAE'),
  ):
    ends = series(rows, metric)[0]
    if len(ends) < 3 or not len(seconds_a_step(rows)):
      return _not_run(what)
    steps = _steps_to_most(rows, metric)
    seconds[what] = steps * seconds_a_step(rows)[1]
    texts.append(
      f'{what} {seconds[what]:.0f} s ({steps / ends[0]:.1f} of {len(ends)} '
      'epochs)'
    )
  ratio = seconds['the prior'] / seconds['the VQ-VAE']
  if 1 / _FACTOR <= ratio <= _FACTOR:
    return Verdict(OPEN, ', '.join(texts))
  return _verdict(ratio > 1, ', '.join(texts))


def _sharp_then_gradual(logs: Logs) -> Verdict:
  values = series(logs.prior, 'step/loss')[1]
  if len(values) < 8:
    return _not_run('the prior')
  fall = values[0] - values.min()
  if fall <= 0:
    return Verdict(REFUTED, 'the loss does not fall')
  share = (values[0] - values[: len(values) // 4].min()) / fall
  return _verdict(share > 0.5, f'{share:.0%} of the fall')


CLAIMS = (
  Claim(
    'The reconstruction loss decreases in each of 10 epochs (2.1, Fig 3).',
    'The training MSE of every epoch is lower than in the epoch before.',
    _loss_falls,
  ),
  Claim(
    'It comes close to 0 (2.1, Fig 3).',
    f'The last validation has an NMSE below {_NEAR_ZERO}: reconstructions '
    f'explain at least {1 - _NEAR_ZERO:.0%} of the variance of the pixels.',
    _loss_near_zero,
  ),
  Claim(
    'Perplexity increases over the epochs (2.1, Fig 4 and 5).',
    "Kendall's tau of the training perplexity with the epoch differs from 0 "
    f'(p < {_SIGNIFICANCE}): confirmed if it is above 0 and the last epoch is '
    'above the first. Epochs are not independent, so a p close to the limit '
    'says little.',
    _perplexity_rises,
  ),
  Claim(
    'With coarse cut-out and RGB shift it learns better images (2.4).',
    'Best validation PSNR with them minus without them, paired by seed: the '
    'sign of the 95% t interval over the seeds; not decided if it contains 0.',
    _augmentation_better,
  ),
  Claim(
    'With them it takes more time to reconstruct (2.4).',
    'Steps until the validation MSE that both VQ-VAEs of a pair reach, in '
    'percent more than without them: decided by the 95% t interval in the same '
    'way.',
    _augmentation_slower,
  ),
  Claim(
    'The VQ-VAE trains faster than the Gated PixelCNN (2.4).',
    'Seconds an epoch: decided if the ranges between the quartiles over the '
    'log windows do not overlap.',
    _vqvae_faster,
  ),
  Claim(
    "The prior's loss falls sharply, then gradually (2.2, Fig 8).",
    'More than half of the fall of the training loss, from the first log line '
    'to the lowest one, happens in the first quarter of the training.',
    _sharp_then_gradual,
  ),
  Claim(
    'With few epochs the prior does not perform well (2.4).',
    'Best validation bits per code within the first quarter of the epochs: '
    f'confirmed if it is more than {_CLEARLY_WORSE:.0%} above the best of all '
    f'epochs, not confirmed if less than {_WORSE:.0%}, otherwise not decided.',
    _few_epochs,
  ),
  Claim(
    'The prior converges slowly (2.4).',
    f'Seconds of training until {_MOST:.0%} of the improvement from the first '
    "validation to the best one, of the prior's NLL and of the VQ-VAE's MSE: "
    f'decided if one time is more than {_FACTOR} times the other.',
    _slow_prior,
  ),
)
