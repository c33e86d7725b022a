"""Finds the image files that a command line names."""

from collections.abc import Iterator, Sequence

from etils import epath

from dermvq_jax import errors
from dermvq_jax.data import images
from dermvq_jax.data.datasets import archives


def find(
  paths: Sequence[epath.PathLike],
  skipped: list[str],
  *,
  keep_going: bool = False,
) -> Iterator[tuple[epath.Path, bool]]:
  """Finds the given image files, and those in the given folders.

  Args:
    paths: files and folders; sub-folders are not searched.
    skipped: lines are added that say what is left out, and why.
    keep_going: whether to leave out a missing file and a folder without images.

  Yields:
    A file, and whether it was given itself, not only its folder.

  Raises:
    UserError: a file is missing or a folder has no image, unless `keep_going`.
  """
  for path in map(epath.Path, paths):
    is_folder = path.is_dir()
    try:
      if not is_folder and not path.exists():
        raise errors.MissingError(f'there is no file {path}')
      found, unread = images.list_images(path) if is_folder else ([path], [])
    except errors.UserError as e:
      if not keep_going:
        raise
      skipped.append(f'{e}; it is left out')
      continue
    for file in found:
      yield file, not is_folder
    if unread:
      skipped.append(archives.left_out(path, [file.name for file in unread]))
