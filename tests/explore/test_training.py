"""The tab of what was learned, and that of the data."""

import re

import pytest

from dermvq_jax import errors
from dermvq_jax.explore import data, sources, training
from dermvq_jax.explore import session as session_lib


@pytest.fixture(scope='module')
def two(smoke_run, exported_run, tmp_path_factory):
  folder = tmp_path_factory.mktemp('two')
  runs = [(str(smoke_run), ''), (str(exported_run), str(folder / 'none'))]
  return session_lib.Session(runs, folder)


def test_two_runs_side_by_side(two):
  first, second = (training.about(two, i) for i in range(2))
  assert 'validation images' in first and 'Curves' in first
  assert 'new samples, as the images are not here' in second
  assert 'An export has no curves' in second
  assert 'id="prior_curves_0"' in first  # other ids than those of a second run
  for html in (first, second):
    [used] = re.findall(r'(\d+) of 32 codes are used', html)
    assert 0 < int(used) <= 32
    assert ('has collapsed' in html) == (int(used) < 16)


def test_a_run_without_prior_and_data(smoke_run, tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'vqvae').symlink_to(smoke_run / 'vqvae')
  run = str(tmp_path / 'run'), str(tmp_path / 'none')
  session = session_lib.Session([run], tmp_path)
  assert 'has no trained prior' in session.why_no_prior()
  assert 'has no trained prior' in training.about(session, 0)
  assert 'none' in session.why_no_data()
  assert 'none' in data.counts(session)


def test_images_of_a_class(session):
  shown, about = data.images(session, 'train', 'mel', 1)
  records = session.model.run.images.split('train')
  assert shown and 'Page 1 of 1' in about
  for image, caption in shown:
    name, number = caption.split()
    assert name == 'mel'
    assert (image == records[int(number)]['image']).all()
    assert (image == sources.from_data(session, 'train', int(number))).all()


def test_pages_have_all_images_once(session):
  pages = [data.images(session, 'train', data.ALL, n)[0] for n in range(1, 6)]
  captions = [caption for page in pages for _, caption in page]
  numbers = [int(caption.split()[1]) for caption in captions]
  assert numbers == list(range(114))


def test_mistakes(session):
  with pytest.raises(errors.UserError, match='on 5 pages'):
    data.images(session, 'train', data.ALL, 6)
  with pytest.raises(errors.UserError, match='images 0 to 12'):
    sources.from_data(session, 'val', 13)
  with pytest.raises(errors.UserError, match='choose an image file'):
    sources.from_file(session, None)
  with pytest.raises(errors.UserError, match='seed is empty'):
    sources.from_prior(session, 'mel', None)
