"""Eight virtual CPU devices, set before JAX starts; runs that tests share."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    # Most of the time is spent compiling what runs once.
    '--xla_backend_optimization_level=0',
  ]
)

import contextlib  # noqa: E402
import fcntl  # noqa: E402
import functools  # noqa: E402
import pathlib  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402

import pytest  # noqa: E402
from absl import flags, logging  # noqa: E402

# Many tests train the same small models: each is compiled once. The processes
# of pytest-xdist inherit the folder. A start compiles a hundred small programs,
# and reading one takes a third of the time.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _cache = tempfile.TemporaryDirectory(prefix='dermvq_test_cache_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

# grain's worker processes read absl flags, which pytest never parses.
flags.FLAGS.mark_as_parsed()


@contextlib.contextmanager
def _logging_restored():
  """Undoes the console setup of `main`, which would affect other tests."""
  logger = logging.get_absl_logger()
  before = logger.handlers[:], logger.filters[:], logger.propagate
  verbosity, hook = logging.get_verbosity(), sys.unraisablehook
  try:
    yield
  finally:
    sys.unraisablehook = hook
    logger.handlers, logger.filters, logger.propagate = before
    logging.set_verbosity(verbosity)


@pytest.fixture(autouse=True)
def restore_logging():
  """Restores the absl logger after every test; `caplog` sees its INFO."""
  with _logging_restored():
    logging.set_verbosity(logging.INFO)
    yield


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
  """Puts files that use `smoke_run` first.

  With pytest-xdist one process makes it while the other, which begins in the
  middle, does tests that need none. Those are short too, so that both end at
  the same time.
  """
  users = {item.path for item in items if 'smoke_run' in item.fixturenames}
  items.sort(key=lambda item: item.path not in users)


@pytest.fixture(scope='session')
def smoke_run(tmp_path_factory) -> pathlib.Path:
  """Workdir of `dermvq demo --size=smoke`, to be read only.

  The first process of pytest-xdist that needs it makes it for all.
  """
  from dermvq_jax import main

  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    folder = folder.parent  # the folder of all processes
  workdir, complete = folder / 'smoke', folder / 'smoke.complete'
  with (folder / 'smoke.lock').open('w') as lock, _logging_restored():
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not complete.exists():
      assert main.main(['demo', '--size=smoke', f'--workdir={workdir}']) == 0
      complete.touch()
  return workdir


@pytest.fixture
def run_copy(smoke_run, tmp_path) -> pathlib.Path:
  """A copy of `smoke_run` that a test may change."""
  return shutil.copytree(smoke_run, tmp_path / 'run')


@pytest.fixture(scope='session')
def first_run(smoke_run) -> pathlib.Path:
  """The run in `smoke_run` whose decoder was trained on, to be read only.

  Its phases are those of `vqvae:smoke` and `prior:smoke`.
  """
  return smoke_run / 'squared_error'


@pytest.fixture
def first_copy(smoke_run, first_run, tmp_path) -> pathlib.Path:
  """A copy of `first_run` that a test may change, but not its data."""
  copy = shutil.copytree(first_run, tmp_path / 'first')
  (copy / 'data').symlink_to(smoke_run / 'data')
  return copy


@pytest.fixture(scope='session')
def exported_run(smoke_run, tmp_path_factory) -> pathlib.Path:
  """An export of `smoke_run`, to be read only."""
  from dermvq_jax import main

  out = tmp_path_factory.mktemp('exported') / 'export'
  with _logging_restored():
    words = ['export', f'--workdir={smoke_run}', f'--out={out}']
    assert main.main(words) == 0
  return out


@pytest.fixture(scope='session')
def calibrated_run(smoke_run, tmp_path_factory) -> pathlib.Path:
  """A copy of `smoke_run` without its images, to be read only.

  It knows what its images looked like.
  """
  import dermvq_jax

  workdir = tmp_path_factory.mktemp('calibrated') / 'run'
  parts = ('data', 'report', 'checkpoints')
  ignore = shutil.ignore_patterns(*parts)
  shutil.copytree(smoke_run, workdir, ignore=ignore)
  (workdir / 'data').symlink_to(smoke_run / 'data')
  assert dermvq_jax.load(workdir).calibration
  (workdir / 'data').unlink()
  return workdir


@pytest.fixture(scope='session')
def conditioned_run(smoke_run, tmp_path_factory) -> pathlib.Path:
  """A run, to be read only, whose images have sex and age; without a prior.

  Its VQ-VAE is that of `smoke_run`, its images are made up by `fabricate`, its
  codes are encoded, in `data`.
  """
  import json

  import fabricate

  from dermvq_jax.data import prepare, prepared
  from dermvq_jax.generation import encode
  from dermvq_jax.runs import run as run_lib

  folder = tmp_path_factory.mktemp('conditioned')
  workdir, data_dir = folder / 'run', folder / 'run' / 'data'
  (folder / 'images').mkdir()
  fabricate.images_with_conditions(folder / 'images')
  with _logging_restored():
    prepare.run(
      'image_folder/smoke',
      data_dir,
      folder / 'images',
      columns={'condition': 'Sex,age:10'},
    )
    shutil.copytree(smoke_run / 'vqvae', workdir / 'vqvae')
    file = workdir / 'vqvae' / 'config.json'
    stored = json.loads(file.read_text())
    stored['facts'] = prepared.Dataset('image_folder/smoke', data_dir).facts
    stored['config']['data_dir'] = str(data_dir)
    file.write_text(json.dumps(stored))
    encode.encode(run_lib.Run(workdir), copies=2)
  return workdir


@pytest.fixture(scope='session')
def narrow_run(smoke_run, tmp_path_factory) -> pathlib.Path:
  """A run, to be read only, in which each code sees little of the image.

  It has 8x8 codes of images of 16 px, random weights, and a prior that is
  trained by binary cross-entropy.
  """
  import jax
  import numpy as np

  from dermvq_jax import config_files
  from dermvq_jax.data import prepared
  from dermvq_jax.models import build
  from dermvq_jax.runs import checkpoints
  from dermvq_jax.runs import run as run_lib

  run = run_lib.Run(tmp_path_factory.mktemp('narrow') / 'run')

  def save(config, facts, init, *inputs):
    phase = run.phase(config.task)
    phase.start(config, facts)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)

    def draw(leaf):  # Much faster than an initialisation.
      fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 1000
      scale = (2 / fan_in) ** 0.5
      return np.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype)

    variables = dict(jax.tree.map(draw, shapes))
    weights = {'params': variables.pop('params'), 'model_state': variables}
    store = checkpoints.Checkpoints(phase.folder)
    store.save_best(1, weights)
    store.close()

  config = config_files.load(
    'vqvae:smoke',
    [
      '--config.model.num_residual_blocks=0',
      '--config.model.downsampling=2',
      f'--config.data_dir={smoke_run}/data',
    ],
  )
  facts = prepared.Dataset(config.dataset, config.data_dir).facts
  image = np.zeros((1, 16, 16, 3), np.float32)
  save(config, facts, build.vqvae(config).init, image)
  facts = {
    'dataset': 'codes/none',  # not prepared
    'class_names': facts['class_names'],
    'conditions': facts['conditions'],
    'codebook_size': config.quantizer.codebook_size,
    'grid': [8, 8],
    'vqvae_digest': run.vqvae_digest,
  }
  overrides = ['--config.loss=bce', '--config.weak_share=0']
  config = config_files.load('prior:smoke', overrides)
  codes = np.zeros((1, 8, 8), np.int32)
  init = functools.partial(build.prior(config, facts).init, train=False)
  save(config, facts, init, codes, {'label': codes[0, 0, :1]})
  return run.workdir
