"""Scores of images as a table and maps."""

import numpy as np
import pytest
from pictures import files_in, names_in, read_csv, read_png, save_image
from PIL import Image

from dermvq_jax import errors, files, inference
from dermvq_jax.data import prepared
from dermvq_jax.generation import scores
from dermvq_jax.runs import run as run_lib

IMAGES = 'synthetic_dermoscopy/smoke'


@pytest.fixture(scope='module')
def model(calibrated_run, smoke_run):
  return inference.Model(run_lib.Run(calibrated_run, smoke_run / 'data'))


def _write(out, scored):
  with files.new_folder(out) as folder:
    scores.write(folder, scored)
  return read_csv(out / 'scores.csv')


def test_a_split(model, out, smoke_run):
  scored = scores.score(model, split='test', alpha=0.5, num_maps=3)
  rows = _write(out, scored)
  records = prepared.Dataset(IMAGES, smoke_run / 'data').split('test')
  by_id = {record['id'].decode(): record for record in records}
  assert {row['image'] for row in rows} == by_id.keys()
  p_values = [float(row['p_value']) for row in rows]
  assert p_values == sorted(p_values)
  flagged = [row['flagged'] == 'yes' for row in rows]
  assert flagged == [p <= 0.5 for p in p_values]
  assert scored.num_flagged == sum(flagged)
  first = by_id[rows[0]['image']]
  assert rows[0]['label'] == model.class_names[first['label']]
  found = model.score(first['image'][None], [first['label']])
  for name, value in (
    ('p_value', found.p_values),
    ('label_p_value', found.label_p_values),
    ('label_probability', found.label_probs),
    ('label_bits_per_code', found.label_bits),
    ('bits', found.values['bits']),
    ('error_p_value', found.value_p_values['error']),
  ):
    assert float(rows[0][name]) == pytest.approx(value[0], rel=1e-3), name
  assert rows[0]['reasons'] == found.reasons[0]
  shown = [row['map'] for row in rows]
  assert all(shown[:3]) and not any(shown[3:])
  assert files_in(out / 'maps') == sorted(m[len('maps/') :] for m in shown[:3])
  assert read_png(out / shown[0]).shape == (16, 16, 3)


def test_bad_files_do_not_stop_the_rest(model, tmp_path, out, caplog):
  folder, empty = tmp_path / 'in', tmp_path / 'empty'
  empty.mkdir()
  save_image(folder / 'wide.jpg', 50, 20)
  save_image(folder / 'tiny.png', 1, 1)
  (folder / 'damaged.jpg').write_bytes(b'no image')
  (folder / 'notes.txt').write_text('no image')
  single = save_image(tmp_path / 'a.png', 16, 16)
  paths = [tmp_path / 'missing.png', empty, folder, single]
  scored = scores.score(model, paths=paths)
  assert {row['image'] for row in scored.rows} == {
    str(folder / 'wide.jpg'),
    str(folder / 'tiny.png'),
    str(single),
  }
  scores.log(scored)
  for reason in ('missing.png', f'image in {empty}', 'damaged.jpg'):
    [line] = [p for p in scored.problems if reason in p]
    assert '\n' not in line
    assert line.endswith('; it is left out') and line in caplog.text
  assert len(scored.problems) == 3
  rows = _write(out, scored)
  assert 'label' not in rows[0]
  assert len(names_in(out / 'maps')) == 3


def test_one_image(model, tmp_path):
  """Of a given class; without maps."""
  file = save_image(tmp_path / 'a.png', 16, 16)
  scored = scores.score(model, paths=[file], label='mel', num_maps=0)
  [row] = scored.rows
  assert row['label'] == 'mel' and row['map'] == ''
  assert scored.strangest == []


def test_chunks(model, tmp_path, monkeypatch):
  """The order does not depend on how many images are in memory."""
  for i in range(5):
    save_image(tmp_path / f'{"x" * (i + 1)}.png', 16, 16 + i)
  whole = scores.score(model, paths=[tmp_path], num_maps=2)
  monkeypatch.setattr(scores, '_AT_ONCE', 2)
  parts = scores.score(model, paths=[tmp_path], num_maps=2)
  names = [row['image'] for row in whole.rows]
  assert names == [row['image'] for row in parts.rows]
  for a, b in zip(whole.strangest, parts.strangest, strict=True):
    assert a.row['image'] == b.row['image']
    np.testing.assert_array_equal(a.image, b.image)


def test_overlay(model, tmp_path):
  """Grey where nothing is strange; more orange where more is."""
  image = np.full((16, 16, 3), 128, np.uint8)
  image[:4, :4] = [0, 0, 255]
  Image.fromarray(image).save(tmp_path / 'a.png')
  [strange] = scores.score(model, paths=[tmp_path]).strangest
  np.testing.assert_array_equal(strange.image, image)
  [strangeness] = model.score(image[None]).maps
  orange = np.ptp(strange.overlay.astype(int), axis=-1)
  assert (orange[strangeness <= 1] == 0).all()
  assert (orange[strangeness > 1.1] > 0).all()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({}, 'either image files or --split'),
    ({'split': 'val', 'paths': ['a']}, 'either image files or --split'),
    ({'split': 'val', 'label': 'mel'}, 'leave out --label'),
    ({'split': 'val', 'alpha': 1.5}, '--alpha is 1.5'),
    ({'paths': ['no_such_file.png']}, 'no readable image: there is no file'),
    ({'paths': ['a.png'], 'label': 'x'}, 'no class'),
  ],
)
def test_refuses(model, arguments, message):
  with pytest.raises(errors.UserError, match=message):
    scores.score(model, **arguments)
