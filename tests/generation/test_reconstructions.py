"""Folders of reconstructions."""

import os
import shutil

import numpy as np
import pytest
from pictures import names_in, read_csv, read_png, save_image
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.data import images, prepared
from dermvq_jax.generation import reconstructions
from dermvq_jax.runs import run as run_lib

IMAGES = 'synthetic_dermoscopy/smoke'


def test_reconstruct_a_split(smoke_run, model, out, caplog):
  caplog.set_level('INFO')
  reconstructions.reconstruct(
    run_lib.Run(smoke_run), out, split='val', num_images=3
  )
  source = prepared.Dataset(IMAGES, smoke_run / 'data').split('val')
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
  reconstructions.reconstruct(
    run_lib.Run(smoke_run),
    out,
    split='test',
    num_images=100,
    through_prior=True,
  )
  source = prepared.Dataset(IMAGES, smoke_run / 'data').split('test')
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
  assert f'of the predicted codes {perplexity:.1f}' in caplog.text
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
  reconstructions.reconstruct(
    run_lib.Run(smoke_run),
    out,
    paths=[single, folder],
    through_prior=True,
    label='mel',
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
  """The likelihood of images without labels is under the null label."""
  file = save_image(tmp_path / 'a.png', 16, 16)
  reconstructions.reconstruct(
    run_lib.Run(smoke_run), out, paths=[str(file)], through_prior=True
  )
  [row] = read_csv(out / 'errors.csv')
  with Image.open(file) as image:
    codes = model.encode(np.asarray(image)[None])
  likelihood = model.log_likelihood(codes, [7])[0]
  assert float(row['nll_nats']) == pytest.approx(-likelihood, rel=1e-4)


def test_files_of_the_same_name(smoke_run, tmp_path, out):
  """Images with the same name do not overwrite each other."""
  for name in ('x/a.png', 'x/a.jpg', 'y/a.png', 'y/a_2.png'):
    save_image(tmp_path / name)
  reconstructions.reconstruct(
    run_lib.Run(smoke_run), out, paths=[tmp_path / 'x', tmp_path / 'y']
  )
  assert len(read_csv(out / 'errors.csv')) == 4
  assert len([n for n in names_in(out) if 'reconstruction' in n]) == 4


def test_a_name_that_is_not_utf8(smoke_run, tmp_path, out, caplog):
  save_image(tmp_path / 'in' / 'a.png')
  save_image(tmp_path / 'in' / 'b.png')
  path = tmp_path / 'in' / 'b.png'
  try:
    wrong = path.rename(path.with_name(os.fsdecode(b'L\xe4sion.png')))
  except OSError:
    pytest.skip('this file system has no such names')
  run = run_lib.Run(smoke_run)
  reconstructions.reconstruct(run, out, paths=[path.parent])
  assert [row['image'] for row in read_csv(out / 'errors.csv')] == ['a.png']
  assert 'L\\xe4sion.png is not UTF-8' in caplog.records[-1].getMessage()
  with pytest.raises(errors.UserError, match='not UTF-8; rename'):
    reconstructions.reconstruct(run, tmp_path / 'none', paths=[wrong])


def test_junk_and_bad_files_in_a_folder(smoke_run, tmp_path, out, caplog):
  """As macOS leaves them on a stick, and a copy that was interrupted."""
  folder = tmp_path / 'in'
  for name in ('a.png', 'b.png', 'd.png'):
    save_image(folder / name)
    (folder / f'._{name}').write_bytes(b'\0\5\x16\7\0\2\0\0Mac OS X')
  for name in ('Thumbs.db', '.DS_Store'):
    (folder / name).write_bytes(b'x')
  cut = (folder / 'b.png').read_bytes()[:60]
  (folder / 'c\x1b[2J.png').write_bytes(cut)
  for name in ('e.heic', 'f.GIF'):  # Other images, which are not read.
    (folder / name).write_bytes(b'x')
  reconstructions.reconstruct(run_lib.Run(smoke_run), out, paths=[folder])
  rows = read_csv(out / 'errors.csv')
  assert [row['image'] for row in rows] == ['a.png', 'b.png', 'd.png']
  said = [record.getMessage() for record in caplog.records]
  assert 'c\\x1b[2J.png is unreadable' in said[-2]
  assert '2 images left out' in said[-1] and '(e.heic, f.GIF)' in said[-1]
  assert ['left out' in line for line in said].count(True) == 2
  for name in ('a.png', 'b.png', 'd.png'):
    (folder / name).write_bytes(cut)
  with pytest.raises(errors.UserError, match='no readable image: .*a.png'):
    reconstructions.reconstruct(
      run_lib.Run(smoke_run), tmp_path / 'none', paths=[folder]
    )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({}, 'either image files or --split'),
    ({'paths': ['a.png'], 'split': 'val'}, 'either image files or --split'),
    ({'split': 'val', 'num_images': 0}, 'num_images is 0'),
    ({'paths': ['/nowhere/a.png']}, 'no file /nowhere/a.png'),
    ({'paths': [__file__]}, 'unreadable'),
    ({'paths': ['EMPTY']}, 'there is no JPEG'),
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
    reconstructions.reconstruct(run_lib.Run(smoke_run), out, **arguments)
  assert '\n' not in str(e.value)
  assert not out.parent.exists()


def test_reconstruct_needs_no_prior_but_through_prior_does(
  smoke_run, tmp_path, out
):
  shutil.copytree(smoke_run / 'vqvae', tmp_path / 'run' / 'vqvae')
  file = save_image(tmp_path / 'a.png')
  reconstructions.reconstruct(run_lib.Run(tmp_path / 'run'), out, paths=[file])
  assert (out / 'a_reconstruction.png').exists()
  with pytest.raises(errors.UserError, match='no trained prior'):
    reconstructions.reconstruct(
      run_lib.Run(tmp_path / 'run'),
      tmp_path / 'out2',
      paths=[file],
      through_prior=True,
    )
  assert not (tmp_path / 'out2').exists()


def test_ids_from_metadata_stay_in_the_folder(
  smoke_run, tmp_path, out, monkeypatch
):
  """A prepared dataset may come from a stranger."""
  ids = [b'../../x', b'/tmp/y', b'=cmd()', b'.z', b'..']
  source = prepared.Dataset(
    'synthetic_dermoscopy/smoke', smoke_run / 'data'
  ).split('val')
  records = [source[i] | {'id': id_} for i, id_ in enumerate(ids)]
  monkeypatch.setattr(prepared.Dataset, 'split', lambda *args: records)
  reconstructions.reconstruct(
    run_lib.Run(smoke_run), out, split='val', num_images=5
  )
  written = [p for p in tmp_path.rglob('*') if p.is_file()]
  assert len(written) == 7 and all(p.parent == out for p in written)
  pictures = [name for name in names_in(out) if 'reconstruction' in name]
  assert len(pictures) == 5
  assert not any(name.startswith('.') for name in pictures)
  assert read_csv(out / 'errors.csv')[2]['image'] == "'=cmd()"


def test_data_that_are_elsewhere(smoke_run, out):
  run = run_lib.Run(smoke_run, '/nowhere')
  with pytest.raises(errors.UserError, match='not prepared in /nowhere'):
    reconstructions.reconstruct(run, out, split='val')
  assert not out.exists()
