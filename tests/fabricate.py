"""Makes small archives in the published layouts, with tiny images."""

import csv
import dataclasses
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.data import images, prepare
from dermvq_jax.data.datasets import builder

ISIC2018_COLUMNS = ('MEL', 'NV', 'BCC', 'AKIEC', 'BKL', 'DF', 'VASC')
ISIC2019_COLUMNS = (
  *('MEL', 'NV', 'BCC', 'AK', 'BKL', 'DF', 'VASC'),
  *('SCC', 'UNK'),
)
SMOKE_SIZE = 16


@dataclasses.dataclass
class Example:
  """A record that a prepared dataset must have; '' if it has no fixed split."""

  id: str
  label: str
  group: str
  pixels: np.ndarray
  split: str = ''


def jpeg(name):
  """Returns a small JPEG, 30x20, that depends on the name."""
  rng = np.random.default_rng(sum(name.encode()))
  corners = rng.uniform(0, 255, (2, 2, 3)).astype(np.uint8)
  file = io.BytesIO()
  image = Image.fromarray(corners).resize((30, 20), Image.Resampling.BILINEAR)
  image.save(file, 'JPEG', quality=95)
  return file.getvalue()


def pixels(name):
  """Returns `jpeg(name)` as it is prepared at the smoke size."""
  with Image.open(io.BytesIO(jpeg(name))) as image:
    return images.crop_and_resize(image, SMOKE_SIZE)


def write_folder(folder, names):
  folder.mkdir(parents=True, exist_ok=True)
  for name in names:
    (folder / f'{name}.jpg').write_bytes(jpeg(name))


def write_zip(path, names, prefix=''):
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w') as archive:
    for name in names:
      archive.writestr(f'{prefix}{name}.jpg', jpeg(name))


def edit(path, old, new):
  """Replaces the first `old` in a text file, which must have it."""
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))


def table(columns, rows):
  """Returns a table as comma separated text."""
  file = io.StringIO(newline='')
  writer = csv.writer(file)
  writer.writerow(columns)
  writer.writerows(rows)
  return file.getvalue()


def one_hot(columns, labels):
  """Returns the table of image -> class as the ISIC challenges write it."""
  rows = [
    [image, *(f'{float(c == label.upper())}' for c in columns)]
    for image, label in labels.items()
  ]
  return table(('image', *columns), rows)


def _examples(class_names, num_groups, prefix, start=0):
  """Returns one or two images for each group, with ids from `start` on."""
  examples = []
  for label in class_names:
    for i in range(num_groups):
      for _ in range(1 + i % 2):
        name = f'ISIC_{start + len(examples):07d}'
        group = f'{prefix}_{label}{i}'
        examples.append(Example(name, label, group, pixels(name)))
  return examples


def class_folders(folder):
  """Writes an image_folder with the same file names in each class."""
  examples = []
  for label in ('basal cell', 'mel', 'nv'):
    names = [f'{i}' for i in range(10)]
    write_folder(folder / label, names)
    for name in names:
      ident = f'{label}_{name}'
      examples.append(Example(ident, label, ident, pixels(name)))
  (folder / 'notes.txt').write_text('to be ignored')
  return examples


def listed_images(folder):
  """Writes an image_folder with a metadata.csv that lacks one image."""
  examples = _examples(('a', 'b'), 10, 'group')
  examples[0].group = examples[0].id
  names = [e.id for e in examples]
  write_folder(folder / 'x' / 'y', names[:5])
  write_zip(folder / 'more.zip', names[5:9])
  write_folder(folder, [*names[9:], 'unlisted'])
  rows = [
    # The first has no group; some names have a suffix.
    (e.label, e.group.removeprefix('group_') * (i > 0), e.id + '.jpg' * (i % 2))
    for i, e in enumerate(examples)
  ]
  (folder / 'metadata.csv').write_text(table(('label', 'group', 'image'), rows))
  return examples


def images_with_conditions(folder):
  """Writes an image_folder whose table has the columns Sex and age."""
  examples = listed_images(folder)
  rows = [
    (
      *(e.id, e.label, e.group.removeprefix('group_')),
      ('male', 'female', 'NA', '')[i % 4],
      (7 * i) % 50 if i % 5 else 'unknown',
    )
    for i, e in enumerate(examples)
  ]
  columns = ('image', 'label', 'group', 'Sex', 'age')
  (folder / 'metadata.csv').write_text(table(columns, rows))
  return rows


def isic2018(folder):
  """Writes zips and unpacked folders; training images have lesions."""
  examples = []
  parts = {'train': 'Training', 'val': 'Validation', 'test': 'Test'}
  for i, (split, part) in enumerate(parts.items()):
    some = _examples(builder.CLASS_NAMES, 2, 'HAM', 100 * i)
    for example in some:
      example.split = split
      if split != 'train':
        example.group = example.id
    labels = {e.id: e.label for e in some}
    truth = one_hot(ISIC2018_COLUMNS, labels)
    name = f'ISIC2018_Task3_{part}'
    if split == 'val':
      write_folder(folder / f'{name}_Input', labels)
      (folder / f'{name}_GroundTruth.csv').write_text(truth)
    else:
      write_zip(folder / f'{name}_Input.zip', labels, f'{name}_Input/')
      with zipfile.ZipFile(folder / f'{name}_GroundTruth.zip', 'w') as archive:
        archive.writestr(
          f'{name}_Input/LICENSE.txt', 'the published zips have it'
        )
        archive.writestr(f'{name}_GroundTruth/{name}_GroundTruth.csv', truth)
    examples += some
  rows = [(e.id, e.group, 'histo') for e in examples if e.split == 'train']
  (folder / 'ISIC2018_Task3_Training_LesionGroupings.csv').write_text(
    table(('image', 'lesion_id', 'diagnosis_confirm_type'), rows)
  )
  return examples


def isic2019(folder):
  """Writes an archive in which some lesions are blank."""
  names = ('ak', 'bcc', 'bkl', 'df', 'mel', 'nv', 'scc', 'vasc')
  examples = _examples(names, 10, 'BCN')
  for example in examples[::9]:
    example.group = example.id
  labels = {e.id: e.label for e in examples}
  write_zip(folder / 'ISIC_2019_Training_Input.zip', labels)
  (folder / 'ISIC_2019_Training_GroundTruth.csv').write_text(
    one_hot(ISIC2019_COLUMNS, labels)
  )
  rows = [(e.id, 55, '', e.group if e.group != e.id else '') for e in examples]
  (folder / 'ISIC_2019_Training_Metadata.csv').write_text(
    table(('image', 'age_approx', 'sex', 'lesion_id'), rows)
  )
  return examples


def isic_archive_rows():
  """Returns the examples of `isic_archive` and the rows of its metadata.csv."""
  labels = {'Nevus': 'Nevus', 'Melanoma, NOS': 'Melanoma NOS'}
  examples = _examples(labels.values(), 10, 'IL')
  rows = []
  for i, e in enumerate(examples):
    lesion, patient = (
      f'{e.group.replace(" ", "")}',
      f'IP_{i // 3}' * (i % 3 > 0),
    )
    if i % 5 == 4:
      lesion = patient = ''
    e.group = ''  # test_isic_archive tests them
    rows.append(
      {
        'isic_id': e.id,
        'attribution': 'A hospital, B',
        'copyright_license': 'CC-BY-NC',
        'age_approx': ('', '55', '85', '5.0')[i % 4],
        'anatom_site_general': ('', 'head/neck', 'palms/soles')[i % 3],
        'diagnosis_1': 'Benign' if e.label == 'Nevus' else 'Malignant',
        'diagnosis_3': next(k for k, v in labels.items() if v == e.label),
        'fitzpatrick_skin_type': ('', 'II')[i % 2],
        'image_type': ('dermoscopic', '')[i % 7 == 6],
        'lesion_id': lesion,
        'patient_id': patient,
        'sex': ('', 'female', 'male')[i % 3],
      }
    )
  return examples, rows


def write_isic_archive(folder, rows):
  """Writes images and tables as the ISIC Archive's own tool does."""
  folder.mkdir(parents=True, exist_ok=True)
  write_folder(folder, [row['isic_id'] for row in rows])
  (folder / 'licenses').mkdir(exist_ok=True)
  (folder / 'licenses' / 'CC-BY-NC.txt').write_text('licence')
  (folder / 'attribution.txt').write_text('A hospital, B')
  columns = list(rows[0])
  lines = [[row[c] for c in columns] for row in rows]
  (folder / 'metadata.csv').write_text(table(columns, lines))


def isic_archive(folder):
  """Writes dermoscopic images, and others that are left out."""
  examples, rows = isic_archive_rows()
  for i, changes in enumerate(
    (
      {'image_type': 'clinical: close-up'},
      {'image_type': 'TBP tile: close-up'},
      {'diagnosis_3': ''},
    )
  ):
    rows.append(rows[0] | {'isic_id': f'ISIC_900000{i}'} | changes)
  write_isic_archive(folder, rows)
  return examples


PAD_COLUMNS = (
  *('patient_id', 'lesion_id', 'smoke', 'age', 'gender', 'fitspatrick'),
  *('region', 'diameter_1', 'diagnostic', 'img_id', 'biopsed'),
)


def pad_ufes_20(folder):
  """Writes photographs of which some have no patient, or no lesion either."""
  examples, rows = [], []
  for label in ('ack', 'bcc', 'mel', 'nev', 'scc', 'sek'):
    for i in range(12):
      number = len(examples)
      patient, lesion = f'PAT_{label}{i // 2}', str(number)
      name = f'PAT_{label}{i}_{number}'
      group = patient
      if i > 9:
        patient, lesion = '', ('', '7000')[i % 2]
        group = f'lesion_{lesion}' if lesion else name
        lesion = lesion and f'{lesion}{number}'
        group = f'lesion_{lesion}' if lesion else name
      examples.append(Example(name, label, group, pixels(name)))
      known = (55 + i, 'FEMALE', '2.0', 'FOREARM') if i % 3 else ('',) * 4
      rows.append(
        (patient, lesion, 'UNK', *known)
        + (6.0, label.upper(), f'{name}.png', 'True')
      )
  names = [e.id for e in examples]
  write_zip(folder / 'images' / 'imgs_part_1.zip', names[:9], 'imgs_part_1/')
  write_folder(folder / 'images' / 'imgs_part_2', names[9:30])
  write_folder(folder / 'imgs_part_3', names[30:])
  (folder / 'metadata.csv').write_text(table(PAD_COLUMNS, rows))
  return examples


PH2_LABELS = ('common_nevus', 'atypical_nevus', 'melanoma')


def ph2(folder):
  """Writes images with masks beside them, and a table with a legend."""
  examples, lines = [], []
  head = '||   Name ||   Histological Diagnosis || Clinical Diagnosis ||'
  lines.append(f'{head} Asymmetry | Pigment Network || Colors ||')
  for i in range(30):
    name, code = f'IMD{i:03d}', i % 3
    path = folder / 'PH2 Dataset images' / name
    for part, file in (
      (f'{name}_Dermoscopic_Image', name),
      (f'{name}_lesion', f'{name}_lesion'),
      (f'{name}_roi', f'{name}_R1_Label3'),
    ):
      (path / part).mkdir(parents=True)
      with Image.open(io.BytesIO(jpeg(file))) as image:
        image.save(path / part / f'{file}.bmp')
    histology = 'Melanoma' if code == 2 else ''
    lines.append(f'|| {name} || {histology:>20} ||    {code} ||  0 | T || 4 ||')
    examples.append(Example(name, PH2_LABELS[code], name, pixels(name)))
  lines += ['', 'Legends for Clinical Diagnosis:', '0 - Common Nevus;']
  (folder / 'PH2_dataset.txt').write_text('\r\n'.join(lines))
  return examples


def dermamnist_arrays(size=28):
  """Returns arrays of 14 training, 7 validation and 7 test images."""
  rng = np.random.default_rng(0)
  arrays = {}
  for split, count in (('train', 14), ('val', 7), ('test', 7)):
    arrays[f'{split}_images'] = rng.integers(
      0, 256, (count, size, size, 3), np.uint8
    )
    arrays[f'{split}_labels'] = np.arange(count, dtype=np.uint8)[:, None] % 7
  return arrays


def dermamnist(folder):
  """Writes the file with images of 28 pixels."""
  arrays = dermamnist_arrays()
  np.savez_compressed(folder / 'dermamnist.npz', **arrays)
  examples = []
  for split in ('train', 'val', 'test'):
    for i, image in enumerate(arrays[f'{split}_images']):
      name = f'{split}_{i:05d}'
      label = builder.CLASS_NAMES[i % 7]
      examples.append(Example(name, label, name, image, split))
  return examples


def check_error(dataset, folder, match):
  """Asserts that preparing fails with one line and leaves no files."""
  data_dir = folder.with_name('data')
  with pytest.raises(errors.UserError, match=match) as error:
    prepare.run(dataset, data_dir, folder)
  assert '\n' not in str(error.value)
  assert not list(data_dir.rglob('*'))
