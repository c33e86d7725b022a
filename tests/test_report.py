"""Tests of the figures."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dermvq_jax import errors, report

VQVAE_FIGURES = ['vqvae_curves.png', 'reconstructions.png', 'code_map.png']
PRIOR_FIGURES = ['prior_curves.png', 'samples.png']


def assert_pictures(folder, names):
  assert sorted(p.name for p in folder.iterdir()) == sorted(names)
  for name in names:
    with Image.open(folder / name) as image:
      assert image.format == 'PNG'
      pixels = np.asarray(image.convert('RGB'))
    assert min(pixels.shape[:2]) > 30
    assert pixels.std() > 5  # not blank


def test_whole_run(smoke_run):
  """What `dermvq demo` drew."""
  assert_pictures(smoke_run / 'report', VQVAE_FIGURES + PRIOR_FIGURES)


def test_without_a_prior(run_copy):
  shutil.rmtree(run_copy / 'prior')
  shutil.rmtree(run_copy / 'report')
  written = report.run(str(run_copy))
  assert [p.name for p in written] == VQVAE_FIGURES
  assert_pictures(run_copy / 'report', VQVAE_FIGURES)


def test_again_with_another_seed(run_copy):
  before = (run_copy / 'report' / 'samples.png').read_bytes()
  written = report.run(run_copy, seed=1)
  assert [p.name for p in written] == VQVAE_FIGURES + PRIOR_FIGURES
  assert_pictures(run_copy / 'report', VQVAE_FIGURES + PRIOR_FIGURES)
  assert (run_copy / 'report' / 'samples.png').read_bytes() != before


def test_prior_that_has_just_started(run_copy):
  """Nothing was validated yet: there is nothing to sample from."""
  shutil.rmtree(run_copy / 'report')
  shutil.rmtree(run_copy / 'prior' / 'best')
  (run_copy / 'prior' / 'metrics.jsonl').unlink()
  written = report.run(run_copy)
  assert [p.name for p in written] == [*VQVAE_FIGURES, 'prior_curves.png']


def test_mistakes(run_copy, tmp_path):
  with pytest.raises(errors.UserError, match='train --config=vqvae'):
    report.run(tmp_path / 'nothing')
  assert not (tmp_path / 'nothing').exists()
  shutil.rmtree(run_copy / 'data')
  shutil.rmtree(run_copy / 'report')
  with pytest.raises(errors.UserError, match='not prepared'):
    report.run(run_copy)
