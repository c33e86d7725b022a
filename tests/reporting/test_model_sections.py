"""Tests of the sections that need the model."""

import numpy as np
import pytest

from dermvq_jax import inference
from dermvq_jax.reporting import model_sections
from dermvq_jax.runs import run as run_lib


def make(section, workdir, seed):
  run = run_lib.Run(workdir)
  model = inference.Model(run)
  return section(model, model_sections.read_validation(run, model), seed)


def test_completions(narrow_run):
  """There are completions, because each code of this run sees little."""
  section = make(model_sections.completions, narrow_run, seed=0)
  (figure,) = section.figures
  assert figure.name == 'completions' and figure.png


def test_another_seed_gives_other_samples(smoke_run):
  first, second = (
    make(model_sections.samples, smoke_run, seed).figures[0].png
    for seed in (0, 1)
  )
  assert first != second
  assert first == (smoke_run / 'report' / 'samples.png').read_bytes()


@pytest.mark.parametrize('num_codes', [5, 300])
def test_nearest_distances(num_codes):
  vectors = np.random.default_rng(0).normal(size=(num_codes, 3))
  distances = np.linalg.norm(vectors[:, None] - vectors, axis=-1)
  np.fill_diagonal(distances, np.inf)
  np.testing.assert_allclose(
    model_sections.nearest_distances(vectors), distances.min(1), rtol=1e-6
  )


def test_names_of_classes_are_in_the_caption():
  """A browser has letters that no font of this machine may have."""
  new = np.zeros((2, 1, 8, 8, 3), np.uint8)
  figure = model_sections.samples_figure(new, list(new), ['黑色素瘤', 'nv'])
  assert figure.caption.endswith('Rows: 黑色素瘤, nv.')
