"""Which images are left out, by their ids or files."""

import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any


def finder(names: Sequence[str]) -> Callable[[str, Any], bool]:
  """Returns a function that finds the images with these names.

  Args:
    names: ids and paths of images.

  Returns:
    Takes the id of an image and its source, which may be a file. Returns
    whether the image has one of the names.
  """
  wanted = {*names, *map(os.path.realpath, names)}

  def is_named(image_id: str, source: Any) -> bool:
    own = {image_id}
    if isinstance(source, pathlib.Path | zipfile.Path):
      own |= {str(source), os.path.realpath(str(source))}
    return not wanted.isdisjoint(own)

  return is_named
