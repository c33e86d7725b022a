"""The runs that a page shows, and the folder for its files."""

import pathlib
import tempfile
from collections.abc import Sequence

from dermvq_jax import errors, inference
from dermvq_jax.runs import run as run_lib


class Session:
  """The runs that a page shows.

  Attributes:
    models: the run, and the one beside it if there is one.
    names: the folder of each, as it was given.
    folder: for files that the page shows; whoever makes the session removes it.
  """

  def __init__(self, runs: Sequence[tuple[str, str]], folder: pathlib.Path):
    """Loads the weights.

    Args:
      runs: folder of each run, and the folder of its prepared datasets or ''.
      folder: an empty folder.

    Raises:
      UserError: a run has no trained VQ-VAE.
    """
    self.names = [workdir for workdir, _ in runs]
    self.models = [inference.Model(run_lib.find(*run)) for run in runs]
    self.folder = folder
    self._data_dirs = [data_dir for _, data_dir in runs]

  @property
  def model(self) -> inference.Model:
    """The first run."""
    return self.models[0]

  def why_no_prior(self, index: int = 0) -> str:
    """Says why a run cannot sample; '' if it can."""
    try:
      self.models[index].check_prior()
    except errors.UserError as e:
      return str(e)
    return ''

  def why_no_data(self, index: int = 0) -> str:
    """Says why the prepared images of a run cannot be read; '' if they can."""
    try:
      self.models[index].run.images.split('val')
    except errors.UserError as e:
      return str(e)
    return ''

  def flags(self, out: str) -> list[str]:
    """The first flags of a command that uses the run."""
    data_dir = self._data_dirs[0]
    return [
      f'--workdir={self.names[0]}',
      f'--out={out}',
      *([f'--data_dir={data_dir}'] if data_dir else []),
    ]

  def new_folder(self) -> pathlib.Path:
    """Makes a folder for files that the page shows."""
    return pathlib.Path(tempfile.mkdtemp(dir=self.folder))
