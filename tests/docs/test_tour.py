"""The notebook runs from top to bottom, and is stored with its outputs."""

import pathlib

import nbclient
import nbformat
import pytest

_PATH = pathlib.Path(__file__).parents[2] / 'docs' / 'tutorials' / 'tour.ipynb'


def _is_picture(output):
  return bool({'image/png', 'image/jpeg'} & output.get('data', {}).keys())


@pytest.fixture
def notebook():
  return nbformat.read(_PATH, as_version=4)


def test_it_is_stored_with_its_outputs(notebook):
  """They are from one run from top to bottom, on the demo."""
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  counts = [cell.execution_count for cell in cells]
  assert counts == list(range(1, len(cells) + 1))
  pictures = 0
  for output in (o for cell in cells for o in cell.outputs):
    assert output.output_type != 'error'
    pictures += _is_picture(output)
  assert pictures == 12
  assert _PATH.stat().st_size < 1_000_000


def test_it_runs(notebook, smoke_run, monkeypatch):
  monkeypatch.setenv('DERMVQ_WORKDIR', str(smoke_run))
  nbclient.NotebookClient(
    notebook,
    timeout=300,
    kernel_name='python3',
    resources={'metadata': {'path': _PATH.parent}},
  ).execute()
  outputs = [o for cell in notebook.cells for o in cell.get('outputs', ())]
  assert not [o for o in outputs if o.output_type == 'error']
  pictures = [o for o in outputs if _is_picture(o)]
  # Images, reconstructions, the code map, seven classes, temperatures,
  # completions.
  assert len(pictures) == 12
  text = ''.join(o.text for o in outputs if o.output_type == 'stream')
  for said in ('classes: akiec', 'PSNR', 'shuffled: ', 'balanced accuracy'):
    assert said in text, text
