"""Tests of the report page."""

import html
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from dermvq_jax import errors
from dermvq_jax.evaluation import evaluate
from dermvq_jax.reporting import evaluation_page, page, report

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
  'prior_curves.svg',
]
EVALUATION_FIGURES = [
  'confusion_val.svg',
  'closest_pixels_val.png',
  'closest_features_val.png',
]
ALL_FIGURES = VQVAE_FIGURES + PRIOR_FIGURES + EVALUATION_FIGURES
EVALUATION = ['evaluate_val.json', 'nearest_val.npz']
_CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


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
  """What a page refers to, its figures, and whether its tags close."""

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
  """What `dermvq demo` wrote."""
  text = (smoke_run / 'report' / 'index.html').read_text()
  parsed = _Page(text)
  assert not parsed.open
  for link in parsed.links:
    assert link.startswith('data:') or link[1:] in parsed.ids, link
  assert not re.search(r'url\(\s*[\'"]?http|@import|<script', text)
  names = [name.partition('.')[0] for name in ALL_FIGURES]
  assert sorted(parsed.figures) == sorted(names)


def test_page_tells_how_it_was_made(smoke_run):
  text = (smoke_run / 'report' / 'index.html').read_text()
  # One command made all of it, and is told once.
  parts = ('images', 'vqvae', 'codes', 'prior', 'classifier')
  told = re.search(r'<pre>(.*?)</pre>', text, re.DOTALL).group(1).split('\n')
  assert [line.split(':')[0] for line in told[1:]] == [
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
  assert 'encoder sees hidden pixels from everywhere' in text  # 16 px


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
  # Before what needs more knowledge to be read.
  assert text.index('id="about-evaluation_val"') < text.index(
    'id="about-controls"'
  )


def test_completions(narrow_run, smoke_run):
  """Of the smoke run's images, whose codes see little here."""
  run = report._Run(narrow_run, seed=0)
  section = report._completions(run)
  (figure,) = section.figures
  assert figure.name == 'completions' and figure.png


def test_whole_run(smoke_run):
  assert_figures(smoke_run / 'report', ALL_FIGURES + EVALUATION)


def test_without_a_prior(run_copy):
  shutil.rmtree(run_copy / 'prior')
  shutil.rmtree(run_copy / 'report')
  written = report.run(str(run_copy))
  assert [p.name for p in written] == ['index.html', *VQVAE_FIGURES]
  assert_figures(run_copy / 'report', VQVAE_FIGURES)


def test_prior_that_has_just_started(run_copy):
  """Nothing was validated yet: there is nothing to sample from."""
  shutil.rmtree(run_copy / 'report')
  shutil.rmtree(run_copy / 'prior' / 'best')
  (run_copy / 'prior' / 'metrics.jsonl').unlink()
  written = report.run(run_copy)
  names = {p.name for p in written}
  assert names == {'index.html', *VQVAE_FIGURES, 'prior_curves.svg'}


def evaluation_sections(workdir):
  return evaluation_page.sections(workdir, evaluation_page.results(workdir))


def test_evaluation_and_names_are_shown_as_text(run_copy):
  row = {'num_images': 3, 'bits_per_code': 4.5, 'bits_per_dim': 0.25}
  counts = {'num_copied': 1, 'num_held_out_copied': 2, 'p_value': 0.01}
  shares = {'share_closer_to_train': 0.9, 'expected_share': 0.8}
  current = evaluate.current_result(run_copy)
  result = {
    'seed': 7,
    'controls': {'temperature': 1.0},
    'space': 'classifier',
    'weights': current['weights'],
    'made_by': current['made_by'],
    'prior': {
      **row,
      'confusion': [[123]],
      'accuracy': 0.5,
      'balanced_accuracy': 0.375,
      'classes': {'<b>mel</b>': {**row, 'recall': None}},
    },
    'generation': {
      'num_real': 9,
      'kid_over_independent': 0.25,
      'classes': {'<b>mel</b>': {'samples': {'frechet_distance': 2.5}}},
      'sets': {
        'samples': {
          'num_images': 8,
          'frechet_distance': 1.5,
          'kid': 0.0123,
          'kid_standard_error': 0.0045,
          **dict.fromkeys(('precision', 'recall', 'density', 'coverage'), 0.5),
        }
      },
    },
    'labels': {
      'samples_over_real': 0.9,
      'real': current['labels']['real'],
      'samples': {
        'balanced_accuracy': 0.625,
        'standard_error': 0.03,
        'recalls': {'mel': 0.625},
        'confusion': [[456]],
      },
    },
    'memorisation': {
      'num_samples': 8,
      'num_train': 90,
      'num_held_out': 20,
      'spaces': {'pixels': {**counts, **shares, 'threshold': 0.57}},
    },
  }
  folder = run_copy / 'report'
  (folder / 'evaluate_val.json').write_text(json.dumps(result))
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (3, 2, 16, 16, 3), np.uint8)
  np.savez(
    folder / 'nearest_val.npz',
    pixels_closest=np.arange(2),
    pixels_closest_samples=pictures[0],
    pixels_closest_train=pictures[1],
    pixels_closest_held_out=pictures[2],
  )
  [section] = evaluation_sections(run_copy)
  names = [f.name for f in section.figures]
  assert names == ['confusion_val', 'closest_pixels_val']
  assert '>123<' in section.figures[0].svg and '>456<' in section.figures[0].svg
  text = page.render('A run', 'of images', [section])
  assert '&lt;b&gt;mel&lt;/b&gt;' in text and '<b>mel' not in text
  cells = set(re.findall('<td.*?>(.*?)</td>', text))
  assert {'4.500', '0.2500', '0.0123 ± 0.0045', '1.500', '2.500'} <= cells
  assert {'0.625', '0.625 ± 0.030', '1 of 8', '2 of 20', '0.01'} <= cells
  assert 'seed 7' in text and 'KID is 0.250 of' in text
  # Where there is nothing to divide by.
  for part, name in (
    ('labels', 'samples_over_real'),
    ('generation', 'kid_over_independent'),
  ):
    less = result | {part: result[part] | {name: None}}
    (folder / 'evaluate_val.json').write_text(json.dumps(less))
    [told] = evaluation_sections(run_copy)
    assert 'None' not in page.render('A run', 'of images', [told])
  (folder / 'evaluate_val.json').write_text(json.dumps(result))
  # Another one has a section of its own, unless it is of other weights.
  test = folder / 'evaluate_test.json'
  test.write_text(json.dumps(result | {'space': 'inception'}))
  sections = evaluation_sections(run_copy)
  assert [s.title for s in sections] == ['Evaluation on test', section.title]
  assert sections[1] == section
  assert [len(s.text) for s in sections] == [1, 2]  # no word on features
  weights = result['weights'] | {'prior': '3-0'}
  test.write_text(json.dumps(result | {'weights': weights}))
  stale, _ = evaluation_sections(run_copy)
  assert not stale.tables and 'dermvq evaluate --split=test' in stale.text[0]
  test.write_text('{"weights": {')
  with pytest.raises(errors.UserError, match='evaluate_test.json is damaged'):
    evaluation_page.results(run_copy)


def test_words_in_tables_are_not_set_as_numbers():
  tables = [
    page.Table(('x', 'y'), [('a', 'b')], words=words) for words in (False, True)
  ]
  texts = [
    page.render('title', 'sub', [page.Section('s', 'S', tables=[table])])
    for table in tables
  ]
  assert [text.count('class="number"') for text in texts] == [2, 0]


def test_another_seed_gives_other_samples(smoke_run):
  first, second = (
    report._samples(report._Run(smoke_run, seed)).figures[0].png
    for seed in (0, 1)
  )
  assert first != second
  assert first == (smoke_run / 'report' / 'samples.png').read_bytes()


def test_mistakes(run_copy, tmp_path):
  with pytest.raises(errors.UserError, match='train --config=vqvae'):
    report.run(tmp_path / 'nothing')
  assert not (tmp_path / 'nothing').exists()
  shutil.rmtree(run_copy / 'data')
  shutil.rmtree(run_copy / 'report')
  with pytest.raises(errors.UserError, match='not prepared'):
    report.run(run_copy)
  assert not (run_copy / 'report').exists()


def test_data_in_another_place(run_copy, tmp_path):
  shutil.rmtree(run_copy / 'report')
  (run_copy / 'data').rename(tmp_path / 'moved')
  report.run(run_copy, data_dir=str(tmp_path / 'moved'))
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


@pytest.mark.skipif(not _CHROMIUM, reason='there is no Chromium')
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
      _CHROMIUM,
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
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


@pytest.mark.parametrize('num_codes', [5, 300])
def test_nearest_distances(num_codes):
  vectors = np.random.default_rng(0).normal(size=(num_codes, 3))
  distances = np.linalg.norm(vectors[:, None] - vectors, axis=-1)
  np.fill_diagonal(distances, np.inf)
  np.testing.assert_allclose(
    report.nearest_distances(vectors), distances.min(1), rtol=1e-6
  )
