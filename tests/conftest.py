"""Eight virtual CPU devices, set before JAX starts; a run to share."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import pathlib  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402

import pytest  # noqa: E402
from absl import flags, logging  # noqa: E402

# Many tests train the same small models: each is compiled once.
_cache = tempfile.TemporaryDirectory(prefix='dermvq_test_cache_')
os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

# grain's worker processes read absl flags, which pytest never parses.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def restore_logging():
  """`main` sets up the console; other tests shall not notice."""
  logger = logging.get_absl_logger()
  before = logger.handlers[:], logger.filters[:], logger.propagate
  verbosity = logging.get_verbosity()
  yield
  logger.handlers, logger.filters, logger.propagate = before
  logging.set_verbosity(verbosity)


@pytest.fixture(scope='session')
def smoke_run(tmp_path_factory) -> pathlib.Path:
  """Workdir of `dermvq demo --size=smoke`, to be read only."""
  from dermvq_jax import main

  workdir = tmp_path_factory.mktemp('smoke') / 'run'
  assert main.main(['demo', '--size=smoke', f'--workdir={workdir}']) == 0
  return workdir


@pytest.fixture
def run_copy(smoke_run, tmp_path) -> pathlib.Path:
  """A copy of `smoke_run` that a test may change."""
  return shutil.copytree(smoke_run, tmp_path / 'run')
