"""The arithmetic of the benchmarks, and one small case measured."""

import json
import math
import subprocess
import sys

import pytest

from experiments import common
from experiments.benchmarks import (
  cases,
  flops,
  harness,
  one_image,
  report,
  sampling,
  save_cost,
  steps,
)

A, B = ('work', 'jax', 1), ('work', 'torch', 1)


def test_rounds_are_interleaved():
  order, seconds = [], iter([1.0, 2.0, 3.0, 8.0, 2.0, 2.0])

  def measure(case):
    order.append(case)
    return {'seconds': next(seconds)}

  results = harness.interleave([A, B], 3, measure)
  assert order == [A, B] * 3
  assert results == {
    A: {'seconds': [1.0, 3.0, 2.0]},
    B: {'seconds': [2.0, 8.0, 2.0]},
  }
  assert harness.median(results, A) == 2
  assert harness.of_first_round(results, B, 'seconds') == 2
  # The median of 2, 8/3 and 1, not the quotient of the medians.
  assert harness.ratio(results, B, A) == 2
  assert math.isnan(harness.median(results, ('other',)))
  assert math.isnan(harness.ratio(results, A, ('other',)))


def test_the_first_call_is_timed_separately(monkeypatch):
  clock = iter([0, 10, 10, 19, 19, 20, 20, 23, 23, 25])
  monkeypatch.setattr(harness.time, 'perf_counter', lambda: next(clock))
  calls = []
  assert harness.timed(lambda: calls.append(0), 3, warm_up=1) == (10, 2)
  assert len(calls) == 5


def test_slope():
  assert harness.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_extra_memory_of_a_call():
  size = 64 * 2**20
  extra = harness.extra_bytes(lambda: bytearray(b'1') * size)
  assert 0.9 * size < extra < 1.5 * size
  assert harness.extra_bytes(lambda: None) < 0.1 * size


def test_operations_of_a_vqvae_by_hand():
  """8 px: 4x4 positions, then 2x2; widths 2 and 4, residual 3, K=5, D=6."""
  operators = flops.vqvae(8, 4, 3, 1, 5, 6)
  block = 4 * (9 * 4 * 3 + 3 * 4)
  stem = 16 * 9 * 12 * 2
  distances = 4 * 6 * 5
  rest = 4 * 9 * 8 * 4 + 4 * 9 * 4 * 4 + block + 4 * 4 * 6
  rest += 4 * 9 * 6 * 4 + block + 4 * 9 * 4 * 8 + 16 * 9 * 2 * 12
  assert flops.of_forward(operators) == 2 * (stem + distances + rest)
  step = flops.of_step(operators, 7)
  assert step == 7 * 2 * (2 * stem + distances + 3 * rest)


def test_operations_of_a_gated_pixelcnn_by_hand():
  """3x3 codes, 1 layer of 2, kernels 3 and 5, head 4, K=6."""
  operators = flops.gated_pixelcnn(3, 1, 2, 3, 5, 4, 6)
  stems = 2 * 5 * 2 * 2 + 2 * 2 * 2
  layer = 2 * 3 * 2 * 4 + 2 * 2 * 4 + 2 * 4 + 2 * 4
  assert flops.of_forward(operators) == 2 * 9 * (stems + layer + 8 + 24)
  assert flops.of_step(operators, 5) == 15 * flops.of_forward(operators)


def test_pytorch_counts_the_same_operations():
  torch = pytest.importorskip('torch')
  from torch.utils import flop_counter

  from experiments.benchmarks import torch_gated_pixelcnn, torch_vqvae_twin

  def count(model, *inputs):
    with flop_counter.FlopCounterMode(display=False) as counter:
      model.eval()(*inputs)
    return counter.get_total_flops()

  # The twin has two residual blocks.
  twin = torch_vqvae_twin.VQVAE(32, 8, 16, 4)
  counted = count(twin, torch.zeros(1, 3, 16, 12))
  assert counted == flops.of_forward(flops.vqvae(16, 16, 4, 2, 32, 8)) * 3 / 4
  prior = torch_gated_pixelcnn.GatedPixelCNN(11, 3, 2, 8, 3, 7, 16)
  zeros = torch.zeros(1, 5, 5, dtype=torch.int64), torch.zeros(1).long()
  positions = 2 * 5 * 5 * 16 * 8  # The embedding of the positions.
  assert count(prior, *zeros) == positions + flops.of_forward(
    flops.gated_pixelcnn(5, 2, 8, 3, 7, 16, 11)
  )


def test_the_command_measures_in_processes_of_their_own(tmp_path):
  out = tmp_path / 'table.md'
  command = [sys.executable, '-m', 'experiments.benchmarks', '--rounds=2']
  command += ['--calls=1', '--only=codebook jax 512 32', f'--out={out}']
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stderr.count('codebook jax 512 32: seconds') == 2
  rows = [x for x in done.stdout.splitlines() if x.startswith('| 32,768 |')]
  assert float(rows[0].split(' | ')[2]) > 0
  assert out.read_text() == done.stdout


def test_a_measurement_prints_one_line(capsys, monkeypatch):
  monkeypatch.setattr(harness.host_memory, 'keep', lambda: None)
  args = harness.parser('').parse_args(['--measure', json.dumps(A)])
  harness.run('unused', args, [], lambda case: {'n': case[2]}, str)
  found = json.loads(capsys.readouterr().out)
  assert found.pop('peak_bytes') > 1e6
  assert found == {'n': 1}


def test_the_report_of_all_cases(tmp_path):
  """Here the package is as fast as PyTorch, but its prior half as fast."""
  keys = ('seconds', 'first_seconds', 'peak_bytes', 'extra_bytes')
  results = {}
  for case in cases.all_cases():
    seconds = float(case[3] * (1 + (case[:2] == ('prior', 'jax'))))
    results[case] = dict.fromkeys(keys, [seconds] * 2)
    results[case]['images_per_second'] = [999.0, 999.0]
  text = report.make_report(results, 2)
  assert 'nan' not in text
  verdicts = {
    line.split(' | ')[0].strip('| '): 'missed' in line
    for line in text.splitlines()
  }
  assert verdicts['prior'] and verdicts['64']  # 999 images/s
  assert not (verdicts['vqvae'] or verdicts['32,768'])
  report.plot(results, tmp_path / 'plot.png')
  assert (tmp_path / 'plot.png').stat().st_size > 1000


@pytest.mark.parametrize(
  ('work', 'size', 'overrides'),
  [
    ('vqvae', 16, ('model.features=8', 'model.num_residual_blocks=0')),
    ('prior', 3, ('prior.num_layers=1', 'prior.features=8')),
  ],
)
def test_a_step_of_the_package(work, size, overrides):
  step = steps.jax_step(work, size, 8, *overrides)
  step()
  step()


@pytest.mark.parametrize('how', ['incremental', 'forward', 'recompute'])
def test_sampling_is_timed(how, monkeypatch):
  small = {'num_layers': 1, 'features': 8}
  monkeypatch.setitem(sampling.PRIORS, 'gated_pixelcnn', small)
  monkeypatch.setattr(sampling, 'RECOMPUTED', 2)
  found = sampling.measure((how, 'gated_pixelcnn', 3, 2), 1)
  assert found['seconds'] > 0 and found['first_seconds'] > 0


def test_one_image_and_many_are_timed_in_turns(monkeypatch):
  now, called = iter(range(1000)), []
  monkeypatch.setattr(one_image.time, 'perf_counter', lambda: next(now))
  assert one_image.measure(called.append, rounds=2) == (1, 1)
  assert called == [1, 32] + 2 * [1, 1, 1, 1, 32]


def test_the_cost_of_saving(smoke_run, capsys, monkeypatch):
  load = common.load_config
  monkeypatch.setattr(
    common, 'load_config', lambda *args: load(*args, size='smoke')
  )
  save_cost.run(
    'synthetic_dermoscopy/smoke', smoke_run / 'data', 8, every=1, blocks=1
  )
  lines = capsys.readouterr().out.splitlines()
  assert [line.partition(':')[0] for line in lines] == [
    'without',
    'with',
    '1 steps of 8',
  ]
