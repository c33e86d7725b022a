"""The notebooks run from top to bottom, and are stored with their outputs."""

import pathlib

import nbclient
import nbformat
import pytest

_FOLDER = pathlib.Path(__file__).parents[2] / 'docs' / 'tutorials'
# The pictures in each one's outputs. The tour's: images, reconstructions, the
# code map, seven classes, temperatures, completions.
_NUM_PICTURES = {'tour': 12, 'class_room': 9}


def _read(name):
  return nbformat.read(_FOLDER / f'{name}.ipynb', as_version=4)


def _outputs(notebook):
  """The outputs of all cells, and how many of them are pictures."""
  outputs = [o for cell in notebook.cells for o in cell.get('outputs', ())]
  assert not [o for o in outputs if o.output_type == 'error']
  pictures = [
    o for o in outputs if {'image/png', 'image/jpeg'} & o.get('data', {}).keys()
  ]
  return outputs, len(pictures)


def _executed(name):
  """What a notebook prints when it is executed."""
  notebook = _read(name)
  nbclient.NotebookClient(
    notebook,
    timeout=300,
    kernel_name='python3',
    resources={'metadata': {'path': _FOLDER}},
  ).execute()
  outputs, num_pictures = _outputs(notebook)
  assert num_pictures == _NUM_PICTURES[name]
  return ''.join(o.text for o in outputs if o.output_type == 'stream')


@pytest.mark.parametrize('name', _NUM_PICTURES)
def test_stored_with_outputs(name):
  """They are from one run from top to bottom."""
  notebook = _read(name)
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  counts = [cell.execution_count for cell in cells]
  assert counts == list(range(1, len(cells) + 1))
  assert _outputs(notebook)[1] == _NUM_PICTURES[name]
  assert (_FOLDER / f'{name}.ipynb').stat().st_size < 1_000_000


def test_tour(smoke_run, monkeypatch):
  monkeypatch.setenv('DERMVQ_WORKDIR', str(smoke_run))
  text = _executed('tour')
  for said in ('classes: akiec', 'PSNR', 'shuffled: ', 'balanced accuracy'):
    assert said in text, text


@pytest.mark.slow
def test_class_room(monkeypatch):
  monkeypatch.setenv('DERMVQ_CLASS_SIZE', 'smoke')
  text = _executed('class_room')
  for said in ('bytes as codes', 'cured: ', 'perplexity', 'plain skin: '):
    assert said in text, text
