"""Finds the image files that a command line names."""

from collections.abc import Callable, Iterator, Sequence

from etils import epath

from dermvq_jax import errors
from dermvq_jax.data import images


def find(
  paths: Sequence[epath.PathLike],
  report: Callable[[errors.UserError], None],
) -> Iterator[tuple[epath.Path, bool]]:
  """Finds the given image files, and those in the given folders.

  Args:
    paths: files and folders; sub-folders are not searched.
    report: is called if a file is missing, or a folder has no image. If it
      returns, the search goes on.

  Yields:
    A file, and whether it was given itself, not only its folder.
  """
  for path in map(epath.Path, paths):
    is_folder = path.is_dir()
    try:
      if not is_folder and not path.exists():
        raise errors.UserError(f'there is no file {path}')
      found = images.list_images(path) if is_folder else [path]
    except errors.UserError as e:
      report(e)
      continue
    for file in found:
      yield file, not is_folder
