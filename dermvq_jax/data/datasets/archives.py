"""Finds the files of a downloaded archive, zipped or not, and reads tables."""

import csv
import io
import os
import pathlib
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from dermvq_jax import errors, spelling
from dermvq_jax.data import images

# Both kinds of path have `name`, `stem`, `suffix` and `open('rb')`.
File = pathlib.Path | zipfile.Path
Row = dict[str, str]

JPEG_SUFFIXES = ('.jpg', '.jpeg')
# The largest published table has 2 MB; a much larger one would fill the memory.
MAX_TABLE_BYTES = 100_000_000
# The published images have a few MB at most; larger files are not unpacked.
_MAX_MEMBER_BYTES = 100_000_000
_ID = re.compile('[A-Za-z0-9_-]+')
_NUM_NAMED = 3
_MAX_COLUMNS_NAMED = 12
# How R, pandas, spreadsheets and people write that a value is not known.
_UNKNOWN = {
  *('na', 'n/a', '<na>', '#n/a', '#na', 'nan', '-nan', 'null', 'none'),
  *('unknown', 'unk', '?', '-', '.'),
}
# A first line by which spreadsheets are told the delimiter.
_DELIMITER_LINE = re.compile(r'"?sep=([;,\t])"?\r?\n', re.IGNORECASE)
_DELIMITERS = '\t;,'


def list_files(
  folder: pathlib.Path, suffixes: Sequence[str], ignored: Sequence[str] = ()
) -> Iterator[File]:
  """Yields the files in a folder and its zips that have one of `suffixes`.

  Args:
    folder: the folder, which is searched with all its sub-folders.
    suffixes: the suffixes, in lower case.
    ignored: files and folders are left out if their name starts with one of
      these, in lower case.

  Yields:
    Files in alphabetical order, unpacked ones before those in zips.

  Raises:
    UserError: a zip is damaged or has unsafe member names, or the name of a
      file is not UTF-8.
  """
  files = list(_walk(folder, ignored))
  wanted = [path for path in files if path.suffix.lower() in suffixes]
  images.check_names(wanted)
  yield from wanted
  for path in files:
    if path.suffix.lower() == '.zip':
      yield from _zip_members(path, suffixes, ignored)


def by_stem(files: Iterable[File]) -> dict[str, File]:
  """Returns name without suffix -> file; the first of several is used."""
  found: dict[str, File] = {}
  for file in files:
    found.setdefault(normal(file.stem), file)
  return found


def find_part(
  folder: pathlib.Path, name: str, suffixes: Sequence[str], source: str
) -> dict[str, File]:
  """Returns name without suffix -> file, for one part of an archive.

  Args:
    folder: the archive.
    name: the part is the folder `name` or, if there is none, `name`.zip.
    suffixes: the suffixes of the files, in lower case.
    source: where to download the part.

  Raises:
    UserError: there is no such part, or the zip is damaged or unsafe.
  """
  path = folder / name
  if path.is_dir():
    return by_stem(list_files(path, suffixes))
  path = folder / f'{name}.zip'
  if path.is_file():
    return by_stem(_zip_members(path, suffixes))
  raise errors.UserError(
    f'{folder} has no {name}.zip and no folder {name}; download it from '
    f'{source} into that folder'
  )


def find_table(folder: pathlib.Path, name: str, source: str) -> File:
  """Returns the file `name`.csv, from the folder or from its part `name`.

  Raises:
    UserError: there is no such file, or the zip is damaged or unsafe.
  """
  path = folder / f'{name}.csv'
  if path.is_file():
    return path
  if (folder / name).is_dir() or (folder / f'{name}.zip').is_file():
    tables = find_part(folder, name, ('.csv',), source)
    if name in tables:
      return tables[name]
  raise errors.UserError(
    f'{folder} has no {name}.csv; download it (or {name}.zip) from {source} '
    'into that folder'
  )


def _walk(
  folder: pathlib.Path,
  ignored: Sequence[str],
  above: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[pathlib.Path]:
  """Yields the files in a folder and its sub-folders, in a fixed order.

  Args:
    folder: the folder.
    ignored: see `list_files`.
    above: the device and the number of each folder that this one is in; a link
      to one of them is not followed.
  """
  status = folder.stat()
  here = status.st_dev, status.st_ino
  if here in above:
    return
  with os.scandir(folder) as found:
    entries = sorted(found, key=lambda entry: entry.name)
  for entry in entries:
    if _is_other(entry.name, ignored):
      continue
    if entry.is_dir():
      yield from _walk(folder / entry.name, ignored, above | {here})
    else:
      yield folder / entry.name


def _is_other(name: str, ignored: Sequence[str]) -> bool:
  """Returns whether a name is hidden, an operating system's, or ignored."""
  return images.is_junk(name) or name.lower().startswith(tuple(ignored))


def _zip_members(
  path: pathlib.Path, suffixes: Sequence[str], ignored: Sequence[str] = ()
) -> Iterator[zipfile.Path]:
  try:
    archive = zipfile.ZipFile(path)
  except images.DAMAGES as e:
    raise errors.UserError(
      f'{path} is not an intact zip file ({errors.one_line(e)}); download it '
      'again'
    ) from None
  for info in archive.infolist():
    name = info.filename
    # Windows' rules are the strictest: they know drives and both slashes.
    member = pathlib.PureWindowsPath(name)
    if member.drive or member.root or '..' in member.parts:
      raise errors.UserError(
        f'{path} has the member {name!r}, which would be unpacked outside of '
        'the folder; this is not the published archive, download it again'
      )
    if member.suffix.lower() in suffixes and not any(
      _is_other(part, ignored) for part in member.parts
    ):
      if info.file_size > _MAX_MEMBER_BYTES:
        raise errors.UserError(
          f'{path} has the member {name!r}, which unpacks to '
          f'{info.file_size:,} bytes; this is not the published archive, '
          'download it again'
        )
      yield zipfile.Path(archive, name)


def read_table(
  file: File,
  key: str | None,
  columns: Sequence[str],
  check: Callable[[str, Row], None],
  *,
  optional: Sequence[str] = (),
  may_be_unknown: Sequence[str] = (),
  advice: str = 'use the published file',
  renamed: Mapping[str, str] | None = None,
) -> dict[str, Row]:
  """Returns image -> the columns of its row, without surrounding spaces.

  Args:
    file: text with a header, separated by commas, tabs or semicolons, quoted
      or not; the line `sep=;` may come first. Names of columns may differ in
      capitals.
    key: the column with the name of the image; None if rows have no name. They
      then go by their place.
    columns: the columns that the table must have; others are left out.
    check: a function of the place of a row, as text, and of the row; it raises
      UserError if the row is wrong.
    optional: columns that the table may have; they are blank otherwise.
    may_be_unknown: columns in which words like NA, nan and unknown mean that
      the value is not known; it is then blank.
    advice: what to do if the table lacks `columns`.
    renamed: the names that columns have in the table, by those above; such
      columns must be there. Other columns have the same name there.

  Raises:
    UserError: it is not such a file, or a row can't be used.
  """
  lines = _read_lines(file)
  where, header = next(lines, ('', []))
  table_names = {c: c for c in (*columns, *optional)} | dict(renamed or {})
  names = _our_names([name.strip() for name in header], table_names)
  needed = [c for c in table_names if c in columns or c in (renamed or {})]
  missing = [table_names[c] for c in needed if c not in names]
  if missing:
    there = ', '.join(header[:_MAX_COLUMNS_NAMED]) or 'nothing'
    raise errors.UserError(
      f'{file} lacks the columns {", ".join(missing)}; {advice} (its first '
      f'line has {there}){spelling.did_you_mean(missing[0], header)}'
    )
  doubled = sorted({name for name in names if name and names.count(name) > 1})
  if doubled:
    raise errors.UserError(
      f'{where}: the column {doubled[0]} is there twice; remove or rename one'
    )
  rows = {}
  for where, fields in lines:
    if len(fields) > len(names):
      raise errors.UserError(
        f'{where}: there are {len(fields)} values for {len(names)} columns; '
        'put a value that contains the delimiter into quotes'
      )
    raw = {name: field.strip() for name, field in zip(names, fields)}
    row = {c: raw.get(c, '') for c in (*columns, *optional)}
    unknown = [c for c in may_be_unknown if row[c].lower() in _UNKNOWN]
    row |= dict.fromkeys(unknown, '')
    check(where, row)
    name = where if key is None else row[key]
    if name in rows:
      raise errors.UserError(
        f'{where}: {key} {name} is there twice; keep one row per image'
      )
    rows[name] = row
  if not rows:
    raise errors.UserError(f'{file} holds no rows; download it again')
  return rows


def _our_names(
  header: Sequence[str], table_names: Mapping[str, str]
) -> list[str]:
  """Returns what this package calls the columns of a table.

  Args:
    header: the names in the table.
    table_names: the names that our columns have there, in any capitals.

  Returns:
    For each column our name, or its own if we have none. A column is '' if it
    has a name of ours but stands for something else.
  """
  ours = {normal(there): c for c, there in table_names.items()}
  # A column in the right capitals comes before others.
  folded = {
    there.casefold(): c for there, c in ours.items() if there not in header
  }

  def our_name(name: str) -> str:
    own = '' if name in table_names else name
    return ours.get(name, folded.get(name.casefold(), own))

  return [our_name(name) for name in header]


def _read_lines(file: File) -> Iterator[tuple[str, list[str]]]:
  """Yields the place, as text, and the values of each line; not of blank ones.

  Raises:
    UserError: it is not such a file.
  """
  text = _read_text(file)
  told = _DELIMITER_LINE.match(text)
  if told:
    text = text[told.end() :]
  header = text.partition('\n')[0]
  reader = csv.reader(
    io.StringIO(text, newline=''),
    delimiter=told[1] if told else max(_DELIMITERS, key=header.count),
    strict=True,
  )

  def where() -> str:
    return f'{file}, line {reader.line_num + bool(told)}'

  try:
    for values in reader:
      if values:
        yield where(), values
  except csv.Error as e:
    raise errors.UserError(
      f'{where()}: {e}; save or download it again'
    ) from None


def _read_text(file: File) -> str:
  try:
    with file.open('rb') as f:
      data = f.read(MAX_TABLE_BYTES + 1)
  except images.DAMAGES as e:
    raise errors.UserError(
      f'{file} is unreadable ({errors.one_line(e)}); download it again'
    ) from None
  if len(data) > MAX_TABLE_BYTES:
    raise errors.UserError(
      f'{file} has more than {MAX_TABLE_BYTES:,} bytes; this is not the '
      'published table, download it again'
    )
  try:
    return normal(data.decode('utf-8-sig'))
  except UnicodeDecodeError:
    raise errors.UserError(
      f'{file} is not text in UTF-8; save or download it again'
    ) from None


def normal(text: str) -> str:
  """Returns text with each accented letter as one character (NFC).

  Macs write such a letter in names of files as two.
  """
  return unicodedata.normalize('NFC', text)


def check_id(where: str, column: str, value: str) -> None:
  """Raises UserError unless `value` can be the name of an image."""
  if not _ID.fullmatch(value):
    raise errors.UserError(
      f'{where}: {column} {value!r} is not made of letters, digits, _ and - '
      'only; fix the row'
    )


def check_complete(
  where: pathlib.Path,
  rows: Iterable[str],
  images: Mapping[str, File],
  images_name: str,
  table_name: str,
) -> None:
  """Raises UserError unless every row has an image and every image a row.

  Args:
    where: the folder.
    rows: names of the images in the table.
    images: the images that were found, by name.
    images_name: what to download to get the images, and where.
    table_name: the name of the table.
  """
  if not images:
    raise errors.UserError(
      f'{where} has a table but no images; download {images_name} into it'
    )
  without_image = sorted(set(rows) - set(images))
  without_row = sorted(set(images) - set(rows))
  problems, advice = [], []
  if without_image:
    problems.append(
      f'{count(without_image, "metadata row")} without an image '
      f'({name_some(without_image)})'
    )
    advice.append(f'add the images (of {images_name}) or remove the rows')
  if without_row:
    problems.append(
      f'{count(without_row, "image")} without metadata '
      f'({name_some(without_row)})'
    )
    advice.append(f'use the complete {table_name} file or remove the images')
  if problems:
    raise errors.UserError(
      f'{where}: {" and ".join(problems)}; {"; ".join(advice)}'
    )


def count(items: Sequence[str], noun: str) -> str:
  """Returns '1 image' or '2 images'."""
  return f'{len(items)} {noun}{"" if len(items) == 1 else "s"}'


def left_out(folder: File, others: Sequence[str]) -> str:
  """Says that some images in a folder are not read, by their names."""
  named = errors.printable(name_some(others))
  advice = 'convert them to use them'
  if any(name.lower().endswith('.dcm') for name in others):
    advice += ', or pip install pydicom for .dcm'
  return (
    f'{folder}: {count(others, "image")} left out, as they are not '
    f'{images.KINDS} ({named}); {advice}'
  )


def name_some(names: Sequence[str]) -> str:
  """Returns the first few names, and '...' if there are more."""
  more = ', ...' if len(names) > _NUM_NAMED else ''
  return ', '.join(names[:_NUM_NAMED]) + more
