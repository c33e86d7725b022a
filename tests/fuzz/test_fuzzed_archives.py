"""Tables, zips and arrays of images that users bring."""

import csv
import io
import shutil

import fabricate
import fuzzing
import hypothesis
import pytest
from hypothesis import strategies as st

from dermvq_jax import errors
from dermvq_jax.data import conditions
from dermvq_jax.data.datasets import builder


def _read(dataset, folder):
  """Everything that `dermvq prepare` would write, or a UserError."""
  made = builder.make(dataset, folder.with_name('data'))
  return [
    (r.id, r.label, r.group, r.split, made.read_image(r).tobytes())
    for r in made.read_records(folder)
  ]


def _records(made, folder):
  """The records of a builder, whose conditions it knows, or a UserError."""
  records = made.read_records(folder)
  for r in records:
    conditions.of_record(r.id, r.conditions, made.conditions, made.name)
  return records


def _ham10000(folder):
  examples = fabricate.class_folders(folder)
  for path in folder.iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  names = [f'ISIC_{i:07d}' for i in range(len(examples))]
  fabricate.write_zip(folder / 'HAM10000_images_part_1.zip', names[::2])
  fabricate.write_zip(folder / 'HAM10000_images_part_2.zip', names[1::2])
  columns = ('lesion_id', 'image_id', 'dx', 'dx_type', 'age', 'sex')
  rows = [
    (f'HAM_{i // 2}', name, ('nv', 'mel', 'df')[i // 2 % 3], 'histo')
    + (i if i % 9 else '', ('male', 'female')[i % 2], 'back')
    for i, name in enumerate(names)
  ]
  text = fabricate.table((*columns, 'localization'), rows)
  (folder / 'HAM10000_metadata.csv').write_text(text)


# How each dataset's files are made, and those of them that are damaged.
_TABLES = {
  'image_folder': (fabricate.images_with_conditions, 'metadata.csv'),
  'ham10000': (_ham10000, 'HAM10000_metadata.csv'),
  'isic2018': (
    fabricate.isic2018,
    'ISIC2018_Task3_Training_LesionGroupings.csv',
    'ISIC2018_Task3_Validation_GroundTruth.csv',
  ),
  'isic2019': (
    fabricate.isic2019,
    'ISIC_2019_Training_GroundTruth.csv',
    'ISIC_2019_Training_Metadata.csv',
  ),
  'isic_archive': (fabricate.isic_archive, 'metadata.csv'),
  'pad_ufes_20': (fabricate.pad_ufes_20, 'metadata.csv'),
  'ph2': (fabricate.ph2, 'PH2_dataset.txt'),
}
# Further columns that are read.
_COLUMNS = {'image_folder': {'condition': 'Sex,age:10'}}
_ZIPS = {
  'image_folder': (fabricate.images_with_conditions, 'more.zip'),
  'ham10000': (_ham10000, 'HAM10000_images_part_1.zip'),
  'isic2018': (
    fabricate.isic2018,
    'ISIC2018_Task3_Test_Input.zip',
    'ISIC2018_Task3_Training_GroundTruth.zip',
  ),
  'pad_ufes_20': (fabricate.pad_ufes_20, 'images/imgs_part_1.zip'),
  'dermamnist': (fabricate.dermamnist, 'dermamnist.npz'),
}


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
  """Makes a dataset's files, and what is read from them, once."""
  made = {}

  def make(dataset, write):
    if dataset not in made:
      folder = tmp_path_factory.mktemp(dataset) / 'files'
      folder.mkdir()
      write(folder)
      size = '28' if dataset == 'dermamnist' else 'smoke'
      name = f'{dataset}/{size}'
      made[dataset] = name, folder, _read(name, folder)
    return made[dataset]

  return make


@st.composite
def _tables(draw, text):
  """A table in which some values, rows or bytes were changed."""
  rng = draw(fuzzing.dice())
  if rng.random() < 0.4:
    return fuzzing.damaged(text.encode(), rng)
  rows = list(csv.reader(io.StringIO(text)))
  for _ in range(rng.choice((1, 1, 2, 3))):
    row = rng.choice(rows)
    kind = rng.choice(('value', 'value', 'swap', 'more', 'fewer', 'double'))
    if kind == 'value' and row:
      row[rng.randrange(len(row))] = draw(fuzzing.words())
    elif kind == 'swap':
      other = rng.choice(rows)
      row[:], other[:] = other[:], row[:]
    elif kind == 'more':
      row.append(draw(fuzzing.words()))
    elif kind == 'fewer':
      del row[-1:]
    else:
      rows.append(row)
  file = io.StringIO(newline='')
  csv.writer(file, delimiter=rng.choice(',\t;')).writerows(rows)
  return file.getvalue().encode('utf-8', 'surrogatepass')


@fuzzing.inputs(few=40, share=0.25)
@hypothesis.given(data=st.data(), dataset=st.sampled_from(sorted(_TABLES)))
def test_tables(tally, archives, data, dataset):
  """What is read has the images of the folder, each once."""
  write, *names = _TABLES[dataset]
  name, folder, intact = archives(dataset, write)
  path = folder / data.draw(st.sampled_from(names))
  before = path.read_bytes()
  path.write_bytes(data.draw(_tables(before.decode())))
  try:
    made = builder.make(name, folder.with_name('data'), _COLUMNS.get(dataset))
    found = tally.call(_records, made, folder)
  finally:
    path.write_bytes(before)
  if found is not None:
    ids = [record.id for record in found]
    assert len(set(ids)) == len(ids) and ids == sorted(ids)
    assert set(ids) <= {example[0] for example in intact}
    assert all(record.label and record.group for record in found)


_VALUES = st.text('abz019 _-.é,;"\t', min_size=1, max_size=8).map(str.strip)


@st.composite
def _same_tables(draw):
  """Groups of images, and a table of them in any of the forms allowed."""
  rng = draw(fuzzing.dice())
  values = draw(st.lists(_VALUES, min_size=3, max_size=12))
  groups = {f'ISIC_{i:07d}': rng.choice(values) for i in range(30)}
  columns = ['image', 'label', 'group', 'further']
  rng.shuffle(columns)
  rows = [
    {
      'image': name + rng.choice(('', '.jpg')),
      'label': rng.choice('ab'),
      'group': group,
      'further': rng.choice(values),
    }
    for name, group in groups.items()
  ]
  rng.shuffle(rows)
  file = io.StringIO(newline='')
  delimiter = rng.choice(',\t;')
  writer = csv.DictWriter(
    file,
    columns,
    delimiter=delimiter,
    lineterminator=rng.choice(('\n', '\r\n')),
    quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
  )
  writer.writeheader()
  writer.writerows(rows)
  first = rng.choice(('', '\ufeff')) + rng.choice(('', f'sep={delimiter}\r\n'))
  return groups, first + file.getvalue()


@fuzzing.inputs(few=10, share=0.05)
@hypothesis.given(case=_same_tables())
def test_any_form_of_a_table(tally, archives, case):
  """Delimiters, quotes, line ends and orders change nothing."""
  groups, text = case
  name, folder, _ = archives('image_folder', fabricate.images_with_conditions)
  path = folder / 'metadata.csv'
  before = path.read_bytes()
  path.write_bytes(text.encode())
  try:
    made = builder.make(name, folder.with_name('data'))
    found = tally.call(made.read_records, folder)
  finally:
    path.write_bytes(before)
  assert found is not None
  unknown = {'', '-', '.'}
  assert {r.id: r.group for r in found} == {
    image: image if group in unknown else f'group_{group}'
    for image, group in groups.items()
  }


@fuzzing.inputs(few=25, share=0.2)
@hypothesis.given(rng=fuzzing.dice())
def test_zips(tally, archives, rng):
  """A damaged zip gives the same images and labels, or none."""
  dataset = rng.choice(sorted(_ZIPS))
  write, *names = _ZIPS[dataset]
  name, folder, intact = archives(dataset, write)
  path = folder / rng.choice(names)
  before = path.read_bytes()
  path.write_bytes(fuzzing.damaged(before, rng))
  try:
    found = tally.call(_read, name, folder)
  finally:
    path.write_bytes(before)
  assert found in (None, intact)


def test_a_folder_is_read_as_it_is(archives):
  """The checks above see a difference."""
  name, folder, intact = archives('ham10000', _ham10000)
  assert _read(name, folder) == intact and len(intact) == 30
  path = folder / 'HAM10000_metadata.csv'
  before = path.read_text()
  path.write_text(before.replace('HAM_3,', 'HAM_4,'))
  try:
    assert _read(name, folder) != intact
    path.write_text(before.replace('nv', 'x'))
    with pytest.raises(errors.UserError, match='unknown dx'):
      _read(name, folder)
  finally:
    path.write_text(before)
