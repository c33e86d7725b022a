"""Tests of ham10000, on made-up archives and, if available, on real images."""

import collections
import csv
import io
import os
import pathlib
import random
import shutil
import struct
import zipfile

import fabricate
import numpy as np
import pytest
import tensorflow_datasets as tfds
from fabricate import jpeg, write_folder, write_zip
from PIL import Image, JpegImagePlugin

from dermvq_jax import errors
from dermvq_jax.data import images as images_lib
from dermvq_jax.data import prepare
from dermvq_jax.data import prepared as prepared_lib
from dermvq_jax.data.datasets import builder, ham10000, isic

COLUMNS = [
  'lesion_id',
  'image_id',
  'dx',
  'dx_type',
  'age',
  'sex',
  'localization',
]
# Both images of two published pairs, and one image of a third pair.
PAIRS = isic.DUPLICATE_IMAGES[:2]
LONELY = isic.DUPLICATE_IMAGES[2][0]
REAL_DIR = os.environ.get('DERMVQ_HAM10000_DIR')
# Counts in the part with 5,000 images, each of another lesion.
REAL_COUNTS = {
  'nv': 3600,
  'bkl': 497,
  'mel': 414,
  'bcc': 212,
  'akiec': 161,
  'vasc': 66,
  'df': 50,
}


def make_rows(lesions_per_class=10):
  """Returns metadata: one to three images per lesion, and duplicate pairs."""
  ids = [f'ISIC_{i:07d}' for i in range(1000)]
  names = [name for pair in PAIRS for name in pair] + [LONELY]
  rows = []
  for c, label in enumerate(builder.CLASS_NAMES):
    for i in range(lesions_per_class):
      for _ in range(1 + i % 3):
        rows.append(
          {
            'lesion_id': f'HAM_{c}{i:03d}',
            'image_id': ids.pop(),
            'dx': label,
            'dx_type': 'histo',
            'age': '' if i == 0 else str(5 * i),
            'sex': ('male', 'female', 'unknown')[i % 3],
            'localization': 'lower extremity',
          }
        )
  # As in the published metadata, duplicates have different lesion ids.
  first_of_lesion = {}
  for row in rows:
    if row['dx'] == 'nv':
      first_of_lesion.setdefault(row['lesion_id'], row)
  for name, row in zip(names, first_of_lesion.values()):
    row['image_id'] = name
  return rows


def write_metadata(path, rows, columns=COLUMNS):
  is_tab = path.suffix == '.tab'
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(
      file,
      columns,
      extrasaction='ignore',
      delimiter='\t' if is_tab else ',',
      # Dataverse's .tab files quote their strings.
      quoting=csv.QUOTE_ALL if is_tab else csv.QUOTE_MINIMAL,
    )
    writer.writeheader()
    writer.writerows(rows)


def write_folders(folder, parts):
  for part, names in parts.items():
    write_folder(folder / part, names)


def write_zips(folder, parts):
  for part, names in parts.items():
    write_zip(folder / f'{part}.zip', names)
  # Dataverse offers these in the same place.
  write_zip(folder / 'ISIC2018_Task3_Test_Images.zip', ['ISIC_0034524'])
  with zipfile.ZipFile(folder / 'HAM10000_segmentations.zip', 'w') as archive:
    archive.writestr(f'{names[0]}_segmentation.png', b'')


def write_zips_with_folders(folder, parts):
  for part, names in parts.items():
    write_zip(folder / f'{part}.zip', names, f'{part}/')
  with zipfile.ZipFile(folder / f'{part}.zip', 'a') as archive:
    archive.writestr(f'__MACOSX/{part}/._{names[0]}.jpg', b'?')


def write_one_zip_one_folder(folder, parts):
  first, second = parts
  write_zip(folder / f'{first}.zip', parts[first])
  # Some programs unpack into another folder of the same name.
  write_folder(folder / second / second, parts[second])


def write_one_folder(folder, parts):
  write_folder(folder / 'images', sum(parts.values(), []))
  (folder / 'images' / '.DS_Store').write_bytes(b'')


def write_beside(folder, parts):
  write_folder(folder, sum(parts.values(), []))


def write_kaggle(folder, parts):
  write_folders(folder, parts)
  write_folders(folder, {part.lower(): parts[part] for part in parts})
  (folder / 'hmnist_8_8_L.csv').write_text('pixel0000,label\n1,2\n')


# How the images are written, and the suffix of the metadata.
LAYOUTS = {
  'folders': (write_folders, '.csv'),
  'zips': (write_zips, '.tab'),
  'zips with folders': (write_zips_with_folders, ''),
  'one zip, one folder': (write_one_zip_one_folder, '.csv'),
  'one folder': (write_one_folder, '.csv'),
  'beside': (write_beside, '.tab'),
  'kaggle': (write_kaggle, '.csv'),
}


def write_archive(folder, rows, layout='folders'):
  """Writes the archive in one of `LAYOUTS`; returns its folder."""
  folder.mkdir(parents=True, exist_ok=True)
  names = sorted(row['image_id'] for row in rows)
  half = len(names) // 2
  parts = {
    'HAM10000_images_part_1': names[:half],
    'HAM10000_images_part_2': names[half:],
  }
  write_images, suffix = LAYOUTS[layout]
  write_images(folder, parts)
  write_metadata(folder / f'HAM10000_metadata{suffix}', rows)
  return folder


def read_records(folder, data_dir):
  return builder.make('ham10000/smoke', data_dir).read_records(folder)


def read_all(data_dir, dataset='ham10000/smoke'):
  return {
    split: list(prepared_lib.Dataset(dataset, data_dir).split(split))
    for split in ('train', 'val', 'test')
  }


@pytest.fixture(scope='module')
def fabricated(tmp_path_factory):
  folder = tmp_path_factory.mktemp('ham')
  rows = make_rows()
  return write_archive(folder, rows), rows


@pytest.fixture
def archive(fabricated, tmp_path):
  """Returns a copy of the archive that may be damaged, and its rows."""
  folder, rows = fabricated
  shutil.copytree(folder, tmp_path / 'archive')
  return tmp_path / 'archive', [dict(row) for row in rows]


@pytest.fixture(scope='module')
def prepared(fabricated, tmp_path_factory):
  folder, _ = fabricated
  data_dir = tmp_path_factory.mktemp('data')
  prepare.run('ham10000/smoke', data_dir, folder)
  return data_dir


# Layouts.


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_the_same_records(layout, tmp_path):
  rows = make_rows(3)
  random.Random(1).shuffle(rows)
  folder = write_archive(tmp_path / 'archive', rows, layout)
  records = read_records(folder, tmp_path / 'data')
  assert [r.id for r in records] == sorted(row['image_id'] for row in rows)
  by_id = {row['image_id']: row for row in rows}
  reader = builder.make('ham10000/smoke', tmp_path / 'data')
  for record in records:
    row = by_id[record.id]
    assert record.label == row['dx']
    assert record.extra_fields == {'dx_type': row['dx_type']}
    with Image.open(io.BytesIO(jpeg(record.id))) as image:
      expected = images_lib.crop_and_resize(image, 16)
    np.testing.assert_array_equal(reader.read_image(record), expected)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_reading_changes_nothing_in_the_archive(layout, tmp_path):
  folder = write_archive(tmp_path / 'archive', make_rows(1), layout)
  before = sorted(folder.rglob('*'))
  read_records(folder, tmp_path / 'data')
  assert sorted(folder.rglob('*')) == before
  assert not (tmp_path / 'data').exists()


def test_columns_may_come_in_any_order_with_others_and_a_mark(tmp_path):
  rows = make_rows(1)
  path = tmp_path / 'metadata.csv'
  write_metadata(path, rows, [*reversed(COLUMNS), 'dataset'])
  path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes() + b'\r\n\r\n')
  result = ham10000.read_metadata(path)
  assert list(result.values()) == rows


# Groups and splits.


def test_prepared_splits_are_leak_free_and_stratified(prepared, fabricated):
  _, rows = fabricated
  lesion_of = {row['image_id']: row['lesion_id'] for row in rows}
  splits = read_all(prepared)
  split_of_image = {
    e['id'].decode(): split for split, ex in splits.items() for e in ex
  }
  assert set(split_of_image) == set(lesion_of)
  assert sum(map(len, splits.values())) == len(rows)
  split_of_lesion = collections.defaultdict(set)
  for image_id, split in split_of_image.items():
    split_of_lesion[lesion_of[image_id]].add(split)
  assert all(len(found) == 1 for found in split_of_lesion.values())
  for a, b in PAIRS:
    assert lesion_of[a] != lesion_of[b]
    assert split_of_image[a] == split_of_image[b]
  for examples in splits.values():
    assert {int(e['label']) for e in examples} == set(range(7))


def test_splits_do_not_depend_on_row_order_or_layout(tmp_path, prepared):
  rows = make_rows()
  random.Random(3).shuffle(rows)
  folder = write_archive(tmp_path / 'archive', rows, 'zips')
  prepare.run('ham10000/smoke', tmp_path / 'data', folder)
  expected = read_all(prepared)
  for split, examples in read_all(tmp_path / 'data').items():
    ids = [e['id'] for e in examples]
    assert ids == [e['id'] for e in expected[split]]


# What is prepared.


def test_prepared_examples_hold_images_and_metadata(prepared, fabricated):
  folder, rows = fabricated
  row_of = {row['image_id']: row for row in rows}
  images = {p.stem: p for p in folder.rglob('*.jpg')}
  dataset = builder.make('ham10000/smoke', prepared)
  names = dataset.info.features['label'].names
  assert tuple(names) == builder.CLASS_NAMES
  conditions = dataset.info.metadata['conditions']
  for example in (e for ex in read_all(prepared).values() for e in ex):
    row = row_of[example['id'].decode()]
    assert names[example['label']] == row['dx']
    assert example['dx_type'].decode() == row['dx_type']
    # What is not known is the null value.
    sex = {'female': 0, 'male': 1, 'unknown': 2}[row['sex']]
    assert example['sex'] == sex
    assert example['age'] == (int(row['age']) // 10 if row['age'] else 9)
    assert conditions['localization'][example['localization']] == (
      'lower extremity'
    )
    assert example['image'].dtype == np.uint8
    np.testing.assert_array_equal(
      example['image'], images_lib.read_square(images[row['image_id']], 16)
    )
  decades = [f'{i}0-{i}9' for i in range(1, 9)]
  assert conditions['age'] == ['0-9', *decades]
  assert len(conditions['localization']) == 14


def test_prepared_twice_gives_identical_records(prepared, fabricated, tmp_path):
  folder, _ = fabricated
  prepare.run('ham10000/smoke', tmp_path, folder)
  first, second = read_all(prepared), read_all(tmp_path)
  for split in first:
    assert len(first[split]) == len(second[split])
    for a, b in zip(first[split], second[split]):
      assert a.keys() == b.keys()
      for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_the_train_variance_is_that_of_the_train_images(prepared):
  images = np.stack([e['image'] for e in read_all(prepared)['train']]) / 255
  metadata = builder.make('ham10000/smoke', prepared).info.metadata
  np.testing.assert_allclose(metadata['train_variance'], images.var())


def test_configs():
  sizes = {c.name: c.size for c in ham10000.Builder.BUILDER_CONFIGS}
  assert sizes == {'64': 64, '128': 128, '256': 256, 'smoke': 16}
  assert tfds.core.Version('2.0.0') == ham10000.Builder.VERSION


# Errors: each is one line and leaves no files.


def check_error(folder, match):
  fabricate.check_error('ham10000/smoke', folder, match)


def rewrite(folder, rows, columns=COLUMNS):
  write_metadata(folder / 'HAM10000_metadata.csv', rows, columns)


def first_image(folder):
  return sorted(folder.rglob('*.jpg'))[0]


def test_no_folder_given(tmp_path):
  match = (
    r'ham10000 needs files that you provide. Download .*part_1\.zip.*'
    r'10\.7910/DVN/DBW86T \(licence CC BY-NC 4\.0.*--manual_dir=FOLDER'
  )
  with pytest.raises(errors.UserError, match=match) as error:
    prepare.run('ham10000/smoke', tmp_path / 'data')
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'data').exists()


def test_a_missing_folder(tmp_path):
  check_error(tmp_path / 'nowhere', 'there is no folder .*nowhere;')


def test_an_empty_folder(tmp_path):
  (tmp_path / 'archive').mkdir()
  check_error(tmp_path / 'archive', 'archive is empty; put the files')


def test_no_metadata(archive, tmp_path):
  folder, _ = archive
  (folder / 'HAM10000_metadata.csv').unlink()
  match = r'archive has no HAM10000_metadata\.csv or \.tab; download it from'
  check_error(folder, match)


def test_no_images(archive, tmp_path):
  folder, _ = archive
  shutil.rmtree(folder / 'HAM10000_images_part_1')
  shutil.rmtree(folder / 'HAM10000_images_part_2')
  check_error(folder, 'a table but no images; download HAM10000_images')


def test_half_the_images(archive, tmp_path):
  folder, rows = archive
  shutil.rmtree(folder / 'HAM10000_images_part_2')
  missing = sorted(row['image_id'] for row in rows)[len(rows) // 2 :]
  match = (
    rf'{len(missing)} metadata rows without an image '
    rf'\({", ".join(missing[:3])}, \.\.\.\); add the images '
    r'\(of HAM10000_images_part_1'
  )
  check_error(folder, match)


def test_an_image_without_metadata(archive, tmp_path):
  folder, rows = archive
  removed = rows.pop()['image_id']
  rewrite(folder, rows)
  match = rf'1 image without metadata \({removed}\); use the complete'
  check_error(folder, match)


def test_both_at_once(archive, tmp_path):
  folder, _ = archive
  path = first_image(folder)
  path.rename(path.with_name('copy (1).jpg'))
  match = (
    rf'1 metadata row without an image \({path.stem}\) and 1 image without '
    r'metadata \(copy \(1\)\); add the images .*; use the complete'
  )
  check_error(folder, match)


def test_missing_columns(archive, tmp_path):
  folder, rows = archive
  rewrite(folder, rows, [c for c in COLUMNS if c not in ('dx', 'lesion_id')])
  check_error(folder, 'lacks the columns lesion_id, dx; use the')


@pytest.mark.parametrize(
  'values, match',
  [
    ({'dx': 'wart'}, "line 2: unknown dx 'wart'; it must be one of akiec, bcc"),
    ({'dx': ''}, "line 2: unknown dx ''"),
    ({'image_id': '../../etc/x'}, r"image_id '\.\./\.\./etc/x' is not made of"),
    ({'image_id': '=cmd()'}, r"image_id '=cmd\(\)' is not made of letters"),
    ({'image_id': ''}, "image_id '' is not made of letters"),
    ({'lesion_id': ' '}, 'line 2: lesion_id is blank'),
    ({'age': 'old'}, "line 2: age 'old' is not a number"),
    ({'age': '90'}, "line 2: age '90' is not a number from 0 to 89; fix it"),
    ({'age': '-1'}, "line 2: age '-1' is not a number from 0 to 89; fix it"),
    ({'sex': 'm'}, "has sex 'm'; it must be one of female, male, or blank"),
    ({'localization': 'leg'}, "has localization 'leg'; .* one of abdomen, ac"),
  ],
)
def test_bad_rows(archive, tmp_path, values, match):
  folder, rows = archive
  rows[0].update(values)
  rewrite(folder, rows)
  check_error(folder, match)


def test_a_row_twice(archive, tmp_path):
  folder, rows = archive
  rewrite(folder, [*rows, rows[0]])
  match = (
    f'line {len(rows) + 2}: image_id {rows[0]["image_id"]} is there twice; keep'
  )
  check_error(folder, match)


@pytest.mark.parametrize(
  'content, match',
  [
    (b'', 'lacks the columns lesion_id, image_id, dx,'),
    (b'<html>not found</html>\n', 'lacks the columns lesion_id'),
    (','.join(COLUMNS).encode() + b'\n', 'holds no rows'),
    (b'\xff\xfe\x00\x01', 'is not text in UTF-8'),
    (','.join(COLUMNS).encode() + b'\nHAM_1\n', "line 2: image_id '' is not"),
  ],
)
def test_metadata_of_another_kind(archive, tmp_path, content, match):
  folder, _ = archive
  (folder / 'HAM10000_metadata.csv').write_bytes(content)
  check_error(folder, match)


@pytest.mark.parametrize(
  'damage',
  [
    lambda data: data[: len(data) // 2],
    lambda data: b'',
    lambda data: b'<html>not found</html>',
    lambda data: b'GIF89a' + data,
  ],
  ids=['truncated', 'empty', 'html', 'gif'],
)
def test_an_unreadable_image(archive, tmp_path, damage):
  folder, _ = archive
  path = first_image(folder)
  path.write_bytes(damage(path.read_bytes()))
  match = rf'the image .*{path.name} is unreadable \(.*\); copy or download it'
  check_error(folder, match)


def test_an_unreadable_image_in_a_zip(tmp_path):
  rows = make_rows()
  folder = write_archive(tmp_path / 'archive', rows, 'zips')
  path = folder / 'HAM10000_images_part_1.zip'
  name = sorted(row['image_id'] for row in rows)[0]
  data = bytearray(path.read_bytes())
  start = data.index(jpeg(name))
  data[start : start + 400] = bytes(400)
  path.write_bytes(data)
  check_error(folder, rf'part_1\.zip.{name}\.jpg is unreadable')


def test_a_truncated_zip(tmp_path):
  folder = write_archive(tmp_path / 'archive', make_rows(1), 'zips')
  path = folder / 'HAM10000_images_part_2.zip'
  path.write_bytes(path.read_bytes()[:-100])
  check_error(folder, r'part_2\.zip is not an intact zip file .*again')


@pytest.mark.parametrize(
  'name',
  ['../x.jpg', '/x.jpg', 'a/../../x.jpg', '..\\x.jpg', 'C:\\x.jpg', 'C:x.jpg'],
)
def test_a_zip_that_leaves_its_folder(tmp_path, name):
  folder = write_archive(tmp_path / 'archive', make_rows(1), 'zips')
  with zipfile.ZipFile(folder / 'HAM10000_images_part_1.zip', 'a') as archive:
    archive.writestr(name, jpeg('x'))
  match = r'part_1\.zip has the member .*, which would be unpacked outside'
  check_error(folder, match)


def test_a_zip_that_unpacks_to_too_much(tmp_path):
  """200 MB of zeros, packed to 200 kB, are not unpacked."""
  folder = write_archive(tmp_path / 'archive', make_rows(1), 'zips')
  path = folder / 'HAM10000_images_part_1.zip'
  with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('x.jpg', bytes(2 * 10**8))
  match = r"part_1\.zip has the member 'x\.jpg', which unpacks to 200,000,000"
  check_error(folder, match)


@pytest.mark.parametrize(
  'width, height', [(8000, 7000), (10000, 10000), (60000, 60000)]
)
def test_an_absurdly_large_image(
  archive, tmp_path, width, height, monkeypatch, recwarn
):
  folder, _ = archive
  path = first_image(folder)
  data = bytearray(path.read_bytes())
  frame = data.index(b'\xff\xc0')
  # Marker, length, precision, then height and width.
  struct.pack_into('>HH', data, frame + 5, height, width)
  path.write_bytes(data)
  load = JpegImagePlugin.JpegImageFile.load

  def load_small(image):
    assert image.width < 1000, 'decoded'
    return load(image)

  monkeypatch.setattr(JpegImagePlugin.JpegImageFile, 'load', load_small)
  match = rf'the image .*{path.name} has more than 50,000,000 pixels'
  check_error(folder, match)
  assert not [w for w in recwarn if 'Bomb' in w.category.__name__]


def test_too_few_lesions(tmp_path):
  folder = write_archive(tmp_path / 'archive', make_rows(3))
  check_error(folder, 'are too few: the splits test, val would be')


# Real images; they are not changed.


@pytest.mark.skipif(not REAL_DIR, reason='DERMVQ_HAM10000_DIR is not set')
def test_real_archive(tmp_path):
  records = read_records(pathlib.Path(REAL_DIR), tmp_path)
  counts = collections.Counter(record.label for record in records)
  if len(records) == sum(REAL_COUNTS.values()):
    assert counts == REAL_COUNTS
  else:
    assert set(counts) == set(builder.CLASS_NAMES)
  ids = {record.id for record in records}
  groups = {record.id: record.group for record in records}
  for a, b in isic.DUPLICATE_IMAGES:
    if {a, b} <= ids:
      assert groups[a] == groups[b]


@pytest.mark.skipif(not REAL_DIR, reason='DERMVQ_HAM10000_DIR is not set')
def test_real_images(tmp_path):
  real = pathlib.Path(REAL_DIR)
  rows = list(
    ham10000.read_metadata(next(real.glob('HAM10000_metadata*'))).values()
  )
  images = ham10000.find_images(real)
  nv = [row for row in rows if row['dx'] == 'nv'][:20]
  some = nv + [row for row in rows if row['dx'] == 'mel'][:20]
  folder = tmp_path / 'archive'
  (folder / 'HAM10000_images_part_1').mkdir(parents=True)
  for row in some:
    source = images[row['image_id']]
    link = folder / 'HAM10000_images_part_1' / source.name
    if isinstance(source, pathlib.Path):
      link.symlink_to(source)
    else:
      link.write_bytes(source.read_bytes())
  write_metadata(folder / 'HAM10000_metadata.csv', some)
  prepare.run('ham10000/64', tmp_path / 'data', folder)
  splits = read_all(tmp_path / 'data', 'ham10000/64')
  assert {k: len(v) for k, v in splits.items()} == {
    'train': 32,
    'val': 4,
    'test': 4,
  }
  pixels = np.stack([e['image'] for ex in splits.values() for e in ex])
  assert pixels.shape == (40, 64, 64, 3)
  # Skin: red over green and blue, and not flat.
  red, green, blue = pixels.mean(axis=(0, 1, 2))
  assert red > green
  assert red > blue
  assert pixels.std(axis=(1, 2, 3)).min() > 5
