"""Tests of the page and its parts."""

import pytest

from dermvq_jax.reporting import page


def test_text_is_escaped():
  table = page.Table(('class', 'n'), [('<b>mel</b>', '1')], '<i>', 'a & b')
  text = page.render('<t>', 's', [page.Section('x', 'X', tables=[table])])
  assert '&lt;b&gt;mel&lt;/b&gt;' in text and '<b>mel' not in text
  assert '&lt;t&gt;' in text and '&lt;i&gt;' in text and 'a &amp; b' in text


def test_words_in_tables_are_not_aligned_as_numbers():
  tables = [
    page.Table(('x', 'y'), [('a', 'b')], words=words) for words in (False, True)
  ]
  texts = [
    page.render('title', 'sub', [page.Section('s', 'S', tables=[table])])
    for table in tables
  ]
  assert [text.count('class="number"') for text in texts] == [2, 0]


def test_write(tmp_path):
  figures = [
    page.Figure('chart', 'A chart.', svg='<svg></svg>'),
    page.Figure('picture', 'A picture.', png=b'pixels'),
  ]
  listings = [page.Listing('Shown', 'a', open=True), page.Listing('Folded', '')]
  folder = tmp_path / 'new' / 'report'
  section = page.Section('x', 'X', ['Text.'], [], figures, listings)
  written = page.write(folder, 'title', 'subtitle', [section])
  assert [p.name for p in written] == ['index.html', 'chart.svg', 'picture.png']
  assert (folder / 'picture.png').read_bytes() == b'pixels'
  text = (folder / 'index.html').read_text()
  for part in ('id="about-x"', '<svg></svg>', figures[1].base64, 'Text.'):
    assert part in text
  assert text.count('<details open>') == text.count('<details>') == 1


def test_a_missing_value_is_an_error():
  section = page.Section('x', 'X', figures=['no figure'])
  with pytest.raises(Exception, match='name'):
    page.render('title', 'subtitle', [section])
