"""Chromium, which tests of pages drive."""

import shutil

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
# Nothing but this machine can be reached.
FLAGS = (
  '--no-sandbox',
  '--disable-gpu',
  '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
)
needs_chromium = pytest.mark.skipif(
  not CHROMIUM, reason='there is no Chromium; .ci/run installs it'
)
