"""The codebook study: its rows, its queue and its tables."""

import json
import re

import pytest

from dermvq_jax.models import build
from experiments import codebook_study as study
from experiments import common


def _flat(config):
  return {
    f'{k}.{kk}' if isinstance(v, dict) else k: vv if isinstance(v, dict) else v
    for k, v in config.to_dict().items()
    for kk, vv in (v.items() if isinstance(v, dict) else [(None, v)])
  }


def test_rows_are_the_default_with_one_change():
  configs = {name: study.row_config(name, 'DATA', 1500) for name in study.ROWS}
  assert len(configs) <= 30
  assert len({str(config) for config in configs.values()}) == len(configs)
  default = _flat(configs['default'])
  assert default['num_train_steps'] == 1500
  shipped = _flat(common.load_config('vqvae:mse'))
  free = {'data_dir', 'num_train_steps'}
  assert {k for k in default if default[k] != shipped[k]} == free
  for name, config in configs.items():
    flat = _flat(config)
    changed = {k for k in flat | default if flat.get(k) != default.get(k)}
    groups = {key.partition('.')[0] for key in changed}
    assert len(groups) == (name != 'default'), name
    build.vqvae(config)  # It is valid.


def test_bits():
  bits = {
    name: study.bits_per_position(
      build.vqvae(study.row_config(name, 'DATA', 1500)).quantizer
    )
    for name in study.ROWS
  }
  same = {'default', 'vq', 'l2_norm', 'fsq', 'residual'}
  assert {bits[name] for name in same} == {9}
  assert bits['residual_18_bits'] == bits['fsq_18_bits'] == 18
  assert (bits['codes_128'], bits['codes_4096']) == (7, 12)


def _finish(folder, name, seed, psnr):
  """Writes a result with the content that `run_row` returns."""
  folder.mkdir(parents=True)
  result = {
    'row': name,
    'seed': seed,
    'steps': 2,
    'bits': 9.0,
    'num_codes': 512,
    'num_params': 1000 + seed,
    'flops': 5e8,
    'seconds_per_step': 0.25,
    'seconds_per_epoch': 62.5,
    'val': {
      'psnr': psnr,
      'ssim': 0.9,
      'codebook_usage': 1.0,
      'perplexity': 400.0,
    },
    'curve': [[1, 100.0, 20.0], [2, 400.0, psnr]],
  }
  (folder / 'result.json').write_text(json.dumps(result))


def test_table_and_plots(tmp_path, capsys):
  _finish(tmp_path / 'rows' / 'vq', 'vq', 0, 31.0)
  _finish(tmp_path / 'rows' / 'default', 'default', 0, 32.0)
  _finish(tmp_path / 'rows' / 'k_means', 'k_means', 0, 30.0)  # No row any more.
  (tmp_path / 'rows' / 'fsq').mkdir()  # Still running.
  for seed, psnr in enumerate((33.0, 31.0, 35.0)):
    _finish(tmp_path / 'finalists' / f'vq_{seed}', 'vq', seed, psnr)
  study.main([f'--workdir={tmp_path}', '--table'])
  printed = capsys.readouterr().out
  cells = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in printed.splitlines()
    if line.startswith('|')
  ]
  assert cells[0][:4] == ['row', 'seeds', 'val PSNR (dB)', 'val SSIM']
  assert [row[:3] for row in cells if re.match('[a-z]', row[0])] == [
    ['row', 'seeds', 'val PSNR (dB)'],
    ['default', '1', '32.00'],
    ['vq', '1', '31.00'],
    ['k_means', '1', '30.00'],
    ['row', 'seeds', 'val PSNR (dB)'],
    ['vq', '3', '33.00'],  # The median.
  ]
  for name in ('psnr.png', 'perplexity.png'):
    assert (tmp_path / name).stat().st_size > 5000


def test_finished_rows_are_skipped(tmp_path, monkeypatch):
  trained = []

  def train(config, run):
    trained.append((run.workdir.name, config.seed, config.num_train_steps))
    raise KeyboardInterrupt

  monkeypatch.setattr(study.loop, 'train', train)
  _finish(tmp_path / 'rows' / 'default', 'default', 0, 32.0)
  _finish(tmp_path / 'finalists' / 'vq_0', 'vq', 0, 32.0)
  places = [f'--workdir={tmp_path}', '--data_dir=DATA']
  for more in ((), ('--only=default,fsq',), ('--finalists=vq',)):
    with pytest.raises(KeyboardInterrupt):
      study.main([*places, *more])
  second = list(study.ROWS)[1]
  assert trained == [(second, 0, 1500), ('fsq', 0, 1500), ('vq_1', 1, 3000)]


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--only=nonsense'], 'no row nonsense; there are default'),
    ([], 'give --data_dir'),
  ],
)
def test_mistakes(tmp_path, arguments, message, capsys):
  with pytest.raises(SystemExit):
    study.main([f'--workdir={tmp_path}', *arguments])
  assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_row_from_training_to_result(smoke_run, tmp_path):
  config = common.load_config(
    'vqvae',
    f'data_dir={smoke_run}/data',
    'num_train_steps=2',
    'optim.warmup_steps=1',
    'log_every_steps=1',
    size='smoke',
  )
  result = study.run_row(config, tmp_path / 'row', row='default', seed=0)
  assert result == json.loads(json.dumps(result))
  assert (result['row'], result['steps'], result['bits']) == ('default', 2, 5)
  assert result['num_params'] == 19_852
  assert result['seconds_per_step'] > 0 and result['val']['psnr'] > 0
  assert result['curve'][-1][0] == 2
  # The first convolution alone: 8x8 positions, 12x9 inputs, 8 outputs.
  assert result['flops'] > 2 * 8 * 8 * 12 * 9 * 8
