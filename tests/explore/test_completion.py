"""The tab that completes images."""

import pathlib
import shlex
import zipfile

import numpy as np
import pytest
from pictures import files_in

from dermvq_jax import errors, main
from dermvq_jax.explore import completion, requests

SIZE = 16


@pytest.fixture(scope='module')
def image(session):
  return session.model.run.images.split('val')[0]['image']


def test_paint_hides_the_pixels_below_it(image):
  canvas = completion.canvas(image)
  assert canvas.shape == (512, 512, 3)
  layer = np.zeros((*canvas.shape[:2], 4), np.uint8)
  layer[40:70, 100, 3] = 1  # 32 pixels of the canvas are one of the image
  hidden = completion.painted([np.zeros_like(layer), layer], SIZE)
  assert [tuple(place) for place in np.argwhere(hidden)] == [(1, 3), (2, 3)]


def test_nothing_is_painted():
  layer = np.zeros((512, 512, 4), np.uint8)
  for layers in ([], [layer]):
    with pytest.raises(errors.UserError, match='nothing is hidden'):
      completion.painted(layers, SIZE)


@pytest.mark.parametrize('is_painted', [True, False])
def test_the_command_makes_the_same_files(
  session, image, tmp_path, monkeypatch, is_painted
):
  mask = 'bottom'
  if is_painted:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[5:9, 2:7] = True
  request = requests.Request({'mel': 2}, seed=5, numbers={'temperature': 0.9})
  shown, html, command, zipped = completion.complete(
    session, image, mask, request
  )
  assert len(shown) == 2
  assert ('12' if is_painted else '8') + ' of 16 codes are kept' in html
  with zipfile.ZipFile(zipped) as archive:
    archive.extractall(tmp_path)
  monkeypatch.chdir(tmp_path)
  assert main.main(shlex.split(command)[1:]) == 0
  made, expected = pathlib.Path('SAMPLES'), pathlib.Path('COMPLETED')
  assert files_in(made) == files_in(expected)
  for name in files_in(made):
    assert (made / name).read_bytes() == (expected / name).read_bytes(), name


def test_too_much_is_hidden(session, image):
  request = requests.Request({'mel': 1})
  with pytest.raises(errors.UserError, match='leaves no code'):
    completion.complete(session, image, np.ones((SIZE, SIZE), bool), request)
