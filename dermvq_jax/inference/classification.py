"""The answer of a classifier, as numbers and as a table."""

import dataclasses

import numpy as np

from dermvq_jax import errors

_MAX_ROWS = 20  # of a table; all numbers are in `log_probs`


@dataclasses.dataclass(frozen=True, repr=False)
class Classification:
  """Probabilities of the classes of images; prints as a table.

  Attributes:
    log_probs: log p(class | image), float32 `[B, C]`.
    class_names: the classes, C.
  """

  log_probs: np.ndarray
  class_names: tuple[str, ...]

  def __len__(self) -> int:
    """The number of images."""
    return len(self.log_probs)

  @property
  def probs(self) -> np.ndarray:
    """p(class | image), float32 `[B, C]`; each row sums to 1."""
    return np.exp(self.log_probs)

  @property
  def labels(self) -> list[str]:
    """The most likely class of each image, `[B]`."""
    return [self.class_names[i] for i in self.log_probs.argmax(axis=1)]

  def __repr__(self) -> str:
    """A table with a row for each image, and the classes as columns."""
    rows = [('image', 'most likely', *self.class_names)]
    shown = zip(self.labels[:_MAX_ROWS], self.probs)
    rows += [
      (str(i), label, *(f'{p:.3f}' for p in probs))
      for i, (label, probs) in enumerate(shown)
    ]
    rows = [[errors.printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ['  '.join(map(str.rjust, row, widths)) for row in rows]
    if len(self) > _MAX_ROWS:
      lines.append(f'... and {len(self) - _MAX_ROWS} more')
    return '\n'.join(lines)
