"""Checks that all links inside a built site lead somewhere.

```
python docs/check_links.py docs/_build/html
```
"""

import functools
import pathlib
import sys
import urllib.parse

import bs4


@functools.cache
def _page(path: pathlib.Path) -> bs4.BeautifulSoup:
  return bs4.BeautifulSoup(path.read_text(), 'html.parser')


@functools.cache
def _ids(path: pathlib.Path) -> set[str]:
  return {tag['id'] for tag in _page(path).find_all(id=True)}


def broken_links(site: pathlib.Path) -> list[str]:
  """Returns 'page: link' for each link to a file or heading that is missing.

  Links to other sites are not followed.
  """
  broken = []
  for page in sorted(site.rglob('*.html')):
    for tag in _page(page).find_all(['a', 'img', 'link', 'script']):
      link = tag.get('href') or tag.get('src') or ''
      url = urllib.parse.urlsplit(link)
      if url.scheme or url.netloc:
        continue
      path = urllib.parse.unquote(url.path)
      target = (page.parent / path).resolve() if path else page.resolve()
      heading = urllib.parse.unquote(url.fragment)
      is_there = target.exists() and (
        not heading or target.suffix != '.html' or heading in _ids(target)
      )
      if not is_there:
        broken.append(f'{page.relative_to(site)}: {link}')
  return broken


if __name__ == '__main__':
  found = broken_links(pathlib.Path(sys.argv[1]))
  print('\n'.join(found) or 'All links lead somewhere.')
  sys.exit(bool(found))
