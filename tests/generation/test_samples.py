"""Folders of new images and of completions."""

import json
import re
import shutil
import tarfile
import zlib

import numpy as np
import pytest
from pictures import files_in, names_in, read_csv, read_png, sample_file
from PIL import Image

import dermvq_jax
from dermvq_jax import errors, inference
from dermvq_jax.data import images, prepared
from dermvq_jax.data.datasets import builder
from dermvq_jax.generation import (
  reconstructions,
  requests,
  sample_folder,
  samples,
  tables,
)
from dermvq_jax.runs import run as run_lib

IMAGES = 'synthetic_dermoscopy/smoke'
OTHER_FILES = ('metadata.csv', 'samples.json', 'sheet.png')


def test_sample(smoke_run, model, out):
  counts = {'mel': 3, 'nv': 1}
  samples.sample(
    run_lib.Run(smoke_run), out, counts=counts, seed=4, temperature=0.5
  )
  files = [sample_file('mel', i) for i in range(3)] + [sample_file('nv')]
  assert files_in(out) == sorted([*files, *OTHER_FILES])
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
      'guidance_rise': '0.0',
      'autoguidance_scale': '1.0',
    }
  assert len(rows) == 4
  np.testing.assert_array_equal(
    read_png(out / 'sheet.png'), images.sheet([expected[:3], expected[3:]])
  )


def test_sample_every_class(smoke_run, model, out):
  samples.sample(run_lib.Run(smoke_run), out, counts={'': 1, 'mel': 2, 'nv': 0})
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
  samples.sample(run_lib.Run(smoke_run), out, counts={'mel': 1})
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
  samples.sample(
    run_lib.Run(tmp_path / 'run', data_dir), out, balance=['label'], seed=2
  )
  train = prepared.Dataset(IMAGES, data_dir).split('train')
  have = np.bincount([train[i]['label'] for i in range(len(train))])
  rows = read_csv(out / 'metadata.csv')
  new = [model.class_names.index(row['label']) for row in rows]
  assert set(have + np.bincount(new, minlength=7)) == {max(have)}
  assert (
    f'mel: {have[4]} training images, {max(have) - have[4]} new' in caplog.text
  )
  most = model.class_names[have.argmax()]
  assert not (out / most).exists()
  # Images are those of --counts.
  expected = model.sample(['df'] * 2, seed=2)
  for i, image in enumerate(expected):
    file = out / sample_file('df', i)
    np.testing.assert_array_equal(read_png(file), image)


@pytest.mark.parametrize('copies', [1, 3])
def test_what_is_lacking_by_hand(copies):
  """Codes may hold each image several times; 2 is the null value of sex."""
  labels = np.array([0, 0, 0, 1, 1, 3] * copies)
  sexes = np.array([0, 0, 1, 1, 2, 0] * copies)
  of_classes = requests.lacking([labels], [4], copies)
  assert of_classes == {(0,): (3, 0), (1,): (2, 1), (2,): (0, 3), (3,): (1, 2)}
  found = requests.lacking([labels, sexes], [4, 2], copies)
  assert found == {
    **{(0, 0): (2, 0), (0, 1): (1, 1), (1, 0): (0, 2), (1, 1): (1, 1)},
    **{(2, 0): (0, 2), (2, 1): (0, 2), (3, 0): (1, 1), (3, 1): (0, 2)},
  }


def test_nothing_to_balance(smoke_run, out, monkeypatch):
  values = {'label': np.arange(7)}
  monkeypatch.setattr(prepared.Dataset, 'values', lambda *_: values)
  with pytest.raises(errors.UserError, match='are balanced already'):
    samples.sample(run_lib.Run(smoke_run), out, balance=['label'])
  assert not out.exists()


@pytest.mark.parametrize(
  'arguments',
  [{'counts': {'': 2}}, {'counts': {'df': 1}}, {'balance': ['label']}],
)
def test_unseen_classes_are_refused(smoke_run, out, monkeypatch, arguments):
  """No training image is a df, so what is drawn for it means nothing."""
  records = [{'label': label} for label in (0, 1, 2, 4, 4, 5, 6) * 3]
  monkeypatch.setattr(prepared.Dataset, 'split', lambda *_, **__: records)
  run = run_lib.Run(smoke_run)
  with pytest.raises(errors.UserError, match='has the class df, so') as e:
    samples.sample(run, out, **arguments)
  advice = {
    2: '--counts=akiec=2,bcc=2,bkl=2,mel=2,nv=2,vasc=2',
    1: 'leave it out',
  }[arguments.get('counts', {}).get('', 1)]
  if 'balance' in arguments:
    advice = '--counts=akiec=3,bcc=3,bkl=3,nv=3,vasc=3'
  assert str(e.value).endswith(advice)
  assert not out.exists()
  samples.sample(run, out, counts={'mel': 1, 'df': 0})


def test_no_more_is_read_than_needed(smoke_run, out, monkeypatch):
  def records():
    yield from ({'label': label} for label in (5, 4))
    raise AssertionError('The class was there.')

  monkeypatch.setattr(prepared.Dataset, 'split', lambda *_, **__: records())
  samples.sample(run_lib.Run(smoke_run), out, counts={'mel': 1})


def _without_data(smoke_run, tmp_path):
  """A copy of the run without its datasets."""
  for phase in ('vqvae', 'prior'):
    shutil.copytree(smoke_run / phase, tmp_path / 'copy' / phase)
  return run_lib.Run(tmp_path / 'copy', '/nowhere')


def test_samples_without_the_data(smoke_run, tmp_path, out, caplog):
  caplog.set_level('INFO')
  run = _without_data(smoke_run, tmp_path)
  samples.sample(run, out, counts={'mel': 1})
  assert 'Not checked if each class has training images' in caplog.text
  assert (out / sample_file('mel')).exists()


def test_samples_are_an_image_folder(smoke_run, tmp_path, out):
  """Folders are read by metadata.csv or, as torchvision does, without it."""
  samples.sample(run_lib.Run(smoke_run), out, counts={'mel': 2, 'nv': 1})
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
    ({'counts': {'mel': 1}, 'balance': ['label']}, '--balance cannot go with'),
    ({'balance': ['label'], 'complete': 'x', 'mask': 'left'}, 'leave out one'),
    ({'balance': ['sex']}, 'give --balance=label,sex'),
    ({'balance': ['label', 'sex']}, "no condition 'sex'"),
    ({}, 'asks for no image'),
  ],
)
def test_sample_mistakes(smoke_run, out, arguments, message):
  with pytest.raises(errors.UserError, match=message):
    samples.sample(run_lib.Run(smoke_run), out, **arguments)
  assert not out.exists()
  assert not out.with_name('out.incomplete').exists()


def test_data_that_are_elsewhere(smoke_run, tmp_path, out):
  run = _without_data(smoke_run, tmp_path)
  with pytest.raises(errors.UserError, match='not prepared in /nowhere'):
    samples.sample(run, out, balance=['label'])
  assert not out.exists()


def test_sample_before_the_prior(smoke_run, tmp_path, out):
  shutil.copytree(smoke_run / 'vqvae', tmp_path / 'run' / 'vqvae')
  for what in ({'counts': {'mel': 1}}, {'balance': ['label']}):
    with pytest.raises(errors.UserError, match='no trained prior'):
      samples.sample(run_lib.Run(tmp_path / 'run'), out, **what)
  assert not out.exists()
  with pytest.raises(errors.UserError, match='train --config=vqvae'):
    samples.sample(run_lib.Run(tmp_path / 'nothing'), out, counts={'mel': 1})


def test_existing_folder_is_not_touched(smoke_run, tmp_path):
  (tmp_path / 'mine.txt').write_text('mine')
  file = tmp_path / 'mine.txt'
  for out in (tmp_path, file):
    with pytest.raises(errors.UserError, match='exists already.*--out'):
      samples.sample(run_lib.Run(smoke_run), out, counts={'mel': 1})
    with pytest.raises(errors.UserError, match='exists already.*--out'):
      reconstructions.reconstruct(run_lib.Run(smoke_run), out, split='val')
  assert names_in(tmp_path) == ['mine.txt']


def test_out_without_a_parent(smoke_run, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  samples.sample(run_lib.Run(smoke_run), 'out', counts={'mel': 1})
  assert names_in(tmp_path) == ['out']
  samples.sample(run_lib.Run(smoke_run), 'a/b/', counts={'mel': 1})
  assert len(names_in(tmp_path / 'a' / 'b')) == 4
  with pytest.raises(errors.UserError, match='exists already'):
    samples.sample(run_lib.Run(smoke_run), '', counts={'mel': 1})


@pytest.mark.parametrize('failure', [KeyboardInterrupt, OSError(28, 'full')])
def test_nothing_half_written(smoke_run, out, monkeypatch, failure):
  def broken(*args):
    raise failure

  monkeypatch.setattr(tables, 'write_csv', broken)
  with pytest.raises((KeyboardInterrupt, OSError)):
    reconstructions.reconstruct(
      run_lib.Run(smoke_run), out, split='val', num_images=2
    )
  assert names_in(out.parent) == []
  with pytest.raises((KeyboardInterrupt, OSError)):
    samples.sample(run_lib.Run(smoke_run), out, counts={'mel': 2})
  assert names_in(out.parent) == ['out.unfinished']


def _contents(folder):
  return {name: (folder / name).read_bytes() for name in files_in(folder)}


def _copies_are(monkeypatch, is_copy):
  """Lets a rejection find copies; `is_copy` is given a sum of an image."""

  def make(model, memorised, unlike):
    del model, unlike

    def reject(new):
      return np.array([is_copy(zlib.crc32(image.tobytes())) for image in new])

    return {'memorised': reject} if memorised else {}

  monkeypatch.setattr(samples.rejections, 'make', make)


@pytest.mark.parametrize('shards', [0, 3])
def test_interrupted_samples_are_the_same(
  smoke_run, out, tmp_path, monkeypatch, shards
):
  """Stopped anywhere, also while images are replaced, and started again."""
  monkeypatch.setattr(samples, '_BLOCK', 3)
  _copies_are(monkeypatch, lambda total: total % 3 == 0)
  run, calls = run_lib.Run(smoke_run), []

  def make(out):
    samples.sample(
      run, out, counts={'mel': 5, 'nv': 4}, reject_memorised=0.5, shards=shards
    )

  as_png = sample_folder.images.as_png
  make(tmp_path / 'at_once')

  def stopped(*args):
    calls.append(1)
    if len(calls) % 4 == 0:
      raise KeyboardInterrupt
    return as_png(*args)

  monkeypatch.setattr(sample_folder.images, 'as_png', stopped)
  times = 0
  while not out.exists():
    try:
      make(out)
    except KeyboardInterrupt:
      times += 1
      assert names_in(out.parent) == ['out.unfinished']
  assert times > 2
  whole = _contents(tmp_path / 'at_once')
  assert _contents(out) == whole
  record = json.loads(whole['samples.json'])
  assert record['images'] == 9
  assert record['drawn'] == 9 + record['dropped']['memorised'] > 9
  rows = read_csv(out / 'metadata.csv')
  assert [row['label'] for row in rows].count('mel') == 5
  assert len({(row['label'], row['id']) for row in rows}) == 9
  assert names_in(out.parent) == ['out']


def test_another_command_does_not_go_on(smoke_run, out, monkeypatch):
  run = run_lib.Run(smoke_run)
  with monkeypatch.context() as patch:
    patch.setattr(tables, 'write_csv', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      samples.sample(run, out, counts={'mel': 1}, seed=1)
  for changed in ({'seed': 2}, {'seed': 1, 'temperature': 0.5}):
    name = [*changed][-1]
    with pytest.raises(errors.UserError, match=f'which differs in {name}; run'):
      samples.sample(run, out, counts={'mel': 1}, **changed)
  record = out.with_name('out.unfinished') / 'samples.json'
  record.write_text('[]')
  with pytest.raises(errors.UserError, match='json is damaged.*; remove'):
    samples.sample(run, out, counts={'mel': 1}, seed=1)


def test_shards_hold_the_folders(smoke_run, out, tmp_path):
  run, counts = run_lib.Run(smoke_run), {'mel': 3, 'nv': 2}
  samples.sample(run, out, counts=counts, shards=2)
  assert files_in(out) == sorted(
    [*OTHER_FILES, *(f'synthetic_{i:06d}.tar' for i in range(3))]
  )
  samples.sample(run, tmp_path / 'plain', counts=counts)
  unpacked = tmp_path / 'unpacked'
  rows = read_csv(out / 'metadata.csv')
  for row in rows:
    with tarfile.open(out / row.pop('shard')) as shard:
      name = f'{row["label"]}/{row["image"]}'
      assert name in shard.getnames()
      shard.extractall(unpacked, filter='data')
  assert rows == read_csv(tmp_path / 'plain' / 'metadata.csv')
  pictures = {
    name: content
    for name, content in _contents(tmp_path / 'plain').items()
    if '/' in name
  }
  assert _contents(unpacked) == pictures
  sheets = [folder / 'sheet.png' for folder in (out, tmp_path / 'plain')]
  assert sheets[0].read_bytes() == sheets[1].read_bytes()
  with pytest.raises(errors.UserError, match='shards is -1; give the number'):
    samples.sample(run, tmp_path / 'none', counts=counts, shards=-1)


def test_what_cannot_be_replaced_is_told(
  smoke_run, out, tmp_path, monkeypatch, caplog
):
  """Only the first mel is no copy."""
  run = run_lib.Run(smoke_run)
  first = zlib.crc32(inference.Model(run).sample('mel')[0].tobytes())
  _copies_are(monkeypatch, lambda total: total != first)
  counts = {'mel': 2}
  samples.sample(run, out, counts=counts, reject_memorised=0.5)
  assert [row['id'] for row in read_csv(out / 'metadata.csv')] == ['0']
  assert 'mel: 1 of 2 images are missing, because 10 were' in caplog.text


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
  samples.sample(
    run_lib.Run(narrow_run),
    out,
    counts={'mel': 2, 'nv': 1},
    complete=tmp_path / 'lesion.png',
    mask=mask,
    **controls,
  )
  files = [sample_file('mel'), sample_file('mel', 1), sample_file('nv')]
  others = ['masked.png', 'original.png', *OTHER_FILES]
  assert files_in(out) == sorted(files + others)
  masked = original.copy()
  masked[:, :8] = 128
  np.testing.assert_array_equal(read_png(out / 'original.png'), original)
  np.testing.assert_array_equal(read_png(out / 'masked.png'), masked)
  # Hidden pixels repeat the nearest visible ones.
  filled = original.copy()
  filled[:, :8] = original[:, 8:9]
  known = np.zeros((8, 8), bool)
  known[:, 4:] = True
  assert '32 of 64 codes' in caplog.text
  model = dermvq_jax.load(narrow_run)
  codes = model.encode(filled[None])
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
    samples.sample(
      run_lib.Run(narrow_run),
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
  """Each mask hides a part, and leaves enough of the 8x8 codes or more."""
  hidden = images.named_mask(mask, size)
  assert hidden.shape == (size, size) and hidden.dtype == bool
  shares = dict.fromkeys(('left', 'right', 'top', 'bottom'), 0.5)
  shares |= {'center': 1 / 9, 'border': 1 - (7 / 8) ** 2}
  assert hidden.mean() == pytest.approx(shares[mask], abs=0.02)
  y, x = np.argwhere(hidden).mean(0) / size
  places = {'left': (0.5, 0.25), 'right': (0.5, 0.75)}
  places |= {'top': (0.25, 0.5), 'bottom': (0.75, 0.5)}
  assert (y, x) == pytest.approx(places.get(mask, (0.5, 0.5)), abs=0.01)
  blocks = hidden.reshape(8, size // 8, 8, size // 8)
  assert 31 < (~blocks.any((1, 3))).sum() < 64


def rename_classes(workdir, names):
  """Gives the first classes of a run other names."""
  for phase in ('vqvae', 'prior'):
    file = workdir / phase / 'config.json'
    stored = json.loads(file.read_text())
    for found in (
      stored['facts']['class_names'],
      stored['facts']['conditions']['label'],
    ):
      found[: len(names)] = names
    file.write_text(json.dumps(stored))


def test_classes_of_similar_names_have_their_own_files(run_copy, out):
  rename_classes(run_copy, ['a/b', 'a_b', 'A?b'])
  counts = {'a/b': 1, 'a_b': 1, 'A?b': 1}
  samples.sample(run_lib.Run(run_copy), out, counts=counts)
  rows = read_csv(out / 'metadata.csv')
  assert [row['label'] for row in rows] == list(counts)
  assert [row['image'] for row in rows] == [
    f'synthetic_{stem}_00000.png' for stem in ('a_b', 'a_b_2', 'A_b_3')
  ]
  assert len(list(out.glob('*/*.png'))) == 3


def test_class_names_stay_in_the_folder(run_copy, tmp_path, out):
  rename_classes(run_copy, ['../../akiec'])
  before = set(tmp_path.rglob('*.png'))
  samples.sample(run_lib.Run(run_copy), out, counts={'../../akiec': 1})
  written = set(tmp_path.rglob('*.png')) - before
  assert len(written) == 2 and all(p.is_relative_to(out) for p in written)


@pytest.mark.slow  # It measures all images of the run.
def test_sample_drops_what_is_unlike(run_copy, out, caplog, monkeypatch):
  """Plain images are dropped; reconstructions of real images mostly are not."""
  run = run_lib.Run(run_copy)
  model = inference.Model(run)
  records = run.images.split('val')
  made = model.reconstruct(np.stack([records[i]['image'] for i in range(4)]))
  made[3] = 255
  decode = inference.Model.decode

  def decode_ids(model, codes, **kwargs):
    if codes.ndim == 1:
      return made[codes % 4]
    return decode(model, codes, **kwargs)

  monkeypatch.setattr(
    inference.Model, 'sample_codes', lambda *_, ids, **__: np.array(ids)
  )
  monkeypatch.setattr(inference.Model, 'decode', decode_ids)
  caplog.set_level('INFO')
  limit = 0.1  # There are 13 held-out images, so this is 1 / 14 or less.
  samples.sample(run, out, counts={'mel': 4}, reject_unlike=limit)
  rows = read_csv(out / 'metadata.csv')
  ids = [row['id'] for row in rows]
  assert '3' not in ids and len(ids) == 4
  assert all(row['reject_unlike'] == '0.1' for row in rows)
  assert re.search(r'Dropped \d+ of \d+ images that are unlike', caplog.text)
