"""Tests of the report page."""

import html
import html.parser
import json
import re
import shutil
import subprocess

import browser
import numpy as np
import pytest
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.reporting import report
from dermvq_jax.runs import run as run_lib

VQVAE_FIGURES = [
  'reconstructions.png',
  'code_map.png',
  'usage.svg',
  'code_distances.svg',
  'vqvae_curves.svg',
  'smoothed.svg',
]
PRIOR_FIGURES = [
  'samples.png',
  'temperature.png',
  'top_k.png',
  'top_p.png',
  'guidance_scale.png',
  'guidance_rise.png',
  'autoguidance_scale.png',
  'completions.png',
  'prior_curves.svg',
]
EVALUATION_FIGURES = [
  'confusion_val.svg',
  'closest_pixels_val.png',
  'closest_features_val.png',
]
ALL_FIGURES = VQVAE_FIGURES + PRIOR_FIGURES + EVALUATION_FIGURES
EVALUATION = ['evaluate_val.json', 'nearest_val.npz']


def assert_figures(folder, names):
  assert sorted(p.name for p in folder.iterdir()) == sorted(
    ['index.html', *names]
  )
  for path in folder.glob('*.png'):
    with Image.open(path) as image:
      assert image.format == 'PNG'
      pixels = np.asarray(image.convert('RGB'))
    assert min(pixels.shape[:2]) > 30
    assert pixels.std() > 5  # not blank


class _Page(html.parser.HTMLParser):
  """The links, ids and figures of a page; it checks that tags are closed."""

  def __init__(self, text):
    super().__init__()
    self.links, self.figures, self.ids, self.open = [], [], set(), []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.links += [
      attrs[k] for k in ('src', 'href', 'xlink:href') if k in attrs
    ]
    if 'id' in attrs:
      assert attrs['id'] not in self.ids, 'an id twice'
      self.ids.add(attrs['id'])
    if tag == 'figure':
      self.figures.append(attrs['id'])
    if tag not in ('meta', 'link', 'img', 'br'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in ('meta', 'link', 'img', 'br'):
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_page_is_self_contained(smoke_run):
  """The page that `dermvq demo` wrote."""
  text = (smoke_run / 'report' / 'index.html').read_text()
  parsed = _Page(text)
  assert not parsed.open
  for link in parsed.links:
    assert link.startswith('data:') or link[1:] in parsed.ids, link
  assert not re.search(r'url\(\s*[\'"]?http|@import|<script', text)
  names = [name.partition('.')[0] for name in ALL_FIGURES]
  assert sorted(parsed.figures) == sorted(names)


def test_page_says_how_it_was_made(smoke_run):
  text = (smoke_run / 'report' / 'index.html').read_text()
  # One command made everything; it is shown once.
  parts = ('images', 'vqvae', 'codes', 'prior', 'classifier')
  lines = re.search(r'<pre>(.*?)</pre>', text, re.DOTALL).group(1).split('\n')
  assert [line.split(':')[0] for line in lines[1:]] == [
    f'  # {part}' for part in (*parts, 'evaluation on val', 'this page')
  ]
  for phase in ('vqvae', 'prior', 'classifier'):
    config = json.loads((smoke_run / phase / 'config.json').read_text())
    assert config['made_by']['devices'] in text
    assert f'Config of the {phase}' in text
  rows = (smoke_run / 'vqvae' / 'metrics.jsonl').read_text().splitlines()
  best = min(
    (row['val/psnr'] for row in map(json.loads, rows) if 'val/psnr' in row),
    key=lambda psnr: -psnr,
  )
  assert f'{best:.2f}' in text


def test_page_explains_the_evaluation(smoke_run):
  text = html.unescape((smoke_run / 'report' / 'index.html').read_text())
  result = json.loads((smoke_run / 'report/evaluate_val.json').read_text())
  kid = result['generation']['sets']['samples']['kid']
  copied = result['memorisation']['spaces']['pixels']['num_copied']
  for said in (
    f'{kid:z.4f} ±',
    f'{copied} of {result["memorisation"]["num_samples"]}',
    'Frechet distance and KID: lower is closer',
    'Are samples copies of training images?',
  ):
    assert said in text
  # This section comes before sections that need more knowledge.
  assert text.index('id="about-evaluation_val"') < text.index(
    'id="about-controls"'
  )


def test_whole_run(smoke_run):
  assert_figures(smoke_run / 'report', ALL_FIGURES + EVALUATION)


def test_without_a_prior(run_copy):
  shutil.rmtree(run_copy / 'prior')
  shutil.rmtree(run_copy / 'report')
  written = report.report(run_lib.Run(run_copy))
  assert [p.name for p in written] == ['index.html', *VQVAE_FIGURES]
  assert_figures(run_copy / 'report', VQVAE_FIGURES)


def test_prior_that_has_just_started(run_copy):
  """The prior has no weights yet, so there are no samples."""
  shutil.rmtree(run_copy / 'report')
  shutil.rmtree(run_copy / 'prior' / 'best')
  (run_copy / 'prior' / 'metrics.jsonl').unlink()
  written = report.report(run_lib.Run(run_copy))
  names = {p.name for p in written}
  assert names == {'index.html', *VQVAE_FIGURES, 'prior_curves.svg'}


def test_mistakes(run_copy, tmp_path):
  with pytest.raises(errors.UserError, match='train --config=vqvae'):
    report.report(run_lib.Run(tmp_path / 'nothing'))
  assert not (tmp_path / 'nothing').exists()
  shutil.rmtree(run_copy / 'data')
  shutil.rmtree(run_copy / 'report')
  with pytest.raises(errors.UserError, match='not prepared'):
    report.report(run_lib.Run(run_copy))
  assert not (run_copy / 'report').exists()


def test_data_in_another_place(run_copy, tmp_path):
  shutil.rmtree(run_copy / 'report')
  (run_copy / 'data').rename(tmp_path / 'moved')
  report.report(run_lib.Run(run_copy, tmp_path / 'moved'))
  assert (run_copy / 'report' / 'index.html').exists()


_PROBE = """
<script>
addEventListener('load', () => {
  const figures = [...document.querySelectorAll('figure')].map(f => {
    const box = f.querySelector('img, svg').getBoundingClientRect();
    const image = f.querySelector('img');
    return [f.id, box.width > 50 && box.height > 30 &&
            (!image || image.naturalWidth > 0)];
  });
  const left = performance.getEntriesByType('resource').map(e => e.name)
    .filter(name => !name.startsWith('data:'));
  parent.document.title = JSON.stringify({figures, left,
    width: innerWidth,
    wide: document.documentElement.scrollWidth > innerWidth});
});
</script>
"""


@browser.needs_chromium
@pytest.mark.parametrize('width', [400, 1200])
def test_in_a_browser(smoke_run, tmp_path, width):
  """No error, no request, all figures visible, no sideways scrolling."""
  text = (smoke_run / 'report' / 'index.html').read_text()
  text = text.replace('</body>', _PROBE + '</body>')
  file = tmp_path / 'index.html'
  # In a frame: no window is as narrow as a phone.
  file.write_text(
    f'<iframe width="{width}" height="900" style="border: 0" '
    f'srcdoc="{html.escape(text)}"></iframe>'
  )
  done = subprocess.run(
    [
      browser.CHROMIUM,
      '--headless',
      *browser.FLAGS,
      '--enable-logging=stderr',
      f'--user-data-dir={tmp_path}/profile',
      '--window-size=1300,1000',
      '--virtual-time-budget=5000',
      '--dump-dom',
      file.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert 'CONSOLE' not in done.stderr, done.stderr
  title = re.search('<title>(.*?)</title>', done.stdout).group(1)
  seen = json.loads(html.unescape(title))
  assert seen['width'] == width
  assert seen['left'] == []
  assert not seen['wide']
  names = ALL_FIGURES
  assert sorted(seen['figures']) == sorted(
    [name.partition('.')[0], True] for name in names
  )
