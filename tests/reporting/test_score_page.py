"""`dermvq score`: the folder and its page."""

import pytest
from pictures import files_in, read_csv, save_image

from dermvq_jax import main


def test_folder(calibrated_run, tmp_path, capsys):
  folder, out = tmp_path / 'in', tmp_path / 'out'
  save_image(folder / 'a<b>.png', 16, 16)
  save_image(folder / 'c.png', 20, 16)
  (folder / 'damaged.png').write_bytes(b'')
  argv = ['score', f'--workdir={calibrated_run}', f'--out={out}', str(folder)]
  assert main.main([*argv, '--label=nv']) == 0
  assert len(files_in(out / 'maps')) == 2
  assert {p.name for p in out.iterdir()} == {'scores.csv', 'maps', 'index.html'}
  rows = read_csv(out / 'scores.csv')
  page = (out / 'index.html').read_text()
  assert rows[0]['reasons'] in page and rows[0]['p_value'] in page
  assert 'a<b>' not in page  # It is escaped.
  assert 'damaged.png is unreadable' in page
  assert page.count('<figure') == 2
  said = capsys.readouterr().out
  assert 'of 2 images are flagged' in said
  assert '; it is left out' in said


@pytest.mark.parametrize('images', [[], ['missing.png']])
def test_mistakes(calibrated_run, tmp_path, capsys, images):
  out = tmp_path / 'out'
  argv = ['score', f'--workdir={calibrated_run}', f'--out={out}', *images]
  assert main.main(argv) == 2
  assert 'dermvq score: error: ' in capsys.readouterr().err
  assert not out.exists()
