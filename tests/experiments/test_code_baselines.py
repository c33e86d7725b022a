"""The count models against cases made by hand."""

import numpy as np
import pytest

from experiments import code_baselines


def test_count_tables():
  codes = np.array([[[0, 1], [2, 1]]])
  unigram, left, upper = code_baselines.count_tables(codes, 3)
  np.testing.assert_array_equal(unigram, [1, 2, 1])
  expected_left = np.zeros((3, 3))
  expected_left[0, 1] = expected_left[2, 1] = 1  # [given, code]
  np.testing.assert_array_equal(left, expected_left)
  expected_upper = np.zeros((3, 3))
  expected_upper[0, 2] = expected_upper[1, 1] = 1
  np.testing.assert_array_equal(upper, expected_upper)


def test_unigram_bits_is_the_cross_entropy_under_the_training_shares():
  rng = np.random.default_rng(0)
  train = rng.choice(4, (200, 6, 6), p=(0.5, 0.25, 0.125, 0.125))
  val = rng.choice(4, (50, 6, 6))
  shares = np.bincount(train.ravel(), minlength=4) / train.size
  expected = -np.log2(shares)[val].mean()
  bits = code_baselines.unigram_bits(train, val, 4)
  assert bits == pytest.approx(expected, abs=1e-3)  # Smoothing.


def test_fit_weights_finds_the_mixture():
  rng = np.random.default_rng(0)
  models = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
  drawn = rng.choice(3, 50_000, p=0.3 * models[0] + 0.7 * models[1])
  weights = code_baselines.fit_weights(models[:, drawn])
  np.testing.assert_allclose(weights, [0.3, 0.7], atol=0.02)


@pytest.mark.parametrize('axis', [1, 2])
def test_neighbours_in_both_directions_help(axis):
  """Codes copy a neighbour nine times in ten, and are otherwise random."""
  rng = np.random.default_rng(axis)
  k = 8

  def chains(n):
    codes = rng.integers(0, k, (n, 8, 8))
    for i in range(1, 8):
      here, before = [(slice(None),) * axis + (j,) for j in (i, i - 1)]
      keep = rng.random((n, 8)) < 0.9
      codes[here] = np.where(keep, codes[before], codes[here])
    return codes

  train, val = chains(400), chains(100)
  same = 0.9 + 0.1 / k
  entropy = -same * np.log2(same) - (1 - same) * np.log2(0.1 / k)
  expected = (np.log2(k) + 7 * entropy) / 8
  bits = code_baselines.neighbour_bits(train, val, k)
  assert bits == pytest.approx(expected, abs=0.05)
  assert code_baselines.unigram_bits(train, val, k) > 2 * bits


def test_one_command(smoke_run, monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['x', f'--workdir={smoke_run}'])
  code_baselines.main()
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == [
    'uniform',
    'unigram',
    'neighbours',
    'gated_pixelcnn',
  ]
  assert lines[0].split()[1] == '5.0000'  # log2(32)
