"""The classifier of a run."""

import shutil

import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.inference import classifier as classifier_lib
from dermvq_jax.runs import run as run_lib


def some_images(number, size):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (number, size, size, 3), np.uint8)


def test_classifier(smoke_run):
  classifier = classifier_lib.Classifier(run_lib.Run(smoke_run))
  x = some_images(5, 16)
  features, labels = classifier(x), classifier.predict(x)
  assert features.shape == (5, 16) and features.dtype == np.float32
  assert labels.shape == (5,)
  assert set(labels) <= set(range(len(classifier.class_names)))
  # Images do not depend on each other.
  np.testing.assert_allclose(classifier(x[2:3])[0], features[2], rtol=1e-4)


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ('"synthetic_dermoscopy/smoke"', '"x/64"'),
    ('"fingerprint": {', '"fingerprint": {"x": "0",'),
    ('"akiec"', '"other"'),
  ],
)
def test_classifier_of_other_images(smoke_run, tmp_path, old, new):
  for phase in ('vqvae', 'classifier'):
    shutil.copytree(smoke_run / phase, tmp_path / phase)
  path = tmp_path / 'classifier' / 'config.json'
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))
  with pytest.raises(errors.UserError, match='move .*classifier away'):
    classifier_lib.Classifier(run_lib.Run(tmp_path))
