"""Reads image files with Apache Beam, which can run on several machines.

The machines share the folders of the images and of the prepared data. They
read a list of images from a file there, and write another one of the files that
cannot be used: a pipeline description must not grow with the number of images.
Apache Beam has pins of its own: requirements/beam.txt.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from dermvq_jax import errors
from dermvq_jax.data import reading

_MAX_REASON = 200  # characters


def options(text: str) -> Any:
  """Makes Beam's `PipelineOptions` from 'runner=NAME,OPTION=VALUE,...'.

  Raises:
    UserError: Beam is not installed, or has no such runner.
  """
  try:
    from apache_beam import runners
    from apache_beam.options import pipeline_options
  except ModuleNotFoundError as e:
    raise errors.UserError(
      f'--beam_options needs the package {e.name}, which is not installed; it '
      'has an environment of its own: pip install -r requirements/beam.txt'
    ) from e
  made = pipeline_options.PipelineOptions(
    [f'--{option.strip()}' for option in text.split(',') if option.strip()]
  )
  name = made.view_as(pipeline_options.StandardOptions).runner
  try:
    runners.create_runner(name or 'DirectRunner')
  except (ValueError, ImportError) as e:
    raise errors.UserError(
      f'--beam_options: {errors.one_line(e)}; give runner=NAME,OPTION=VALUE,...'
    ) from e
  return made


class Split:
  """The image files of a split, which TFDS lets Beam read."""

  def __init__(self, folder: os.PathLike, name: str):
    """Names the lists of a split.

    Args:
      folder: a folder that all machines can read and write.
      name: the name of the split.
    """
    self._listing = pathlib.Path(folder, f'beam_{name}.jsonl')
    self._unreadable = pathlib.Path(folder, f'beam_{name}_unreadable.json')

  def examples(
    self, images: Iterable[tuple[reading.File, Mapping[str, Any]]], size: int
  ) -> Any:
    """Returns a `beam.PTransform` with the keys and examples for TFDS.

    Args:
      images: for each image its file and what is stored beside its pixels: JSON
        values and NumPy's numbers. `id` is the key.
      size: the side of the stored images in pixels.
    """
    import apache_beam as beam

    with self._listing.open('w') as file:
      for image, fields in images:
        line = {'place': reading.place(image), 'fields': fields}
        file.write(json.dumps(line, default=float) + '\n')
    # The functions below are sent to other machines, `self` is not.
    unreadable = str(self._unreadable)

    def read(line: str):
      asked = json.loads(line)
      fields = asked['fields']
      square = reading.read_here(reading.at(asked['place']), size)
      if isinstance(square, reading.Square):
        yield fields['id'], {'image': square.png, **fields}
      else:
        yield beam.pvalue.TaggedOutput(
          'unreadable', (fields['id'], str(square))
        )

    def note(messages: list[tuple[str, str]]):
      pathlib.Path(unreadable).write_text(json.dumps(sorted(messages)))

    def expand(pipeline):
      results = (
        pipeline
        | beam.io.ReadFromText(str(self._listing))
        | beam.Reshuffle()
        | beam.FlatMap(read).with_outputs('unreadable', main='examples')
      )
      messages = results.unreadable | beam.combiners.ToList()
      _ = messages | 'Note' >> beam.Map(note)
      return results.examples

    return beam.ptransform_fn(expand)()

  def close(self) -> list[str]:
    """Removes the lists; returns for each file that cannot be used why."""
    messages = []
    if self._unreadable.exists():
      messages = json.loads(self._unreadable.read_text())
    for file in (self._listing, self._unreadable):
      file.unlink(missing_ok=True)
    return [message for _, message in messages]


def failure(error: Exception) -> errors.UserError:
  """Returns what to say of an error of the pipeline."""
  # The last line of a traceback, which comes from another process as a text.
  lines = [line for line in str(error).splitlines() if line.strip()]
  reason = errors.one_line(lines[-1] if lines else repr(error))[:_MAX_REASON]
  return errors.UserError(
    f'Apache Beam failed ({reason}); check --beam_options, and that all its '
    'machines have this package and can reach --manual_dir and --data_dir'
  )
