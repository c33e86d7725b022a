"""The prior study: how long priors train, its table, and a full small study."""

import json

import pytest
from etils import epath

from dermvq_jax.runs import run as run_lib
from experiments import common
from experiments import prior_study as study


@pytest.mark.parametrize(
  ('seconds', 'steps'),
  [(1.0, 2000), (0.5, 2250), (0.1, 12_000)],
)
def test_steps_fit_into_the_time(seconds, steps):
  speed = {'step_seconds': seconds, 'minutes': 20}
  assert study.num_train_steps(speed) == steps


def _write_speeds(folder, *priors):
  speed = {
    'step_seconds': 0.5,
    'sample_seconds': 2.0,
    'num_params': 1234,
    'minutes': 20,
  }
  common.write_json(folder / 'speeds.json', dict.fromkeys(priors, speed))


def _write_rows(folder, bits):
  folder.mkdir(parents=True)
  rows = [{'step': s, 'val/bits_per_code': b} for s, b in bits.items()]
  rows.insert(0, {'step': 50, 'step/loss': 1.0})
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)


def test_the_table_reads_equal_steps_and_equal_time(tmp_path):
  folder = epath.Path(tmp_path)
  _write_speeds(folder, 'rnn', 'transformer')
  # 20 minutes are 2,400 steps: later validations do not count.
  bits = {1750: 4.0, 2000: 4.2, 2250: 4.1, 2500: 3.0}
  _write_rows(tmp_path / 'rnn' / 'prior', bits)
  rows = study.table(folder).splitlines()[2:]
  cells = ['rnn', '1,234', '4.200', '4.000', '1750 of 2250', '31.2', '2.000']
  assert rows[0].strip('| ').split(' | ') == cells
  assert rows[1].count('not yet') == 3


def test_from_a_run_to_the_table(smoke_run, tmp_path, monkeypatch, capsys):
  config = study.prior_config
  monkeypatch.setattr(study, 'EQUAL_STEPS', 10)
  monkeypatch.setattr(study, 'EVAL_EVERY', 5)

  def smoke_config(prior, *overrides):
    small = 'prior.num_layers=1', 'prior.features=8', 'prior.head_features=8'
    short = 'batch_size=8', 'optim.warmup_steps=2'
    return config(prior, *small, *short, *overrides)

  monkeypatch.setattr(study, 'prior_config', smoke_config)
  changed = 'gated_pixelcnn,prior.dropout_rate=0.3'
  arguments = [f'--vqvae={smoke_run}', f'--workdir={tmp_path}']
  arguments += ['--minutes=1e-6', '--priors', 'gated_pixelcnn', changed]
  study.main(arguments)
  *_, plain, row = capsys.readouterr().out.splitlines()
  assert plain.startswith('| gated_pixelcnn | ') and plain.count('not yet') == 2
  assert row.startswith(f'| {changed} | ')
  trained = run_lib.Run(tmp_path / changed).prior.config
  assert trained.prior.dropout_rate == 0.3
  with pytest.raises(SystemExit):
    study.main([*arguments, '--minutes=1'])
  assert 'other --priors or --minutes' in capsys.readouterr().err
  study.main([f'--workdir={tmp_path}', '--table'])
  assert capsys.readouterr().out.splitlines()[-1] == row


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [([], 'give --vqvae=RUN'), (['--table'], 'leave out --table')],
)
def test_mistakes(arguments, message, tmp_path, capsys):
  with pytest.raises(SystemExit):
    study.main([f'--workdir={tmp_path}', *arguments])
  assert message in capsys.readouterr().err
