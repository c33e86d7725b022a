import re

import numpy as np
import pytest

from experiments import octaves


@pytest.fixture
def images():
  return np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3))


def test_octaves_are_those_of_a_wave():
  x = np.arange(16)
  slow, fast = np.cos(2 * np.pi * x / 8), np.cos(2 * np.pi * x / 2)
  both = (slow + fast)[None, None, :, None] * np.ones((1, 16, 1, 3))
  found = octaves.octaves(both, 0.125, 0.25)
  np.testing.assert_allclose(found[0, 3, :, 1], slow, atol=1e-9)
  found = octaves.octaves(both, 0.25, 1)
  np.testing.assert_allclose(found[0, 3, :, 1], fast, atol=1e-9)


def test_what_is_swapped_comes_back(images):
  other = images[::-1]
  for band in ((0.25, 1), (0.125, 0.25)):
    swapped = octaves.swap(images, other, band)
    assert np.abs(swapped - images).max() > 1
    back = octaves.swap(swapped, images, band)
    np.testing.assert_allclose(back, images, atol=1e-9)


def test_changes(images):
  """All differ from one another and from the images, but for the first."""
  made = images[::-1]
  changed = [change(images, made) for change in octaves.CHANGES.values()]
  assert (changed[0] == images).all() and (changed[1] == made).all()
  for i, one in enumerate(changed):
    assert all(np.abs(one - other).max() > 1e-3 for other in changed[:i])


def test_a_displaced_octave_keeps_its_power(images):
  change = octaves.CHANGES['real, finest octave at random places']
  changed = change(images, None)
  spectra = [np.fft.fft2(x, axes=(1, 2)) for x in (images, changed)]
  np.testing.assert_allclose(*map(np.abs, spectra), atol=1e-6)
  coarse = [x - octaves.octaves(x, 0.25, 1) for x in (images, changed)]
  np.testing.assert_allclose(*coarse, atol=1e-9)
  assert np.abs(changed - images).max() > 10


def test_another_image_gives_an_octave_of_about_the_same_power(images):
  images = images * np.array([4, 1, 2, 3])[:, None, None, None]
  change = octaves.CHANGES['real, finest octave of another']
  changed = change(images, None)
  fine, found = (octaves.octaves(x, 0.25, 1) for x in (images, changed))
  np.testing.assert_allclose(found, fine[[3, 2, 1, 2]], atol=1e-9)
  coarse = [x - octaves.octaves(x, 0.25, 1) for x in (images, changed)]
  np.testing.assert_allclose(*coarse, atol=1e-9)


def test_study(smoke_run, tmp_path, capsys, monkeypatch):
  def means(images):
    return images.mean((1, 2))

  monkeypatch.setattr(octaves.sharpness, 'Stages', lambda path: means)
  arguments = [f'--run={smoke_run}', '--vgg16=none', f'--out={tmp_path}']
  octaves.main(arguments)
  told = capsys.readouterr().out
  for name in octaves.CHANGES:
    assert re.search(rf'{name} *\| -?\d', told), name
  octaves.main(arguments)
  assert capsys.readouterr().out == told
