"""Tests of the dataset of codes."""

import json
import shutil

import jax
import numpy as np
import pytest

from dermvq_jax import config_files, errors, files, inference
from dermvq_jax.data import pipeline, prepared
from dermvq_jax.generation import encode
from dermvq_jax.models import build, digests
from dermvq_jax.runs import checkpoints
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import loop, trainer

IMAGES = 'synthetic_dermoscopy/smoke'


@pytest.fixture
def workdir(smoke_run, tmp_path):
  """A trained VQ-VAE and its images, not encoded yet."""
  for part in ('vqvae', f'data/{IMAGES}'):
    shutil.copytree(smoke_run / part, tmp_path / 'run' / part)
  return tmp_path / 'run'


@pytest.fixture(scope='module')
def model(smoke_run):
  return inference.load(smoke_run)


def read(dataset, data_dir, split):
  source = prepared.Dataset(dataset, data_dir).split(split)
  return [source[i] for i in range(len(source))]


def the_codes(smoke_run):
  return run_lib.Run(smoke_run).prior.facts['dataset']


def bits(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_codes_and_what_belongs_to_them(smoke_run, model, split):
  images = read(IMAGES, smoke_run / 'data', split)
  codes = read(the_codes(smoke_run), smoke_run / 'data', split)
  assert len(codes) == len(images)
  by_id = {record['id']: record for record in codes}
  assert len(by_id) == len(images)
  expected = model.encode(np.stack([record['image'] for record in images]))
  for image, grid in zip(images, expected):
    record = by_id[image['id']]
    np.testing.assert_array_equal(record['codes'], grid)
    assert record['label'] == image['label']
    assert record['group'] == image['group']


def test_the_prior_remembers_whose_codes_it_models(smoke_run):
  facts = run_lib.Run(smoke_run).prior.facts
  weights = checkpoints.load_best(smoke_run / 'vqvae')
  images = run_lib.Run(smoke_run).images.facts
  assert facts['vqvae_digest'] == digests.of_encoding(weights, images)
  assert facts['images_fingerprint'] == images['fingerprint']
  assert facts['dataset'] == 'codes/' + facts['vqvae_digest']


def test_digest(smoke_run):
  weights = checkpoints.load_best(smoke_run / 'vqvae')
  images = {'dataset': IMAGES, 'fingerprint': {'train': '1', 'val': '2'}}
  digest = digests.of_encoding(weights, images)
  assert len(digest) == 16 and int(digest, 16)

  def after(part):
    """The digest with another value in one leaf of `part`."""

    def change(path, leaf):
      leaf = np.array(leaf)
      if f"'{part}'" in jax.tree_util.keystr(path) and not done:
        leaf.flat[-1] += 1
        done.append(path)
      return leaf

    done = []
    changed = jax.tree_util.tree_map_with_path(change, weights)
    assert done
    return digests.of_encoding(changed, images)

  different = [after('encoder'), after('codebook'), digest]
  for other in (
    {'dataset': 'synthetic_dermoscopy/64'},
    {'fingerprint': {'train': '1', 'val': '3'}},
  ):
    different.append(digests.of_encoding(weights, images | other))
  assert len(set(different)) == 5
  # The decoder and the moving averages do not change the codes.
  assert after('decoder') == after('ema_sums') == digest


def test_extraction_changes_no_file_of_the_vqvae(workdir):
  def files():
    every = sorted(p for p in (workdir / 'vqvae').rglob('*') if p.is_file())
    return {p: p.read_bytes() for p in every}

  before, weights = files(), checkpoints.load_best(workdir / 'vqvae')
  name = encode.encode(run_lib.Run(workdir), copies=1)
  assert files() == before
  after = checkpoints.load_best(workdir / 'vqvae')
  assert bits(weights) == bits(after)
  facts = run_lib.Run(workdir).vqvae.facts
  assert name == f'codes/{digests.of_encoding(after, facts)}'


def test_encoder_does_not_move_the_codebook(smoke_run):
  config = run_lib.Run(smoke_run).vqvae.config
  weights = checkpoints.load_best(smoke_run / 'vqvae')
  before = bits(weights)
  encode_images = build.codec(config, weights).encode
  images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
  first = np.asarray(encode_images(images))
  for _ in range(3):
    np.testing.assert_array_equal(encode_images(images), first)
  assert bits(weights) == before


def test_the_same_again(smoke_run, workdir, capsys):
  name = encode.encode(run_lib.Run(workdir), copies=1)
  assert name == the_codes(smoke_run)
  for split in ('train', 'test'):
    old = read(name, smoke_run / 'data', split)
    new = read(name, workdir / 'data', split)
    for a, b in zip(old, new):
      assert a['id'] == b['id']
      np.testing.assert_array_equal(a['codes'], b['codes'])
  capsys.readouterr()
  assert encode.encode(run_lib.Run(workdir), copies=1) == name
  assert 'already prepared' in capsys.readouterr().err


def test_copies_are_the_codes_of_all_symmetries(workdir, model):
  """Those of training images alone; the prior learns from all."""
  name = encode.encode(run_lib.Run(workdir))
  facts = prepared.Dataset(name, workdir / 'data').facts
  assert name.endswith('_x8') and facts['copies'] == 8
  assert (facts['num_train'], facts['num_val']) == (8 * 114, 13)
  images = read(IMAGES, workdir / 'data', 'train')
  by_id = {}
  for record in read(name, workdir / 'data', 'train'):
    by_id.setdefault(record['id'], []).append(record)
  assert len(by_id) == 114
  for image in images[:20]:
    pixels = image['image']
    turned = [pixels]
    for _ in range(3):  # to the left: the last column is the first row
      turned.append(turned[-1].swapaxes(0, 1)[::-1])
    views = np.stack(turned + [x[:, ::-1] for x in turned])
    assert len(np.unique(views, axis=0)) == 8
    copies = by_id[image['id']]
    assert {r['label'] for r in copies} == {image['label']}
    found = np.stack([r['codes'] for r in copies])
    expected = model.encode(views)
    order = [np.lexsort(x.reshape(8, -1).T) for x in (found, expected)]
    np.testing.assert_array_equal(found[order[0]], expected[order[1]])
  # The config of `smoke_run`, whose program is compiled already. An epoch has
  # the images once, not their copies.
  run = run_lib.Run(workdir)
  config = config_files.load('prior:smoke')
  longer = config.copy_and_resolve_references()
  longer.num_train_steps, longer.min_train_steps = 0, 0
  longer.num_epochs = 2.0
  assert trainer.resolve(longer, facts).num_train_steps == 2 * (114 // 8)
  loop.train(config, run)
  assert inference.load(workdir).sample(['mel']).shape == (1, 16, 16, 3)


@pytest.mark.parametrize('failure', [KeyboardInterrupt, RuntimeError('boom')])
def test_interrupted(workdir, smoke_run, monkeypatch, failure):
  """Nothing looks finished after a failure; the next run completes."""
  real = pipeline.eval_batches

  def broken(source, **kwargs):
    for batch in real(source, **kwargs):
      yield batch
      raise failure

  name = the_codes(smoke_run)
  with monkeypatch.context() as patch:
    patch.setattr(pipeline, 'eval_batches', broken)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
      encode.encode(run_lib.Run(workdir), copies=1)
  with pytest.raises(errors.UserError, match='not prepared'):
    prepared.Dataset(name, workdir / 'data').check()
  assert not (workdir / 'data' / 'codes').exists()
  assert encode.encode(run_lib.Run(workdir), copies=1) == name
  assert prepared.Dataset(name, workdir / 'data').facts['num_train'] == 114


def test_another_place_for_the_codes(workdir, smoke_run, tmp_path):
  (workdir / 'data').rename(tmp_path / 'elsewhere')
  with pytest.raises(errors.UserError, match='not prepared.*dermvq prepare'):
    encode.encode(run_lib.Run(workdir), copies=1)
  assert not (workdir / 'data').exists()
  name = encode.encode(
    run_lib.Run(workdir, str(tmp_path / 'elsewhere')), copies=1
  )
  assert name == the_codes(smoke_run)
  assert prepared.Dataset(name, tmp_path / 'elsewhere').facts['num_test'] == 13


def test_mistakes(smoke_run, tmp_path):
  for copies in (0, 9):
    with pytest.raises(errors.UserError, match=f'copies is {copies}.* 1 to 8'):
      encode.encode(run_lib.Run(smoke_run), copies=copies)
  with pytest.raises(errors.UserError, match='train --config=vqvae'):
    encode.encode(run_lib.Run(tmp_path))
  shutil.copytree(smoke_run / 'vqvae', tmp_path / 'vqvae')
  shutil.rmtree(tmp_path / 'vqvae' / 'best')
  with pytest.raises(errors.UserError, match='no trained weights'):
    encode.encode(run_lib.Run(tmp_path))


def test_images_that_changed_under_a_run(run_copy):
  """Codes, samples of them and evaluations would be of other images."""
  run = run_lib.Run(run_copy)
  folder = run_copy / 'data' / IMAGES
  [metadata] = folder.rglob('metadata.json')
  content = json.loads(metadata.read_text())
  content['fingerprint']['val'] = '0123456789abcdef'
  metadata.write_text(json.dumps(content))
  configs = {
    name: config_files.load(
      f'{name}:smoke', [f'--config.data_dir={run_copy}/data']
    )
    for name in ('vqvae', 'prior', 'classifier')
  }
  train = loop.train
  changed = f'val of {IMAGES} in .* changed since .* was trained'
  for use, message in (
    (lambda: run.images, changed),
    (lambda: run.codes, changed),
    (lambda: encode.encode(run, copies=1), changed),
    (lambda: train(configs['vqvae'], run), 'fingerprint.val of the data was'),
    (lambda: train(configs['prior'], run), changed),
    (lambda: train(configs['classifier'], run), changed),
  ):
    with pytest.raises(errors.UserError, match=message) as e:
      use()
    assert '\n' not in str(e.value)


def test_images_that_are_only_read(workdir, smoke_run, tmp_path, monkeypatch):
  """Codes then lie in the workdir, where the prior finds them."""
  share = tmp_path / 'share'
  (workdir / 'data').rename(share)
  stored = json.loads((workdir / 'vqvae/config.json').read_text())
  stored['config']['data_dir'] = str(share)
  (workdir / 'vqvae/config.json').write_text(json.dumps(stored))
  real = files.is_writable
  monkeypatch.setattr(
    files, 'is_writable', lambda path: path != share and real(path)
  )
  name = encode.encode(run_lib.Run(workdir), copies=1)
  assert name == the_codes(smoke_run)
  assert not (share / 'codes').exists()
  found = run_lib.Run(workdir).dataset(config_files.load('prior:smoke', ()))
  assert (found.name, found.data_dir) == (name, workdir / 'data')
  assert found.facts['num_test'] == 13


def test_nowhere_to_write(workdir, monkeypatch):
  monkeypatch.setattr(files, 'is_writable', lambda path: False)
  with pytest.raises(errors.UserError, match='codes cannot be written to'):
    encode.encode(run_lib.Run(workdir), copies=1)
