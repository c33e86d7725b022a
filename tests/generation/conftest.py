"""A trained run as an object, and a folder that is not there yet."""

import pytest

import dermvq_jax


@pytest.fixture(scope='module')
def model(smoke_run):
  return dermvq_jax.load(smoke_run)


@pytest.fixture
def out(tmp_path):
  return tmp_path / 'new' / 'out'
