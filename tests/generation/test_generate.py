"""Tests of the folders of pictures that sample and reconstruct write."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import dermvq_jax
from dermvq_jax import errors
from dermvq_jax.configs import vqvae
from dermvq_jax.data import images, prepared
from dermvq_jax.data.datasets import builder
from dermvq_jax.generation import generate
from dermvq_jax.training import tasks

IMAGES = 'synthetic_dermoscopy/smoke'


@pytest.fixture(scope='module')
def model(smoke_run):
  return dermvq_jax.load(smoke_run)


@pytest.fixture
def out(tmp_path):
  return tmp_path / 'new' / 'out'


def read_csv(path):
  with path.open(newline='') as f:
    return list(csv.DictReader(f))


def read_png(path):
  with Image.open(path) as image:
    assert image.format == 'PNG' and image.mode == 'RGB'
    return np.asarray(image)


def names_in(folder):
  return sorted(p.name for p in folder.iterdir())


def files_in(folder):
  """Relative paths."""
  files = (p for p in folder.rglob('*') if p.is_file())
  return sorted(str(p.relative_to(folder)) for p in files)


def sample_file(label, number=0):
  return f'{label}/synthetic_{label}_{number:05d}.png'


def save_image(path, width=40, height=30):
  rng = np.random.default_rng(len(str(path)))
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)
  return path


# Sample.


def test_sample(smoke_run, model, out):
  counts = {'mel': 3, 'nv': 1}
  generate.sample(smoke_run, out, counts=counts, seed=4, temperature=0.5)
  files = [sample_file('mel', i) for i in range(3)] + [sample_file('nv')]
  assert files_in(out) == sorted([*files, 'metadata.csv', 'sheet.png'])
  assert names_in(out.parent) == ['out']
  expected = model.sample(['mel'] * 3 + ['nv'], seed=4, temperature=0.5)
  rows = read_csv(out / 'metadata.csv')
  for i, (row, file, image) in enumerate(zip(rows, files, expected)):
    np.testing.assert_array_equal(read_png(out / file), image)
    assert row == {
      'image': file.partition('/')[2],
      'label': file.partition('/')[0],
      'synthetic': 'true',
      'id': str(i % 3),
      'seed': '4',
      'temperature': '0.5',
      'top_k': '0',
      'top_p': '1.0',
      'guidance_scale': '1.0',
    }
  assert len(rows) == 4
  np.testing.assert_array_equal(
    read_png(out / 'sheet.png'), images.sheet([expected[:3], expected[3:]])
  )


def test_sample_every_class(smoke_run, model, out):
  generate.sample(smoke_run, out, counts={'': 1, 'mel': 2, 'nv': 0})
  labels = [row['label'] for row in read_csv(out / 'metadata.csv')]
  expected = ['akiec', 'bcc', 'bkl', 'df', 'mel', 'mel', 'vasc']
  assert sorted(labels) == expected
  # A row of the CSV is enough to make its image again.
  row = read_csv(out / 'metadata.csv')[-1]
  again = model.sample(
    [row['label']],
    seed=int(row['seed']),
    temperature=float(row['temperature']),
    ids=[int(row['id'])],
  )
  file = out / row['label'] / row['image']
  np.testing.assert_array_equal(read_png(file), again[0])


def test_samples_are_marked(smoke_run, out):
  generate.sample(smoke_run, out, counts={'mel': 1})
  for file in (sample_file('mel'), 'sheet.png'):
    with Image.open(out / file) as image:
      assert image.text['Synthetic'] == 'true'
      assert image.text['Description'].startswith('Synthetic image')
      assert dermvq_jax.__version__ in image.text['Software']
  assert b'Synthetic' in (out / sample_file('mel')).read_bytes()


def test_balance(smoke_run, model, tmp_path, out, caplog):
  caplog.set_level('INFO')
  shutil.copytree(smoke_run / 'prior', tmp_path / 'run' / 'prior')
  shutil.copytree(smoke_run / 'vqvae', tmp_path / 'run' / 'vqvae')
  data_dir = str(smoke_run / 'data')
  generate.sample(
    tmp_path / 'run', out, balance=True, data_dir=data_dir, seed=2
  )
  train = prepared.open_split(IMAGES, data_dir, 'train')
  have = np.bincount([train[i]['label'] for i in range(len(train))])
  rows = read_csv(out / 'metadata.csv')
  new = [model.class_names.index(row['label']) for row in rows]
  assert set(have + np.bincount(new, minlength=7)) == {max(have)}
  assert f'mel: {have[4]} to train on, {max(have) - have[4]} new' in caplog.text
  most = model.class_names[have.argmax()]
  assert not (out / most).exists()
  # Images are those of --counts.
  expected = model.sample(['df'] * 2, seed=2)
  for i, image in enumerate(expected):
    file = out / sample_file('df', i)
    np.testing.assert_array_equal(read_png(file), image)


def test_copies_do_not_count(smoke_run, model, monkeypatch):
  """Codes may hold each training image several times."""
  asked = []
  for copies in (1, 3):
    labels = np.array([0, 0, 0, 1, 1, 2] * copies)
    facts = {'copies': copies}
    monkeypatch.setattr(prepared, 'read_labels', lambda *_, x=labels: x)
    monkeypatch.setattr(prepared, 'describe', lambda *_, f=facts: f)
    asked.append(generate._balancing_counts(model, smoke_run, ''))
  assert asked[0] == asked[1]
  assert list(asked[0].values()) == [0, 1, 2, 3, 3, 3, 3]


def test_nothing_to_balance(smoke_run, out, monkeypatch):
  monkeypatch.setattr(prepared, 'read_labels', lambda *_: np.arange(7))
  with pytest.raises(errors.UserError, match='are balanced already'):
    generate.sample(smoke_run, out, balance=True)
  assert not out.exists()


def test_samples_are_an_image_folder(smoke_run, tmp_path, out):
  """Read by metadata.csv, or as torchvision reads: by folders alone."""
  generate.sample(smoke_run, out, counts={'mel': 2, 'nv': 1})
  dataset = builder.make('image_folder/smoke', tmp_path)
  files = [name for name in files_in(out) if '/' in name]
  for by_folders in (False, True):
    if by_folders:
      (out / 'metadata.csv').unlink()
    records = dataset.read_records(out)
    assert [r.label for r in records] == ['mel', 'mel', 'nv']
    for record, file in zip(records, files):
      assert record.source == out / file
      np.testing.assert_array_equal(
        dataset.read_image(record), read_png(out / file)
      )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'counts': {'melanoma': 2}}, "no class 'melanoma'.*akiec"),
    ({'counts': {'mel': 1, '7': 2}}, "no class '7'"),
    ({'counts': {'': 0}}, 'asks for no image'),
    ({'counts': {'mel': 0}}, 'asks for no image'),
    ({'counts': {'mel': 1}, 'temperature': -1.0}, 'temperature'),
    ({'counts': {'mel': 1}, 'top_p': 2.0}, 'top_p is 2.0'),
    ({'counts': {'mel': 1}, 'mask': 'left'}, '--complete and --mask'),
    ({'counts': {'mel': 1}, 'balance': True}, '--balance goes without'),
    ({'balance': True, 'complete': 'x', 'mask': 'left'}, 'goes without'),
    ({'balance': True, 'data_dir': '/nowhere'}, 'not prepared in /nowhere'),
    ({}, 'asks for no image'),
  ],
)
def test_sample_mistakes(smoke_run, out, arguments, message):
  with pytest.raises(errors.UserError, match=message):
    generate.sample(smoke_run, out, **arguments)
  assert not out.exists()
  assert not out.with_name('out.incomplete').exists()


def test_sample_before_the_prior(smoke_run, tmp_path, out):
  shutil.copytree(smoke_run / 'vqvae', tmp_path / 'run' / 'vqvae')
  for what in ({'counts': {'mel': 1}}, {'balance': True}):
    with pytest.raises(errors.UserError, match='no trained prior'):
      generate.sample(tmp_path / 'run', out, **what)
  assert not out.exists()
  with pytest.raises(errors.UserError, match='train --config=vqvae'):
    generate.sample(tmp_path / 'nothing', out, counts={'mel': 1})


def test_existing_folder_is_not_touched(smoke_run, tmp_path):
  (tmp_path / 'mine.txt').write_text('mine')
  file = tmp_path / 'mine.txt'
  for out in (tmp_path, file):
    with pytest.raises(errors.UserError, match='exists already.*--out'):
      generate.sample(smoke_run, out, counts={'mel': 1})
    with pytest.raises(errors.UserError, match='exists already.*--out'):
      generate.reconstruct(smoke_run, out, split='val')
  assert names_in(tmp_path) == ['mine.txt']


def test_out_without_a_parent(smoke_run, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  generate.sample(smoke_run, 'out', counts={'mel': 1})
  assert names_in(tmp_path) == ['out']
  generate.sample(smoke_run, 'a/b/', counts={'mel': 1})
  assert len(names_in(tmp_path / 'a' / 'b')) == 3
  with pytest.raises(errors.UserError, match='exists already'):
    generate.sample(smoke_run, '', counts={'mel': 1})


@pytest.mark.parametrize('failure', [KeyboardInterrupt, OSError(28, 'full')])
def test_nothing_half_written(smoke_run, out, monkeypatch, failure):
  def broken(*args):
    raise failure

  for run in (
    lambda: generate.sample(smoke_run, out, counts={'mel': 2}),
    lambda: generate.reconstruct(smoke_run, out, split='val', num_images=2),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(generate, '_write_csv', broken)
      with pytest.raises((KeyboardInterrupt, OSError)):
        run()
    assert names_in(out.parent) == []


def test_rests_of_a_killed_run_are_removed(smoke_run, out):
  partial = out.with_name('out.incomplete')
  partial.mkdir(parents=True)
  (partial / 'mel_00009.png').write_bytes(b'half')
  generate.sample(smoke_run, out, counts={'mel': 1})
  files = [sample_file('mel'), 'metadata.csv', 'sheet.png']
  assert files_in(out) == files
  assert names_in(out.parent) == ['out']


# Complete.


def _left_half(folder, size=16):
  """Image and mask files."""
  rng = np.random.default_rng(0)
  original = rng.integers(0, 256, (size, size, 3), np.uint8)
  Image.fromarray(original).save(folder / 'lesion.png')
  white = np.zeros((size, size), np.uint8)
  white[:, : size // 2] = 255
  Image.fromarray(white).save(folder / 'white.png')
  return original


@pytest.mark.parametrize('from_file', [False, True])
def test_complete(narrow_run, tmp_path, out, from_file, caplog):
  caplog.set_level('INFO')
  original = _left_half(tmp_path)
  mask = str(tmp_path / 'white.png') if from_file else 'left'
  controls = dict(
    temperature=0.9, top_k=9, top_p=0.8, guidance_scale=1.5, seed=3
  )
  generate.sample(
    narrow_run,
    out,
    counts={'mel': 2, 'nv': 1},
    complete=tmp_path / 'lesion.png',
    mask=mask,
    **controls,
  )
  files = [sample_file('mel'), sample_file('mel', 1), sample_file('nv')]
  others = ['masked.png', 'original.png', 'metadata.csv', 'sheet.png']
  assert files_in(out) == sorted(files + others)
  masked = original.copy()
  masked[:, :8] = 128
  np.testing.assert_array_equal(read_png(out / 'original.png'), original)
  np.testing.assert_array_equal(read_png(out / 'masked.png'), masked)
  # Two 3x3 convolutions see two columns of codes further than the hidden four.
  known = np.zeros((8, 8), bool)
  known[:, 6:] = True
  assert '16 of 64 codes' in caplog.text
  model = dermvq_jax.load(narrow_run)
  codes = model.encode(original[None])
  expected = model.sample(
    ['mel', 'mel', 'nv'],
    known_codes=np.repeat(codes, 3, 0),
    known_mask=np.repeat(known[None], 3, 0),
    **controls,
  )
  rows = read_csv(out / 'metadata.csv')
  for row, file, image in zip(rows, files, expected):
    np.testing.assert_array_equal(read_png(out / file), image)
    assert row['image'] == file.partition('/')[2]
    assert (row['complete'], row['mask']) == (f'{tmp_path}/lesion.png', mask)
    assert {k: float(row[k]) for k in controls} == controls
  assert len(rows) == 3
  np.testing.assert_array_equal(
    read_png(out / 'sheet.png'),
    images.sheet([np.stack([original, masked]), expected[:2], expected[2:]]),
  )


def test_what_is_hidden_has_no_influence(narrow_run, tmp_path):
  original = _left_half(tmp_path)
  made = []
  for i, value in enumerate((0, 255)):
    original[:, 8:] = value
    images.save_png(tmp_path / 'lesion.png', original)
    generate.sample(
      narrow_run,
      tmp_path / str(i),
      counts={'mel': 1},
      complete=tmp_path / 'lesion.png',
      mask='right',
    )
    made.append(read_png(tmp_path / str(i) / sample_file('mel')))
  np.testing.assert_array_equal(*made)


@pytest.mark.parametrize('size', [64, 128, 256])
@pytest.mark.parametrize('mask', images.MASKS)
def test_named_masks(size, mask):
  """Each hides a part, and leaves codes of the real configs."""
  hidden = images.named_mask(mask, size)
  assert hidden.shape == (size, size) and hidden.dtype == bool
  shares = dict.fromkeys(('left', 'right', 'top', 'bottom'), 0.5)
  shares |= {'center': 1 / 9, 'border': 1 - (7 / 8) ** 2}
  assert hidden.mean() == pytest.approx(shares[mask], abs=0.02)
  y, x = np.argwhere(hidden).mean(0) / size
  places = {'left': (0.5, 0.25), 'right': (0.5, 0.75)}
  places |= {'top': (0.25, 0.5), 'bottom': (0.75, 0.5)}
  assert (y, x) == pytest.approx(places.get(mask, (0.5, 0.5)), abs=0.01)
  config = vqvae.get_config('' if size == 64 else str(size))
  reached = tasks.vqvae_model(config).encoder.reached_by(hidden)
  assert 10 < (~reached).sum() < reached.size


# Reconstruct.


def test_reconstruct_a_split(smoke_run, model, out, caplog):
  caplog.set_level('INFO')
  generate.reconstruct(smoke_run, out, split='val', num_images=3)
  source = prepared.open_split(IMAGES, smoke_run / 'data', 'val')
  records = [source[i] for i in range(3)]
  originals = np.stack([record['image'] for record in records])
  made = model.reconstruct(originals)
  rows = read_csv(out / 'errors.csv')
  assert len(rows) == 3
  errors_of = []
  for row, record, image in zip(rows, records, made):
    name = record['id'].decode()
    assert row['image'] == name
    np.testing.assert_array_equal(
      read_png(out / f'{name}_reconstruction.png'), image
    )
    mse = np.mean((image / 255 - record['image'] / 255) ** 2)
    errors_of.append(mse)
    assert float(row['reconstruction_mse']) == pytest.approx(mse, rel=1e-4)
    psnr = -10 * np.log10(mse)
    assert float(row['reconstruction_psnr']) == pytest.approx(psnr, rel=1e-3)
  assert set(rows[0]) == {'image', 'reconstruction_mse', 'reconstruction_psnr'}
  np.testing.assert_array_equal(
    read_png(out / 'sheet.png'), images.sheet([originals, made])
  )
  assert len(names_in(out)) == 5
  assert f'MSE {np.mean(errors_of):.5f}' in caplog.text


def test_reconstruct_through_the_prior(smoke_run, model, out, caplog):
  caplog.set_level('INFO')
  generate.reconstruct(
    smoke_run, out, split='test', num_images=100, through_prior=True
  )
  source = prepared.open_split(IMAGES, smoke_run / 'data', 'test')
  records = [source[i] for i in range(len(source))]
  rows = read_csv(out / 'errors.csv')
  assert len(rows) == len(records) == 13
  originals = np.stack([record['image'] for record in records])
  labels = [record['label'] for record in records]
  codes = model.encode(originals)
  predicted, likelihood = model.predict(codes, labels)
  made = model.decode(predicted)
  for row, record, image, value in zip(rows, records, made, likelihood):
    file = out / f'{record["id"].decode()}_through_prior.png'
    np.testing.assert_array_equal(read_png(file), image)
    mse = np.mean((image / 255 - record['image'] / 255) ** 2)
    assert float(row['through_prior_mse']) == pytest.approx(mse, rel=1e-4)
    assert float(row['nll_nats']) == pytest.approx(-value, rel=1e-4)
    bits = -value / np.log(2) / 16
    assert float(row['bits_per_code']) == pytest.approx(bits, rel=1e-3)
  p = np.bincount(predicted.ravel()) / predicted.size
  perplexity = np.exp(-np.sum(p[p > 0] * np.log(p[p > 0])))
  assert f'of the predicted {perplexity:.1f}' in caplog.text
  assert f'nll {-likelihood.mean():.1f} nats' in caplog.text


def test_reconstruct_files_of_any_size(smoke_run, model, tmp_path, out):
  folder = tmp_path / 'in'
  save_image(folder / 'wide.jpg', 50, 20)
  save_image(folder / 'tall.PNG', 7, 31)
  save_image(folder / 'tiny.jpeg', 1, 1)
  (folder / 'notes.txt').write_text('not an image')
  single = save_image(tmp_path / 'other' / 'a.b.png', 16, 16)
  Image.new('L', (20, 20)).save(folder / 'grey.png')
  Image.new('RGBA', (20, 20)).save(folder / 'clear.png')
  generate.reconstruct(
    smoke_run, out, paths=[single, folder], through_prior=True, label='mel'
  )
  rows = read_csv(out / 'errors.csv')
  assert [row['image'] for row in rows] == [
    'a.b.png',
    'clear.png',
    'grey.png',
    'tall.PNG',
    'tiny.jpeg',
    'wide.jpg',
  ]
  with Image.open(single) as image:
    original = np.asarray(image)[None]
  np.testing.assert_array_equal(
    read_png(out / 'a.b_reconstruction.png'), model.reconstruct(original)[0]
  )
  likelihood = model.log_likelihood(model.encode(original), ['mel'])[0]
  assert float(rows[0]['nll_nats']) == pytest.approx(-likelihood, rel=1e-4)


def test_files_of_unknown_class(smoke_run, model, tmp_path, out):
  """Their likelihood is that under the null label."""
  file = save_image(tmp_path / 'a.png', 16, 16)
  generate.reconstruct(smoke_run, out, paths=[str(file)], through_prior=True)
  [row] = read_csv(out / 'errors.csv')
  with Image.open(file) as image:
    codes = model.encode(np.asarray(image)[None])
  likelihood = model.log_likelihood(codes, [7])[0]
  assert float(row['nll_nats']) == pytest.approx(-likelihood, rel=1e-4)


def test_files_of_the_same_name(smoke_run, tmp_path, out):
  """None overwrites another."""
  for name in ('x/a.png', 'x/a.jpg', 'y/a.png', 'y/a_2.png'):
    save_image(tmp_path / name)
  generate.reconstruct(smoke_run, out, paths=[tmp_path / 'x', tmp_path / 'y'])
  assert len(read_csv(out / 'errors.csv')) == 4
  assert len([n for n in names_in(out) if 'reconstruction' in n]) == 4


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({}, 'either image files or --split'),
    ({'paths': ['a.png'], 'split': 'val'}, 'either image files or --split'),
    ({'split': 'val', 'num_images': 0}, 'num_images is 0'),
    ({'split': 'val', 'data_dir': '/nowhere'}, 'not prepared in /nowhere'),
    ({'paths': ['/nowhere/a.png']}, 'no file /nowhere/a.png'),
    ({'paths': [__file__]}, 'unreadable'),
    ({'paths': ['EMPTY']}, 'no .jpg or .png file'),
    ({'paths': ['GOOD', 'BAD'], 'through_prior': True}, 'bad.png is unread'),
    (
      {'paths': ['GOOD'], 'through_prior': True, 'label': 'melanoma'},
      "no class 'melanoma'",
    ),
  ],
)
def test_reconstruct_mistakes(smoke_run, tmp_path, out, arguments, message):
  made = {
    'EMPTY': tmp_path / 'empty',
    'BAD': tmp_path / 'bad.png',
    'GOOD': save_image(tmp_path / 'good.png'),
  }
  made['EMPTY'].mkdir()
  made['BAD'].write_bytes(made['GOOD'].read_bytes()[:200])
  arguments = dict(arguments)
  if 'paths' in arguments:
    arguments['paths'] = [made.get(p, p) for p in arguments['paths']]
  with pytest.raises(errors.UserError, match=message) as e:
    generate.reconstruct(smoke_run, out, **arguments)
  assert '\n' not in str(e.value)
  assert not out.parent.exists()


def test_reconstruct_needs_no_prior_but_through_prior_does(
  smoke_run, tmp_path, out
):
  shutil.copytree(smoke_run / 'vqvae', tmp_path / 'run' / 'vqvae')
  file = save_image(tmp_path / 'a.png')
  generate.reconstruct(tmp_path / 'run', out, paths=[file])
  assert (out / 'a_reconstruction.png').exists()
  with pytest.raises(errors.UserError, match='no trained prior'):
    generate.reconstruct(
      tmp_path / 'run', tmp_path / 'out2', paths=[file], through_prior=True
    )
  assert not (tmp_path / 'out2').exists()


# Names from strangers.


def test_formulas_are_disarmed_and_numbers_are_not(tmp_path):
  values = ['=cmd()', '+1+1', '@x', '-x', '\t=1', 'a=b', '-1.5', '-inf', -2.5]
  rows = [{'name': value} for value in values]
  generate._write_csv(tmp_path / 'a.csv', rows)
  written = [row['name'] for row in read_csv(tmp_path / 'a.csv')]
  assert written[:5] == ["'" + value for value in values[:5]]
  assert written[5:] == ['a=b', '-1.5', '-inf', '-2.5']


def test_ids_from_metadata_stay_in_the_folder(
  smoke_run, tmp_path, out, monkeypatch
):
  """A prepared dataset may be a stranger's."""
  ids = [b'../../x', b'/tmp/y', b'=cmd()', b'.z', b'..']
  source = prepared.open_split(
    'synthetic_dermoscopy/smoke', smoke_run / 'data', 'val'
  )
  records = [source[i] | {'id': id_} for i, id_ in enumerate(ids)]
  monkeypatch.setattr(prepared, 'open_split', lambda *args: records)
  generate.reconstruct(smoke_run, out, split='val', num_images=5)
  written = [p for p in tmp_path.rglob('*') if p.is_file()]
  assert len(written) == 7 and all(p.parent == out for p in written)
  pictures = [name for name in names_in(out) if 'reconstruction' in name]
  assert len(pictures) == 5
  assert not any(name.startswith('.') for name in pictures)
  assert read_csv(out / 'errors.csv')[2]['image'] == "'=cmd()"


def test_class_names_stay_in_the_folder(run_copy, tmp_path, out):
  file = run_copy / 'vqvae' / 'config.json'
  stored = json.loads(file.read_text())
  stored['facts']['class_names'][0] = '../../akiec'
  file.write_text(json.dumps(stored))
  before = set(tmp_path.rglob('*.png'))
  generate.sample(run_copy, out, counts={'../../akiec': 1})
  written = set(tmp_path.rglob('*.png')) - before
  assert len(written) == 2 and all(p.is_relative_to(out) for p in written)
