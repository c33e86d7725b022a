"""The session of a page of the smoke run."""

import pytest

pytest.importorskip('gradio', reason='the extra explore is not installed')

from dermvq_jax.explore import session as session_lib  # noqa: E402


@pytest.fixture(scope='module')
def session(smoke_run, tmp_path_factory):
  folder = tmp_path_factory.mktemp('explore')
  return session_lib.Session([(str(smoke_run), '')], folder)
