"""The tab of codes."""

import numpy as np
import pytest

from dermvq_jax import errors
from dermvq_jax.explore import codes


@pytest.fixture(scope='module')
def grid(session):
  model = session.model
  return np.arange(16, dtype=np.int32).reshape(model.grid) % 7


def test_equal_codes_are_marked(session, grid):
  model, side = session.model, codes.cell_side(session.model)
  plain = codes.code_map(model, grid)
  marked = codes.code_map(model, grid, chosen=(1, 2))
  differing = (plain != marked).any(-1)
  cells = differing.reshape(4, side, 4, side).any((1, 3))
  np.testing.assert_array_equal(cells, grid == grid[1, 2])
  # A frame hides nothing inside of the cell.
  middle = slice(side + 4, 2 * side - 4), slice(2 * side + 4, 3 * side - 4)
  assert not differing[middle].any()


def test_what_is_not_drawn_yet_is_grey(session, grid):
  model, side = session.model, codes.cell_side(session.model)
  shown = codes.code_map(model, grid, known=6)
  cells = (shown == 128).all(-1).reshape(4, side, 4, side).all((1, 3))
  np.testing.assert_array_equal(cells.ravel(), np.arange(16) >= 6)
  image = codes.so_far(model, grid, 6)
  pixels = model.image_size // 4
  grey = (image == 128).all(-1).reshape(4, pixels, 4, pixels).all((1, 3))
  assert not grey.ravel()[:6].any() and grey.ravel()[6:].all()


def test_the_film_ends_with_the_image(session, grid):
  frames = list(codes.film(session.model, grid))
  assert [known for known, *_ in frames] == list(range(1, 17))
  _, shown, image = frames[-1]
  np.testing.assert_array_equal(image, session.model.decode(grid[None])[0])
  np.testing.assert_array_equal(shown, codes.code_map(session.model, grid))


def test_a_code_is_replaced(session, grid):
  new = codes.replaced(session.model, grid, 3, 0, 31)
  assert new[3, 0] == 31 and (new != grid).sum() == 1
  html = codes.compared(session.model, grid, new)
  assert '1 of 16 codes changed' in html


@pytest.mark.parametrize(
  ('place', 'message'),
  [
    ((4, 0, 1), 'rows are 0 to 3'),
    ((0, -1, 1), 'columns 0 to 3'),
    ((None, 0, 1), 'rows are 0 to 3'),
    ((0, 0, 32), 'codes are 0 to 31'),
    ((0, 0, None), 'codes are 0 to 31'),
  ],
)
def test_mistakes(session, grid, place, message):
  with pytest.raises(errors.UserError, match=message):
    codes.replaced(session.model, grid, *place)
