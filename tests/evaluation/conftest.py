"""An evaluated run that the tests of this folder share."""

import shutil

import numpy as np
import pytest

from dermvq_jax.evaluation import evaluate
from dermvq_jax.runs import run as run_lib


@pytest.fixture(scope='session')
def classifier_run(smoke_run, tmp_path_factory):
  """A run with a classifier; tests may change its report only."""
  workdir = tmp_path_factory.mktemp('classifier') / 'run'
  shutil.copytree(smoke_run, workdir, ignore=shutil.ignore_patterns('report'))
  return run_lib.Run(workdir)


@pytest.fixture(scope='session')
def result(classifier_run):
  """The evaluation of val."""
  return evaluate.evaluate(classifier_run, seed=3)


@pytest.fixture(scope='session')
def nearest(classifier_run, result):
  """The arrays that this evaluation wrote."""
  with np.load(evaluate.nearest_path(classifier_run, 'val')) as arrays:
    return dict(arrays)
