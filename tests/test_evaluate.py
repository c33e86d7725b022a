"""Tests of the prior's evaluation."""

import json

import numpy as np
import pytest

import dermvq_jax
from dermvq_jax import evaluate, logs, workdirs
from dermvq_jax.data import prepared

IMAGES = 'synthetic_dermoscopy/smoke'


def test_measure_by_hand():
  likelihoods = -np.log(2) * np.asarray(
    [[10, 30, 99], [20, 10, 99], [50, 40, 99], [16, 12, 99]]
  )
  result = evaluate.measure(
    likelihoods, np.asarray([0, 0, 0, 1]), ['a', 'b', 'c'], 4, 48
  )
  bits = (10 + 20 + 50 + 12) / 4
  assert result['num_images'] == 4
  assert result['nll_nats'] == pytest.approx(bits * np.log(2))
  assert result['bits_per_code'] == pytest.approx(bits / 4)
  assert result['bits_per_dim'] == pytest.approx(bits / 48)
  assert result['accuracy'] == 0.5
  assert result['balanced_accuracy'] == pytest.approx((1 / 3 + 1) / 2)
  assert result['confusion'] == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]
  a, b, c = result['classes'].values()
  assert a['bits_per_code'] == pytest.approx(80 / 3 / 4)
  assert a['recall'] == pytest.approx(1 / 3)
  assert (b['num_images'], b['recall']) == (1, 1)
  assert b['bits_per_dim'] == pytest.approx(12 / 48)
  assert c == {
    'num_images': 0,
    'nll_nats': None,
    'bits_per_code': None,
    'bits_per_dim': None,
    'recall': None,
  }


def test_run(run_copy, caplog):
  caplog.set_level('INFO')
  result = evaluate.run(str(run_copy))
  written = (run_copy / 'report' / 'evaluate_val.json').read_text()
  assert json.loads(written) == result
  assert f'{run_copy}/report/evaluate_val.json' in caplog.text
  _, facts = workdirs.load_config(run_copy / 'prior')
  assert result['dataset'] == facts['dataset'] and result['split'] == 'val'
  source = prepared.open_split(facts['dataset'], run_copy / 'data', 'val')
  records = [source[i] for i in range(len(source))]
  codes = np.stack([record['codes'] for record in records])
  labels = np.asarray([record['label'] for record in records])
  model = dermvq_jax.load(run_copy)
  nll = -model.log_likelihood(codes, labels)
  assert result['nll_nats'] == pytest.approx(nll.mean(), rel=1e-5)
  # As the training loop has it, of the weights that it found best.
  best = min(
    row['val/bits_per_code']
    for row in logs.read(run_copy / 'prior')
    if 'val/bits_per_code' in row
  )
  assert result['bits_per_code'] == pytest.approx(best, rel=1e-5)
  assert result['bits_per_dim'] == pytest.approx(best * 16 / (16 * 16 * 3))
  # The images themselves, which are stored in another order.
  source = prepared.open_split(IMAGES, run_copy / 'data', 'val')
  images = {source[i]['id']: source[i]['image'] for i in range(len(source))}
  images = np.stack([images[record['id']] for record in records])
  right = model.classify(images).argmax(1) == labels
  assert result['accuracy'] == pytest.approx(right.mean())
  assert sum(map(sum, result['confusion'])) == len(labels)
  for label, name in enumerate(model.class_names):
    mine, row = labels == label, result['classes'][name]
    assert row['num_images'] == mine.sum()
    if mine.any():
      assert row['nll_nats'] == pytest.approx(nll[mine].mean(), rel=1e-5)
      assert row['recall'] == pytest.approx(right[mine].mean())
      assert f'{row["bits_per_code"]:.4f}' in caplog.text
