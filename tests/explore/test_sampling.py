"""The tab that samples."""

import pathlib
import shlex
import zipfile

import gradio as gr
import pytest
from pictures import files_in

from dermvq_jax import errors, main
from dermvq_jax.explore import inputs, requests, sampling


def test_the_command_makes_the_same_files(session, tmp_path, monkeypatch):
  request = requests.Request(
    {'mel': 2, 'nv': 2}, seed=3, numbers={'temperature': 0.8, 'top_k': 9}
  )
  shown, command, zipped = sampling.sample(session, request)
  assert [caption for _, caption in shown] == ['mel 0', 'mel 1', 'nv 0', 'nv 1']
  monkeypatch.chdir(tmp_path)
  assert main.main(shlex.split(command)[1:]) == 0
  made = pathlib.Path('SAMPLES')
  with zipfile.ZipFile(zipped) as archive:
    names = [name for name in archive.namelist() if not name.endswith('/')]
    assert sorted(names) == [f'SAMPLES/{name}' for name in files_in(made)]
    for name in names:
      assert archive.read(name) == pathlib.Path(name).read_bytes(), name
  for path, _ in shown:
    path = pathlib.Path(path)
    same = made / path.parent.name / path.name
    assert path.read_bytes() == same.read_bytes()


@pytest.mark.parametrize('choose_by', ['classifier', 'likelihood'])
def test_the_inputs_ask_for_a_choice(session, choose_by):
  with gr.Blocks():
    given = inputs.Inputs(session.model, selection=True)
  values = {c.label: c.value for c in given.components}
  assert values['choose'] == 1 and values['choose_by'] == 'classifier'
  values |= {'choose': 3, 'choose_by': choose_by}
  request = given.request(*values.values())
  assert request.arguments['choose'] == 3
  assert request.arguments['choose_by'] == choose_by
  command = request.command()
  assert '--choose=3' in command
  assert ('--choose_by' in command) == (choose_by == 'likelihood')
  with gr.Blocks():  # Other tabs have neither.
    given = inputs.Inputs(session.model)
  values = [c.value for c in given.components]
  assert given.request(*values).arguments['choose'] == 1


def test_mistakes(session):
  request = requests.Request({'mel': 1}, numbers={'top_p': 0})
  with pytest.raises(errors.UserError, match='top_p is 0'):
    sampling.sample(session, request)
