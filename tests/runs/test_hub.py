"""Exports on the hub, which a stand-in on this machine serves.

The client is the real one; the stand-in has the four routes that it needs.
"""

import hashlib
import http.server
import importlib.util
import json
import os
import shutil
import sys
import threading

import numpy as np
import pytest
from etils import epath

import dermvq_jax
from dermvq_jax import errors, main
from dermvq_jax.runs import exported
from dermvq_jax.runs import run as run_lib

needs_client = pytest.mark.skipif(
  not importlib.util.find_spec('huggingface_hub'),
  reason='needs the extra "hub"',
)
_COMMIT = '0123456789abcdef0123456789abcdef01234567'
_ADDRESS = 'hf://me/lesions'


class _Hub(http.server.ThreadingHTTPServer):
  """A hub with one repository, me/lesions, whose main branch is _COMMIT."""

  def __init__(self, folder):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.files = {
      path.relative_to(folder).as_posix(): path.read_bytes()
      for path in folder.rglob('*')
      if path.is_file()
    }
    self.refusal = None  # status and code of what is answered instead
    self.sent = []  # the files that were downloaded
    self.url = f'http://127.0.0.1:{self.server_address[1]}'


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *_):
    pass

  def _answer(self, status, content=b'', **headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(content)

  def _refuse(self, status, code):
    self._answer(status, **{'X_Error_Code': code, 'X_Error_Message': code})

  def do_GET(self):
    path = self.path.partition('?')[0]
    if self.server.refusal:
      return self._refuse(*self.server.refusal)
    if 'me/lesions' not in path:
      return self._refuse(404, 'RepoNotFound')
    if path in (
      f'/api/models/me/lesions/revision/{name}'
      for name in ('main', 'v1', _COMMIT)
    ):
      found = {'id': 'me/lesions', 'sha': _COMMIT}
    elif path == f'/api/models/me/lesions/tree/{_COMMIT}':
      found = [
        {
          'type': 'file',
          'path': name,
          'size': len(content),
          'oid': hashlib.sha1(content).hexdigest(),
        }
        for name, content in self.server.files.items()
      ]
    elif path.startswith(f'/me/lesions/resolve/{_COMMIT}/'):
      name = path.removeprefix(f'/me/lesions/resolve/{_COMMIT}/')
      content = self.server.files[name]
      tag = hashlib.sha1(content).hexdigest()
      if self.command == 'GET':
        self.server.sent.append(name)
      return self._answer(200, content, ETag=f'"{tag}"', X_Repo_Commit=_COMMIT)
    else:
      return self._refuse(404, 'RevisionNotFound')
    return self._answer(
      200, json.dumps(found).encode(), Content_Type='application/json'
    )

  do_HEAD = do_GET


@pytest.fixture
def served(exported_run, tmp_path, monkeypatch):
  """A hub that has an export, and an empty cache."""
  from huggingface_hub import constants

  server = _Hub(exported_run)
  server.files['optimizer.bin'] = server.files['.gitattributes'] = b'x'
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  monkeypatch.setattr(constants, 'ENDPOINT', server.url)
  template = f'{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}'
  monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'no_token'))
  for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'):
    monkeypatch.delenv(name, raising=False)
  yield server
  server.shutdown()
  thread.join()
  server.server_close()


@needs_client
def test_an_export_is_used_by_its_address(served, exported_run, caplog):
  m = dermvq_jax.load(_ADDRESS)
  given = dermvq_jax.load(exported_run).sample('mel', 2, seed=3)
  np.testing.assert_array_equal(m.sample('mel', 2, seed=3), given)
  assert f'{_ADDRESS} is revision {_COMMIT}' in caplog.text
  assert _COMMIT in str(m.run.workdir)
  # What an export has, but for its samples.
  assert sorted(served.sent) == sorted(
    name
    for name in served.files
    if not name.startswith(('samples/', 'optimizer', '.'))
  )
  assert 'vqvae/weights.safetensors' in served.sent


@needs_client
@pytest.mark.parametrize('revision', ['', '@main', '@v1', f'@{_COMMIT}'])
def test_revisions(served, revision):
  assert run_lib.find(_ADDRESS + revision).workdir.name == _COMMIT


@needs_client
def test_commands_take_it(served, capsys):
  assert main.main(['check', f'--workdir={_ADDRESS}@v1']) == 0
  out = capsys.readouterr().out
  assert f'{_ADDRESS}@v1 is revision {_COMMIT}' in out and 'vqvae' in out


@needs_client
def test_without_a_network_the_cache_is_used(served, monkeypatch):
  from huggingface_hub import constants

  before = run_lib.find(_ADDRESS).workdir
  monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:1')
  assert run_lib.find(_ADDRESS).workdir == before
  with pytest.raises(errors.UserError, match='hub cannot be reached'):
    run_lib.find(f'{_ADDRESS}@v1')  # Nobody has asked what it means.


@needs_client
@pytest.mark.parametrize(
  ('refusal', 'said'),
  [
    ((401, 'RepoNotFound'), 'does not exist or is private'),
    ((404, 'RepoNotFound'), 'does not exist or is private'),
    ((403, 'GatedRepo'), 'apply for access'),
    ((404, 'RevisionNotFound'), 'has no revision v1'),
    ((500, 'Broken'), 'hub cannot be reached'),
    ((403, 'Forbidden'), 'hub cannot be reached'),
  ],
)
def test_refusals(served, refusal, said, capsys):
  served.refusal = refusal
  words = ['check', f'--workdir={_ADDRESS}@v1']
  assert main.main(words) == 2
  err = capsys.readouterr().err
  [line] = err.splitlines()
  assert line.startswith(f'dermvq check: error: {_ADDRESS}') and said in line


@needs_client
def test_a_repository_without_an_export(served):
  del served.files['vqvae/weights.safetensors']
  with pytest.raises(errors.MissingError, match=f'{_COMMIT}.* not an export'):
    dermvq_jax.load(_ADDRESS)


def test_without_the_client(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(errors.UserError, match='pip install huggingface_hub'):
    dermvq_jax.load(_ADDRESS)


@pytest.mark.parametrize(
  'address',
  [
    'hf://',
    'hf://lesions',
    'hf://me/lesions/vqvae',
    'hf://me/lesions@',
    'hf://me/lesions@../x',
    'hf://me/le sions',
    'hf://me/lesions@v1@v2',
  ],
)
def test_wrong_addresses(address, capsys):
  with pytest.raises(errors.UserError, match='is not hf://OWNER/NAME or'):
    dermvq_jax.load(address)
  with pytest.raises(SystemExit) as stop:
    main.main(['check', f'--workdir={address}'])
  assert stop.value.code == 2
  assert 'is not hf://OWNER/NAME or' in capsys.readouterr().err


def test_no_training_in_it(capsys):
  with pytest.raises(SystemExit):
    main.main(['train', '--config=vqvae:smoke', f'--workdir={_ADDRESS}'])
  assert 'is neither a local folder nor gs://' in capsys.readouterr().err


@pytest.fixture
def cached(exported_run, tmp_path):
  """A file of an export that lies as the client keeps it."""
  repository = tmp_path / 'repository'
  file = repository / 'snapshots' / _COMMIT / 'vqvae' / 'config.json'
  blob = repository / 'blobs' / 'x'
  for path in (file, blob):
    path.parent.mkdir(parents=True)
  shutil.copy(exported_run / 'vqvae' / 'config.json', blob)
  file.symlink_to('../../../blobs/x')
  return epath.Path(file)


def test_links_within_the_cache_are_followed(cached):
  assert os.path.islink(cached)
  exported.check_file(cached)


@pytest.mark.parametrize('part', ['x', '.'])
def test_links_out_of_the_cache_are_not(cached, tmp_path, part):
  """What the link leads to, or the folder of that, is a link itself."""
  moved = tmp_path / 'repository' / 'blobs' / part
  shutil.move(moved, tmp_path / 'elsewhere')
  moved.symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(errors.UserError, match='is a link, and an export has'):
    exported.check_file(cached)
