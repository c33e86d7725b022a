"""What HAM10000 and the ISIC challenges share: lesions and file formats.

The challenges contain HAM10000's images, under the same image ids.
"""

import pathlib
from collections.abc import Collection, Mapping, Sequence

from dermvq_jax import errors
from dermvq_jax.data import splits
from dermvq_jax.data.datasets import archives

# Pairs of images that show the same lesion but have two lesion ids: Abhishek et
# al., Sci Data 12:196, 2025, newly_discovered_duplicates.csv.
DUPLICATE_IMAGES = (
  ('ISIC_0033481', 'ISIC_0033421'),
  ('ISIC_0033556', 'ISIC_0032634'),
  ('ISIC_0029152', 'ISIC_0033173'),
  ('ISIC_0029036', 'ISIC_0027027'),
  ('ISIC_0027820', 'ISIC_0028209'),
  ('ISIC_0027689', 'ISIC_0032647'),
  ('ISIC_0030906', 'ISIC_0024879'),
  ('ISIC_0033391', 'ISIC_0034186'),
  ('ISIC_0025226', 'ISIC_0030074'),
  ('ISIC_0026087', 'ISIC_0025664'),
  ('ISIC_0024736', 'ISIC_0029748'),
  ('ISIC_0024770', 'ISIC_0027811'),
  ('ISIC_0027162', 'ISIC_0029061'),
  ('ISIC_0024602', 'ISIC_0032283'),
  ('ISIC_0029625', 'ISIC_0024629'),
  ('ISIC_0030000', 'ISIC_0031392'),
  ('ISIC_0024437', 'ISIC_0031299'),
  ('ISIC_0033374', 'ISIC_0033417'),
)


def group_lesions(lesions: Mapping[str, str]) -> dict[str, str]:
  """Returns image id -> group: its lesion, joined with known duplicates.

  Args:
    lesions: image id -> lesion id.
  """
  pairs = [
    (lesions[a], lesions[b])
    for a, b in DUPLICATE_IMAGES
    if a in lesions and b in lesions
  ]
  joined = splits.join_groups(list(lesions.values()), pairs)
  return {image_id: joined[lesion] for image_id, lesion in lesions.items()}


def read_labels(
  folder: pathlib.Path, name: str, columns: Sequence[str], source: str
) -> dict[str, str]:
  """Returns image id -> class, in lower case, from the table `name`.

  Args:
    folder: the archive.
    name: a table with the column image and a column for each class, which is
      1.0 for the images of the class.
    columns: the names of the classes.
    source: where to download the table.

  Raises:
    UserError: there is no such table, or an image does not have one class.
  """
  labels = {}

  def check(where: str, row: archives.Row) -> None:
    archives.check_id(where, 'image', row['image'])
    values = [row[c] for c in columns]
    try:
      numbers = [float(value) for value in values]
    except ValueError:
      numbers = []
    if sorted(numbers) != [0] * (len(columns) - 1) + [1]:
      raise errors.UserError(
        f'{where}: {row["image"]} has {", ".join(values)} for '
        f'{", ".join(columns)}; it must have 1 once and 0 otherwise, fix the '
        'row'
      )
    labels[row['image']] = columns[numbers.index(1)].lower()

  table = archives.find_table(folder, name, source)
  archives.read_table(table, 'image', ('image', *columns), check)
  return labels


def read_groups(
  folder: pathlib.Path,
  name: str,
  image_ids: Collection[str],
  source: str,
  *,
  may_be_blank: bool = False,
) -> dict[str, str]:
  """Returns image id -> group, from the lesions in the table `name`.

  Args:
    folder: the archive.
    name: a table with the columns image and lesion_id.
    image_ids: all images; the table may have others.
    source: where to download the table.
    may_be_blank: whether lesion_id may be blank. The image is then its own
      group.

  Raises:
    UserError: there is no such table, or it lacks an image or a lesion.
  """

  def check(where: str, row: archives.Row) -> None:
    archives.check_id(where, 'image', row['image'])
    if row['lesion_id'] or not may_be_blank:
      archives.check_id(where, 'lesion_id', row['lesion_id'])

  table = archives.find_table(folder, name, source)
  rows = archives.read_table(
    table,
    'image',
    ('image', 'lesion_id'),
    check,
    may_be_unknown=('lesion_id',),
  )
  missing = sorted(set(image_ids) - set(rows))
  if missing:
    raise errors.UserError(
      f'{table} lacks {archives.count(missing, "image")} '
      f'({archives.name_some(missing)}); download it again from {source}'
    )
  return group_lesions(
    {image: rows[image]['lesion_id'] or image for image in image_ids}
  )


def find_images(
  folder: pathlib.Path,
  name: str,
  image_ids: Collection[str],
  table_name: str,
  source: str,
) -> dict[str, archives.File]:
  """Returns image id -> file, from the folder or zip `name`.

  Args:
    folder: the archive.
    name: the folder or zip, without .zip.
    image_ids: the images that it must have, and no others.
    table_name: the table that lists these images, for error messages.
    source: where to download the part.

  Raises:
    UserError: there is no such folder or zip, or it has too few or too many
      images.
  """
  files = archives.find_part(folder, name, archives.JPEG_SUFFIXES, source)
  archives.check_complete(
    folder, image_ids, files, f'{name}.zip from {source}', table_name
  )
  return files
