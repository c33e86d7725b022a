"""Tests of `dermvq export`, and of the commands that use an export."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import dermvq_jax
from dermvq_jax import errors, main
from dermvq_jax.evaluation import evaluate
from dermvq_jax.generation import samples
from dermvq_jax.outliers import reference
from dermvq_jax.reporting import export
from dermvq_jax.runs import run as run_lib


def test_what_is_exported(exported_run):
  found = {
    str(path.relative_to(exported_run))
    for path in exported_run.rglob('*')
    if path.is_file() and path.parent.parent.name != 'samples'
  }
  expected = {'README.md', 'samples/metadata.csv', 'samples/sheet.png'}
  expected |= {'report/evaluate_val.json', 'samples/samples.json'}
  for phase in ('vqvae', 'prior', 'classifier'):
    expected |= {f'{phase}/config.json', f'{phase}/weights.safetensors'}
  assert found == expected
  pictures = sorted((exported_run / 'samples').glob('*/*.png'))
  assert len(pictures) == 4 * 7
  with Image.open(pictures[0]) as picture:
    assert picture.text['Synthetic'] == 'true'


def test_no_path_and_no_command_is_exported(exported_run, smoke_run):
  for phase in ('vqvae', 'prior', 'classifier'):
    made_by = [
      json.loads((folder / phase / 'config.json').read_text())['made_by']
      for folder in (smoke_run, exported_run)
    ]
    assert made_by[0]['command'] and not made_by[1].get('command')
  for path in exported_run.rglob('*'):
    if path.is_file():
      content = path.read_bytes()
      assert str(smoke_run.parent).encode() not in content, path
  found = evaluate.current_result(run_lib.Run(exported_run))
  assert found.made_by.command == ''


def test_the_card(exported_run):
  text = (exported_run / 'README.md').read_text()
  _, head, body = text.split('---\n', 2)
  head = yaml.safe_load(head)
  assert head['library_name'] == 'dermvq_jax'
  assert head['datasets'] == ['synthetic_dermoscopy']
  assert head['license'] == 'apache-2.0' and 'KID' in head['metrics']
  assert 'not-for-diagnosis' in head['tags']
  for said in (
    'samples/sheet.png',
    '## What was measured',
    'Are samples copies of training images?',
    'Not measured',
    'Trained on 114 images',
  ):
    assert said in body
  assert 'Nobody has searched' not in body
  for line in body.splitlines():
    if line.startswith('| '):
      assert line.count(' | ') == line.rstrip(' |').count(' | ')


def test_names_are_inert_in_the_card(run_copy):
  """Names of classes come from a folder of images."""
  wild = '[x](http://y)|<b>`\n# t'
  for phase in ('vqvae', 'prior', 'classifier'):
    file = run_copy / phase / 'config.json'
    file.write_text(file.read_text().replace('"mel"', json.dumps(wild)))
  run = run_lib.Run(run_copy)
  model = dermvq_jax.load(run_copy)
  from dermvq_jax.reporting import model_card

  text = model_card.render(run, model, [], model.class_names)
  shown = r'\[x\](http://y)\|\<b\>\`\\n\# t'
  assert f'bkl, df, {shown}, nv' in text and '\n# t' not in text
  assert 'Nobody has searched the samples' in text
  assert 'Nothing.' in text


def make(run_copy, command, *words):
  return main.main([command, f'--workdir={run_copy}', *words])


def test_a_run_without_a_search_for_copies_is_refused(
  run_copy, tmp_path, capsys
):
  out = tmp_path / 'out'
  shutil.rmtree(run_copy / 'report')
  assert make(run_copy, 'export', f'--out={out}') == 2
  [line] = capsys.readouterr().err.splitlines()
  assert f'dermvq evaluate --workdir={run_copy} first' in line
  assert '--without_search' in line and not out.exists()


def test_without_a_search_for_copies(run_copy, tmp_path):
  """With the flag it is exported, and the card says so."""
  shutil.rmtree(run_copy / 'report')
  shutil.rmtree(run_copy / 'data')
  out = tmp_path / 'out'
  assert make(run_copy, 'export', f'--out={out}', '--without_search') == 0
  card = (out / 'README.md').read_text()
  assert 'Nobody has searched the samples' in card and 'Nothing.' in card


def test_a_search_of_other_weights_does_not_count(run_copy, tmp_path):
  path = evaluate.result_path(run_lib.Run(run_copy), 'val')
  found = json.loads(path.read_text())
  found['weights']['prior'] = '3-0'
  path.write_text(json.dumps(found))
  with pytest.raises(errors.UserError, match='no evaluation has searched'):
    export.export(run_lib.Run(run_copy), tmp_path / 'out')


def test_copies_are_told(run_copy, tmp_path, caplog):
  path = evaluate.result_path(run_lib.Run(run_copy), 'val')
  found = json.loads(path.read_text())
  found['memorisation']['spaces']['pixels']['num_copied'] = 3
  path.write_text(json.dumps(found))
  export.export(run_lib.Run(run_copy), tmp_path / 'out')
  assert 'By pixels, 3 of 13 samples look like copies' in caplog.text


def test_a_vqvae_alone(run_copy, tmp_path):
  """It makes no samples that could be copies."""
  for part in ('prior', 'classifier', 'report', 'data'):
    shutil.rmtree(run_copy / part)
  export.export(run_lib.Run(run_copy), tmp_path / 'out')
  names = {path.name for path in (tmp_path / 'out').iterdir()}
  assert names == {'README.md', 'report', 'vqvae'}
  model = dermvq_jax.load(tmp_path / 'out')
  codes = np.arange(16, dtype=np.int32).reshape(1, 4, 4)
  made, expected = (m.decode(codes) for m in (model, dermvq_jax.load(run_copy)))
  np.testing.assert_array_equal(made, expected)
  assert 'no prior' in (tmp_path / 'out' / 'README.md').read_text()


def test_nothing_is_left_of_an_export_that_fails(
  smoke_run, tmp_path, monkeypatch
):
  def fail(*args, **kwargs):
    raise errors.UserError('failed')

  monkeypatch.setattr(samples, 'sample', fail)
  with pytest.raises(errors.UserError, match='failed'):
    export.export(run_lib.Run(smoke_run), tmp_path / 'out')
  assert not list(tmp_path.iterdir())


def test_an_existing_folder_stays(smoke_run, tmp_path):
  with pytest.raises(errors.UserError, match='exists already'):
    export.export(run_lib.Run(smoke_run), tmp_path)
  assert not list(tmp_path.iterdir())


def test_sampling_from_an_export(exported_run, smoke_run, tmp_path):
  for name, workdir in (('a', exported_run), ('b', smoke_run)):
    words = ['--counts=mel=2', '--seed=1', f'--out={tmp_path / name}']
    assert make(workdir, 'sample', *words) == 0
  names = sorted(p.relative_to(tmp_path / 'a') for p in tmp_path.glob('a/*/*'))
  assert len(names) == 2
  for name in names:
    first, second = (tmp_path / folder / name for folder in 'ab')
    assert first.read_bytes() == second.read_bytes()


def test_classes_without_training_images(exported_run, tmp_path, capsys):
  """An export has no data that could be looked at."""
  copy = shutil.copytree(exported_run, tmp_path / 'copy')
  words = ['--counts=mel=1,nv=1', f'--out={tmp_path / "out"}']
  assert make(copy, 'sample', *words) == 0
  assert 'Not checked' not in ''.join(capsys.readouterr())
  path = copy / 'vqvae' / 'config.json'
  content = json.loads(path.read_text())
  content['facts']['untrained_classes'] = ['mel']
  path.write_text(json.dumps(content))
  words[-1] = f'--out={tmp_path / "other"}'
  assert make(copy, 'sample', *words) == 2
  assert 'leave it out: --counts=nv=1' in capsys.readouterr().err


def test_reconstructing_by_an_export(exported_run, smoke_run, tmp_path):
  """The data may be elsewhere."""
  words = ['--split=val', f'--data_dir={smoke_run}/data', '--through_prior']
  out = f'--out={tmp_path / "out"}'
  assert make(exported_run, 'reconstruct', *words, out) == 0
  assert len(list((tmp_path / 'out').glob('*'))) > 13


def test_checking_an_export(exported_run, tmp_path, capsys):
  assert make(exported_run, 'check') == 0
  lines = capsys.readouterr().out.splitlines()
  assert 'prior/weights.safetensors: ok' in lines
  assert lines[-1] == 'No damage found.' and len(lines) == 8
  copy = shutil.copytree(exported_run, tmp_path / 'copy')
  weights = copy / 'prior' / 'weights.safetensors'
  weights.write_bytes(weights.read_bytes()[:-5])
  assert make(copy, 'check') == 1
  assert 'prior/weights.safetensors: DAMAGED' in capsys.readouterr().out


def test_training_in_an_export(exported_run, capsys):
  code = main.main(
    ['train', '--config=prior:smoke', f'--workdir={exported_run}']
  )
  assert code == 2
  assert 'is an export, which cannot be trained on' in capsys.readouterr().err


def test_scores_need_no_names_of_lesions(calibrated_run, tmp_path):
  """What a run knows of its images goes with it, with numbers for groups."""
  run = run_lib.Run(calibrated_run)
  (tmp_path / 'report').mkdir()
  copy = run_lib.Run(shutil.copytree(calibrated_run, tmp_path / 'run'))
  shutil.rmtree(copy.report_dir)
  copy.report_dir.mkdir()
  reference.copy(run, copy)
  names = np.load(reference.path(run))['groups']
  numbers = np.load(reference.path(copy))['groups']
  assert not set(names) & set(numbers)
  model = dermvq_jax.load(calibrated_run)
  first, second = (reference.load(r, model) for r in (run, copy))
  np.testing.assert_array_equal(first.weights, second.weights)
  np.testing.assert_array_equal(first.values, second.values)


@pytest.mark.slow
def test_a_report_of_an_export(exported_run, smoke_run, tmp_path):
  """It lacks the curves of the training and the commands."""
  copy = shutil.copytree(exported_run, tmp_path / 'copy')
  assert make(copy, 'report', f'--data_dir={smoke_run}/data') == 0
  page = (copy / 'report' / 'index.html').read_text()
  assert 'Training of the VQ-VAE' not in page and 'this is an export' in page
