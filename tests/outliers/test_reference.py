"""What a run stores about its own images."""

import shutil

import numpy as np
import pytest

import dermvq_jax
from dermvq_jax import errors, files
from dermvq_jax.data import prepared
from dermvq_jax.outliers import reference
from dermvq_jax.runs import run as run_lib

IMAGES = 'synthetic_dermoscopy/smoke'


@pytest.fixture
def run(calibrated_run, tmp_path):
  return run_lib.Run(shutil.copytree(calibrated_run, tmp_path / 'run'))


def test_content(calibrated_run, smoke_run):
  found = dermvq_jax.load(calibrated_run).calibration
  data = prepared.Dataset(IMAGES, smoke_run / 'data')
  held_out = list(data.split('val'))
  labels = np.array([record['label'] for record in held_out])
  np.testing.assert_array_equal(found.labels, labels)
  assert found.values.shape == (len(held_out), len(found.names))
  counts = np.bincount(data.labels('train'), minlength=7)
  np.testing.assert_allclose(found.class_prior, counts / counts.sum())
  model = dermvq_jax.load(calibrated_run)
  images = np.stack([record['image'] for record in held_out])
  bits = found.values[:, found.names.index('bits')]
  codes = model.encode(images)
  expected = -model.log_likelihood(codes, [7]) / np.log(2) / codes[0].size
  np.testing.assert_allclose(bits, expected, rtol=1e-5)
  log_p = model.classify(images, class_prior=found.class_prior).log_probs
  np.testing.assert_allclose(
    found.label_log_probs, log_p[np.arange(len(labels)), labels], rtol=1e-5
  )
  brightness = found.values[:, found.names.index('brightness')]
  assert brightness.std() > 0
  maps = found.map(
    {k: np.full((1, 2, 2), m) for k, (m, _) in found.parts.items()}
  )
  np.testing.assert_allclose(maps, 0, atol=1e-6)
  # In standard deviations; the error counts twice.
  for part, weight in (('error', 2), ('bits', 1)):
    up = {k: np.float64([[[m]]]) for k, (m, _) in found.parts.items()}
    up[part] = up[part] + found.parts[part][1]
    np.testing.assert_allclose(found.map(up), weight / 5, rtol=1e-5)


def test_it_is_computed_once_and_needs_no_data(run):
  before = reference.path(run).read_bytes()
  assert reference.load(run, None)  # No model is used.
  assert reference.path(run).read_bytes() == before


def test_other_weights_need_the_data_again(run):
  arrays = files.read_arrays(reference.path(run))
  identity = str(arrays['identity']).replace('"vqvae": "', '"vqvae": "9')
  np.savez(reference.path(run), **arrays | {'identity': np.array(identity)})
  with pytest.raises(errors.UserError, match='not prepared'):
    reference.load(run, dermvq_jax.load(run.workdir))


@pytest.mark.parametrize('damage', ['cut', 'lacks', 'shapes'])
def test_damage(run, damage):
  path = reference.path(run)
  arrays = files.read_arrays(path)
  if damage == 'cut':
    path.write_bytes(path.read_bytes()[:100])
  elif damage == 'lacks':
    del arrays['labels']
    np.savez(path, **arrays)
  else:
    np.savez(path, **arrays | {'values': arrays['values'][:, :-1]})
  with pytest.raises(errors.UserError, match='is damaged') as e:
    reference.load(run, None)
  assert '\n' not in str(e.value)


def test_too_few_images(smoke_run, monkeypatch):
  monkeypatch.setattr(reference, '_MIN_HELD_OUT', 1000)
  run = run_lib.Run(smoke_run)
  with pytest.raises(errors.UserError, match='at least 1000'):
    reference.load(run, dermvq_jax.load(smoke_run))
