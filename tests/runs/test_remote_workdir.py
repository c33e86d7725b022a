"""A run in a bucket, served by a stand-in on this machine.

The clients are real ones, gcsfs for files and tensorstore for arrays. The
stand-in answers their requests and keeps the objects in memory.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket

import jax
import numpy as np
import pytest
from etils import epath

from dermvq_jax import config_files, errors, files, main
from dermvq_jax.data import pipeline
from dermvq_jax.generation import encode
from dermvq_jax.models import digests
from dermvq_jax.runs import checkpoints, logs
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop, pretrained

pytestmark = pytest.mark.skipif(
  not all(
    map(importlib.util.find_spec, ('gcsfs', 'gcp_storage_emulator')),
  ),
  reason='needs the clients and the stand-in of the extra "test"',
)
RUN = 'gs://bucket/run'


def _free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def _move(request, response, storage):
  """Moves an object; the stand-in cannot, and gcsfs would retry for long."""
  from gcp_storage_emulator.handlers import objects

  request.params['dest_bucket_name'] = request.params['bucket_name']
  objects.copy(request, response, storage)
  objects.delete(request, response, storage)  # 404 as well if there is none.


def _with_generation(download):
  """Adds the header that tensorstore needs and the stand-in leaves out."""

  def answer(request, response, storage):
    bucket, name = request.params['bucket_name'], request.params['object_id']
    if found := storage.objects.get(bucket, {}).get(name):
      response['X-Goog-Generation'] = found['generation']
    download(request, response, storage)

  return answer


@pytest.fixture(scope='module')
def bucket():
  """Serves gs://bucket, empty at first."""
  url = f'http://127.0.0.1:{_free_port()}'
  with pytest.MonkeyPatch.context() as patch:
    for name in ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL'):
      patch.setenv(name, url)
    patch.setenv('NO_GCE_CHECK', 'true')
    # gcsfs asks for the bucket's type by another protocol, again and again.
    patch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects

    patch.setattr(objects, 'download', _with_generation(objects.download))
    move = (
      r'^/storage/v1/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.+)'
      r'/moveTo/o/(?P<dest_object_id>.+)$',
      {'POST': _move},
    )
    patch.setattr(server, 'HANDLERS', (move, *server.HANDLERS))
    host, _, port = url.removeprefix('http://').partition(':')
    with server.create_server(
      host, int(port), in_memory=True, default_bucket='bucket'
    ):
      yield epath.Path('gs://bucket')


def _dermvq(*argv):
  return main.main(list(argv))


def _train(phase, *overrides):
  loop.train(config_files.load(f'{phase}:smoke', overrides), run_lib.Run(RUN))


@contextlib.contextmanager
def _sigterm_at_batch(number):
  real = pipeline.train_batches

  def batches(*args, **kwargs):
    for i, batch in enumerate(real(*args, **kwargs), 1):
      if i == number:
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pipeline, 'train_batches', batches)
    yield


@pytest.fixture(scope='module')
def run(bucket, smoke_run, tmp_path_factory):
  """A VQ-VAE's run in the bucket, its dataset on this disk.

  It was stopped, and the end of its last checkpoint is missing, as after a kill
  during a save.
  """
  data = tmp_path_factory.mktemp('bucket') / 'data'
  images = 'synthetic_dermoscopy'
  shutil.copytree(smoke_run / 'data' / images, data / images)
  data_dir = f'--config.data_dir={data}'
  with _sigterm_at_batch(7), pytest.raises(errors.StoppedError):
    _train('vqvae', data_dir)
  saved = epath.Path(RUN) / 'vqvae' / 'checkpoints'
  assert _names(saved) == ['4', '7']
  (saved / '7' / 'commit_success.txt').unlink()
  _train('vqvae', data_dir)
  return epath.Path(RUN)


@pytest.fixture(scope='module')
def whole_run(run):
  """The same run with a trained prior."""
  encode.encode(run_lib.Run(run), copies=1)
  _train('prior')
  return run


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def _rows(folder):
  """Metrics, without what depends on the clock."""
  return [
    {k: v for k, v in row.items() if not k.endswith('steps_per_second')}
    for row in logs.read(folder)
  ]


def _assert_same_phase(folder, expected):
  assert _rows(folder) == _rows(expected)
  for kind in ('checkpoints', 'best'):
    steps = sorted(p.name for p in (expected / kind).iterdir())
    assert [n for n in _names(folder / kind) if n.isdigit()] == steps
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoints.load_best(folder),
    checkpoints.load_best(expected),
  )


def test_it_is_the_run_of_a_local_folder(run, first_run):
  _assert_same_phase(run / 'vqvae', first_run / 'vqvae')


@pytest.mark.slow
def test_the_second_phase_as_well(whole_run, smoke_run):
  _assert_same_phase(whole_run / 'prior', smoke_run / 'prior')
  facts = run_lib.Run(whole_run).prior.facts
  # The digest of the VQ-VAE is among them.
  assert facts == run_lib.Run(smoke_run).prior.facts


def test_all_of_it_is_in_the_bucket(run, tmp_path):
  from tensorboard.backend.event_processing import event_accumulator

  names = _names(run / 'vqvae')
  events = [name for name in names if name.startswith('events.out.tfevents')]
  assert sorted({*names} - {*events}) == [
    'best',
    'checkpoints',
    'config.json',
    'metrics.jsonl',
  ]
  for name in events:
    (tmp_path / name).write_bytes((run / 'vqvae' / name).read_bytes())
  accumulator = event_accumulator.EventAccumulator(str(tmp_path))
  accumulator.Reload()
  tags = accumulator.Tags()
  assert 'val/mse' in tags['scalars'] + tags['tensors']
  assert not os.path.exists('gs:')  # What a local path would have made.


@pytest.mark.slow
def test_commands_that_read(whole_run, smoke_run, tmp_path, capsys):
  run = whole_run
  assert _dermvq('check', f'--workdir={run}') == 0
  assert capsys.readouterr().out.endswith('No damage found.\n')
  assert _dermvq('report', f'--workdir={run}') == 0
  page = (run / 'report' / 'index.html').read_text()
  assert page.endswith('</html>') and run.name in page
  out = run / 'samples'
  sample = 'sample', '--counts=1', '--seed=3'
  assert _dermvq(*sample, f'--workdir={run}', f'--out={out}') == 0
  local = tmp_path / 'samples'
  assert _dermvq(*sample, f'--workdir={smoke_run}', f'--out={local}') == 0
  assert _names(out) == _names(local)
  written = [path for path in local.rglob('*') if path.is_file()]
  assert len(written) > 7
  for file in written:
    copy = out / file.relative_to(local).as_posix()
    assert copy.read_bytes() == file.read_bytes(), file
  assert _dermvq(*sample, f'--workdir={run}', f'--out={out}') == 2
  # As if killed while the bucket renamed it, object by object.
  (out / 'metadata.csv').unlink()
  out.with_name('samples.unfinished').mkdir()
  (out.with_name('samples.unfinished') / 'metadata.csv').write_text('')
  assert _dermvq(*sample, f'--workdir={run}', f'--out={out}') == 0
  assert _names(out) == _names(local)
  assert not out.with_name('samples.unfinished').exists()


def test_a_decoder_is_trained_on_from_a_bucket(whole_run, tmp_path):
  """Only what happens before and after the training."""
  start = run_lib.Run(whole_run)
  config = config_files.load('vqvae:smoke+sharpen')
  resolved = pretrained.resolve(config, start, run_lib.Run(tmp_path))
  assert resolved.start_from == str(whole_run)
  assert resolved.start_digest == digests.of_tree(start.vqvae.weights)
  assert resolved.prior_digest
  new = run_lib.Run(tmp_path)
  pretrained.copy_prior('vqvae', start, new)
  assert new.prior.has_weights and not new.vqvae.started
  jax.tree.map(
    np.testing.assert_array_equal, new.prior.weights, start.prior.weights
  )


def test_a_prior_is_trained_on_from_a_bucket(whole_run, tmp_path):
  """Only what happens before the training."""
  start, new = run_lib.Run(whole_run), run_lib.Run(tmp_path)
  config = config_files.load('prior:smoke+align')
  resolved = pretrained.resolve(config, start, new)
  assert resolved.start_from == str(whole_run)
  assert resolved.start_digest == digests.of_tree(start.prior.weights)
  pretrained.copy_vqvae('prior', start, new)
  assert new.vqvae_digest == start.vqvae_digest and not new.prior.started
  assert new.images.facts == start.images.facts


def test_damage_is_put_aside(run, first_run, smoke_run, capsys):
  """Last state and best weights are damaged; the run ends the same, traced."""
  damaged = run.with_name('damaged')
  for file in _files(run / 'vqvae'):
    target = damaged / str(file).removeprefix(f'{run}/')
    target.write_bytes(file.read_bytes())
  for kind in ('checkpoints', 'best'):
    manifest = damaged / 'vqvae' / kind / '10' / 'default' / 'manifest.ocdbt'
    manifest.write_bytes(b'')
  assert _dermvq('check', f'--workdir={damaged}') == 1
  assert capsys.readouterr().out.endswith('2 damaged\n')
  assert not _dermvq(
    'train',
    '--config=vqvae:smoke',
    f'--workdir={damaged}',
    f'--config.data_dir={smoke_run}/data',
    '--profile',
  )
  assert '10.damaged' in _names(damaged / 'vqvae' / 'checkpoints')
  _assert_same_phase(damaged / 'vqvae', first_run / 'vqvae')
  assert any(
    re.search(r'/vqvae/profile/.*\.xplane\.pb$', str(file))
    for file in _files(damaged)
  )


def _files(folder):
  import fsspec

  found = fsspec.filesystem('gcs').find(str(folder))
  return [epath.Path(f'gs://{name}') for name in found]


def test_what_others_write_is_seen(bucket):
  import gcsfs

  other = gcsfs.GCSFileSystem(skip_instance_cache=True)
  folder = bucket / 'shared'
  for name in ('a', 'b'):
    other.pipe_file(f'bucket/shared/{name}', b'x')
    assert (folder / name).exists()
  assert _names(folder) == ['a', 'b']


def test_an_interrupted_folder_leaves_nothing(bucket):
  out = bucket / 'new'
  for write in (False, True):
    with pytest.raises(KeyboardInterrupt), files.new_folder(out) as partial:
      if write:
        (partial / 'a.png').write_bytes(b'x')
      raise KeyboardInterrupt
    assert not partial.exists() and not out.exists()


def test_an_interrupted_file_is_the_old_one(bucket):
  path = bucket / 'file'
  files.write_text(path, 'old')
  with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
    file.write(b'new')
    raise KeyboardInterrupt
  assert path.read_text() == 'old'
  with files.replacing(path) as file:
    file.write(b'new')
  assert path.read_text() == 'new'


def test_files_are_uploaded_as_they_grow(bucket):
  folder = bucket / 'log'
  log = logs.Log(folder, 0)
  log.scalars(1, {'a': 1.0})
  log.flush()
  assert logs.read(folder) == [{'step': 1, 'a': 1.0}]
  log.scalars(2, {'a': 2.0})
  log.close()
  assert len(logs.read(folder)) == 2
  logs.Log(folder, 1).close()
  assert logs.read(folder) == [{'step': 1, 'a': 1.0}]
