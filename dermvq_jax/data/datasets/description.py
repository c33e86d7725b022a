"""How TFDS describes datasets of images, and those of their codes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from dermvq_jax import files


class LocalInfo(tfds.core.DatasetInfo):
  """The description of a dataset that TFDS does not publish."""

  def initialize_from_bucket(self) -> None:
    """Does not search online; TFDS would leave a folder in /tmp each time."""

  def write_to_directory(
    self, dataset_info_dir: epath.PathLike, all_metadata: bool = True
  ) -> None:
    """Writes the last files of a dataset, whose folder has no name yet.

    The whole folder is on the disk before TFDS gives it its name.
    """
    super().write_to_directory(dataset_info_dir, all_metadata)
    files.sync_tree(dataset_info_dir)


def shared_features(
  class_names: Sequence[str] | None, conditions: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
  """The TFDS features that images and their codes have in common.

  Args:
    class_names: names of the labels; None if they are set later.
    conditions: names of the values of each further condition, by its name. A
      value is stored as its number; the number of values is the null value,
      which means that the value is not known.
  """
  # As keyword arguments: a condition with the name of another field is an
  # error.
  return dict(
    label=tfds.features.ClassLabel(names=class_names),
    id=tfds.features.Text(),
    group=tfds.features.Text(),
    **{name: tfds.features.Scalar(np.int32) for name in conditions},
  )
