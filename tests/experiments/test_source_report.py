"""The rules of the source report's claims, and a study of size smoke."""

import html.parser
import math

import numpy as np
import pytest
import scipy.stats

from dermvq_jax.data import prepared
from experiments.source_report import __main__ as command
from experiments.source_report import claims, page, protocol


def _rows(metric, values, every=100):
  return [
    {'step': every * (i + 1), metric: float(v)} for i, v in enumerate(values)
  ]


def _timed(rows, speeds):
  return [*_rows('step/steps_per_second', speeds, every=10), *rows]


def _decide(text, **logs):
  (claim,) = [c for c in claims.CLAIMS if text in c.text]
  return claim.decide(claims.Logs(**logs))


def _of_vqvae(metric, values):
  return {'augmented': [_rows(metric, values)]}


def _pairs(metric, *pairs):
  plain, augmented = zip(*pairs)
  return {
    'plain': [_rows(metric, values) for values in plain],
    'augmented': [_rows(metric, values) for values in augmented],
  }


_FALLING = (0.15, 0.05, 0.02, 0.01)
_CASES = [
  ('decreases in each', _of_vqvae('train/mse', _FALLING), 'confirmed'),
  ('decreases in each', _of_vqvae('train/mse', (3, 2, 2)), 'not confirmed'),
  ('close to 0', _of_vqvae('val/nmse', (1, 0.5, 0.04)), 'confirmed'),
  ('close to 0', _of_vqvae('val/nmse', (1, 0.5, 0.06)), 'not confirmed'),
  ('Perplexity', _of_vqvae('train/perplexity', range(10)), 'confirmed'),
  # Up and down, as by chance.
  ('Perplexity', _of_vqvae('train/perplexity', [1, 9] * 5), 'not decided'),
  (
    'Perplexity',
    _of_vqvae('train/perplexity', range(10, 0, -1)),
    'not confirmed',
  ),
  ('Perplexity', _of_vqvae('train/perplexity', [1] * 10), 'not confirmed'),
  # A rise that ends below its first value.
  (
    'Perplexity',
    _of_vqvae('train/perplexity', [40, *range(20, 40)]),
    'not confirmed',
  ),
  # Paired by seed: differences 1, 1.1, 0.9.
  (
    'better images',
    _pairs('val/psnr', ((20, 30), (31,)), ((32,), (33.1,)), ((25,), (25.9,))),
    'confirmed',
  ),
  (
    'better images',
    _pairs('val/psnr', ((31,), (30,)), ((33.1,), (32,)), ((25.9,), (25,))),
    'not confirmed',
  ),
  # Differences 1 and -1: the interval contains 0. One seed has no interval.
  (
    'better images',
    _pairs('val/psnr', ((30,), (31,)), ((30,), (29,))),
    'not decided',
  ),
  ('better images', _pairs('val/psnr', ((30,), (40,))), 'not decided'),
  (
    'more time to reconstruct',
    _pairs('val/mse', ((4, 2, 1), (4, 3, 2)), ((4, 2, 1), (4, 3, 2.1))),
    'confirmed',
  ),
  (
    'falls sharply',
    {'prior': _rows('step/loss', (5, 2, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4))},
    'confirmed',
  ),
  (
    'falls sharply',
    {'prior': _rows('step/loss', range(8, 0, -1))},
    'not confirmed',
  ),
  (
    'few epochs',
    {'prior': _rows('val/bits_per_code', (5, 4, 3, 3, 3, 3, 3, 3))},
    'confirmed',
  ),
  (
    'few epochs',
    {'prior': _rows('val/bits_per_code', (5, 3.001, 3, 3, 3, 3, 3, 3))},
    'not confirmed',
  ),
  (
    'few epochs',
    {'prior': _rows('val/bits_per_code', (5, 3.05, 3, 3, 3, 3, 3, 3))},
    'not decided',
  ),
]


@pytest.mark.parametrize(
  ('text', 'logs', 'status'), _CASES, ids=lambda v: v if type(v) is str else ''
)
def test_rules(text, logs, status):
  assert _decide(text, **logs).status == status


@pytest.mark.parametrize(
  ('vqvae', 'prior', 'status'),
  [
    ((10, 10, 10), (5, 5, 5), 'confirmed'),
    ((5, 5, 5), (10, 10, 10), 'not confirmed'),
    ((4, 5, 10), (3, 6, 7), 'not decided'),  # The ranges overlap.
  ],
)
def test_which_is_faster(vqvae, prior, status):
  """Epochs of 100 steps; speeds in steps per second."""
  verdict = _decide(
    'faster',
    augmented=[_timed(_rows('val/mse', (2, 1)), vqvae)],
    prior=_timed(_rows('val/nll', (2, 1)), prior),
  )
  assert verdict.status == status
  if status == 'confirmed':
    assert '10 s an epoch' in verdict.number and '20 s' in verdict.number


@pytest.mark.parametrize(
  ('speed', 'status'),
  [(5, 'confirmed'), (40, 'not confirmed'), (20, 'not decided')],
)
def test_slow_prior(speed, status):
  """95% of the improvement takes 195 steps, for the prior twice as many."""
  verdict = _decide(
    'slowly',
    augmented=[_timed(_rows('val/mse', (2, 1, 1)), [10])],
    prior=_timed(_rows('val/nll', (2, 1, 1), every=200), [speed]),
  )
  assert verdict.status == status
  assert 'the VQ-VAE 20 s' in verdict.number  # 195 steps, 10 per second.


@pytest.mark.parametrize('claim', claims.CLAIMS, ids=lambda c: c.text[:20])
def test_nothing_is_decided_without_logs(claim):
  for logs in (claims.Logs(), claims.Logs([()], [()], ())):
    assert claim.decide(logs).status == claims.OPEN


def test_steps_to():
  rows = _rows('val/mse', (4, 2, 3, 1))
  assert claims.steps_to(rows, 'val/mse', 5) == 100
  assert claims.steps_to(rows, 'val/mse', 3) == 150  # Halfway down.
  assert claims.steps_to(rows, 'val/mse', 1) == 400
  assert math.isnan(claims.steps_to(rows, 'val/mse', 0.5))


def test_seed_interval_is_that_of_the_t_test():
  values = [0.3, 0.1, 0.7]
  expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
  np.testing.assert_allclose(
    claims.seed_interval(values), (expected.low, expected.high)
  )
  assert claims.seed_interval([1.0]) == (-math.inf, math.inf)


def test_queue():
  trials = list(protocol.queue(3))
  assert len(set(trials)) == len({trial.name for trial in trials}) == 12
  assert [trial.name for trial in trials if 'prior' in trial.phases] == [
    'plain_augmented_0',
    'package_augmented_0',
  ]


def test_configs_differ_only_in_their_recipe():
  def config(recipe, augmented, phase='vqvae'):
    trial = protocol.Trial(recipe, augmented, 0)
    images = prepared.Dataset('ham10000/64', 'DATA')
    return protocol.configs(trial, 'full', images)[phase]

  plain = config('plain', False)
  assert plain.quantizer.codebook_init == 'random'
  assert plain.quantizer.restart_after == 0
  assert (plain.num_epochs, plain.batch_size) == (10, 8)
  augmented = config('plain', True)
  assert augmented.augment.cutout_probability == 0.5
  assert augmented.augment.rgb_shift_probability == 0.5
  augmented.augment = plain.augment
  assert augmented == plain
  assert config('package', False).augment.cutout_target == 'clean'
  prior = config('plain', True, 'prior')
  assert (prior.loss, prior.num_epochs) == ('bce', 20)
  assert prior.class_balance == 0


class _Figures(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.sections, self.figures, self.ids = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids += [attrs['id']] if 'id' in attrs else []
    if tag == 'section':
      self.sections.append(attrs['id'].removeprefix('about-'))
    if tag == 'figure':
      self.figures.append(attrs['id'])


@pytest.mark.slow
def test_one_command(tmp_path, smoke_run, monkeypatch, capsys):
  """A study of a single trial, whose steps the smoke run has compiled."""
  only = protocol.Trial('package', True, 0)
  monkeypatch.setattr(protocol, 'queue', lambda unused_seeds: [only])
  arguments = [f'--workdir={tmp_path}', '--size=smoke']
  command.main([*arguments, f'--data_dir={smoke_run}/data'])
  printed = capsys.readouterr().out
  assert printed.count('not run long enough') > len(claims.CLAIMS)
  found = _Figures((tmp_path / 'index.html').read_text())
  assert found.sections == [
    'claims',
    'numbers',
    *(f'fig{i}' for i in range(3, 10)),
  ]
  assert len(set(found.ids)) == len(found.ids)
  assert {'code_map_package', 'samples_package', 'prior_loss_package'} < set(
    found.figures
  )
  assert 'samples_plain' not in found.figures  # It was not trained.
  logs = protocol.read_logs(tmp_path, 1)
  assert logs['package'].prior and not logs['plain'].vqvae
  # A phase counts only when its training is finished.
  metrics = tmp_path / only.name / 'vqvae' / 'metrics.jsonl'
  lines = metrics.read_text().splitlines(keepends=True)
  metrics.write_text(''.join(lines[:1]))
  assert not protocol.read_logs(tmp_path, 1)['package'].vqvae


def test_all_verdicts_are_on_the_page():
  section = page.verdicts({'plain': claims.Logs(), 'package': claims.Logs()})
  table, rules = section.tables
  assert len(table.rows) == len(rules.rows) == len(claims.CLAIMS)
  assert all(len(row) == 3 for row in table.rows)


def test_mistakes(tmp_path, capsys):
  with pytest.raises(SystemExit):
    command.main([f'--workdir={tmp_path}'])
  assert '--manual_dir=FOLDER' in capsys.readouterr().err
