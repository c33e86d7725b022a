"""The page in a browser, on this machine only."""

import os
import re
import socket
import sys
import urllib.request

import browser
import pytest

from dermvq_jax import errors, main
from dermvq_jax.explore import server

_connected = []  # hosts that this process connects to or looks up


def _note(event, args):
  if event == 'socket.connect' and isinstance(args[1], tuple):
    _connected.append(args[1][0])
  elif event == 'socket.getaddrinfo':
    _connected.append(args[0])


@pytest.fixture(scope='module')
def address(smoke_run):
  """Serves the smoke run; at the end, nobody else has been asked for."""
  sys.addaudithook(_note)
  before = dict(os.environ)
  # Both would open the page to others.
  os.environ |= {'GRADIO_SHARE': 'True', 'GRADIO_SERVER_NAME': '0.0.0.0'}
  os.environ['HTTP_PROXY'] = 'http://proxy.invalid:1'
  _connected.clear()
  with server.serving([(str(smoke_run), '')]) as found:
    os.environ.pop('HTTP_PROXY')
    yield found
  os.environ.clear()
  os.environ |= before
  assert {host for host in _connected if host} <= {'127.0.0.1', b'127.0.0.1'}


def test_only_this_machine_can_connect(address):
  port = int(re.fullmatch(r'http://127\.0\.0\.1:(\d+)/', address)[1])
  with urllib.request.urlopen(address) as page:
    assert page.status == 200
  other = socket.gethostbyname_ex(socket.gethostname())[2]
  for host in {*other} - {'127.0.0.1'}:
    with pytest.raises(OSError), socket.create_connection((host, port), 1):
      pass


def test_a_port_in_use(address, smoke_run):
  port = int(address.rstrip('/').rpartition(':')[2])
  with (
    pytest.raises(errors.UserError, match=f'port {port} is in use'),
    server.serving([(str(smoke_run), '')], port),
  ):
    pass


def test_no_gradio(smoke_run, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'gradio', None)
  monkeypatch.delitem(sys.modules, 'dermvq_jax.explore.page', raising=False)
  monkeypatch.delattr('dermvq_jax.explore.page', raising=False)
  assert main.main(['explore', f'--workdir={smoke_run}']) == 2
  said = capsys.readouterr().err
  assert 'needs the package gradio' in said and "'.[explore]'" in said


def test_no_run(tmp_path, capsys):
  assert main.main(['explore', f'--workdir={tmp_path}']) == 2
  assert 'holds no trained weights; run dermvq train' in capsys.readouterr().err


@pytest.fixture(scope='module')
def chromium(address):
  """A browser that can reach this machine only."""
  api = pytest.importorskip('playwright.sync_api')
  with api.sync_playwright() as playwright:
    started = playwright.chromium.launch(
      executable_path=browser.CHROMIUM, args=browser.FLAGS
    )
    yield started
    started.close()


@pytest.fixture
def open_page(chromium, address):
  """Opens the page; in the end there was no error and no other host."""
  contexts, wrong = [], []

  def check_host(request):
    if not request.url.startswith((address, 'data:', 'blob:')):
      wrong.append(request.url)

  def check_message(message):
    if message.type == 'error':
      wrong.append(message.text)

  def call(**kwargs):
    context = chromium.new_context(**kwargs)
    contexts.append(context)
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.on('request', check_host)
    page.on('console', check_message)
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.goto(address)
    page.locator('.pictures img').first.wait_for()
    return page

  yield call
  for context in contexts:
    context.close()
  assert not wrong


@browser.needs_chromium
def test_samples_and_a_mistake(open_page):
  page = open_page()
  assert page.locator('.pictures .grid-container img').count() == 8
  command = page.locator('.command textarea').first
  assert command.input_value().endswith('--counts=akiec=8')
  page.get_by_label('Seed').first.fill('7')
  page.get_by_role('button', name='Sample', exact=True).click()
  page.wait_for_function(
    "document.querySelector('.command textarea').value.includes('--seed=7')"
  )
  page.get_by_label('Seed').first.fill('')
  page.get_by_role('button', name='Sample', exact=True).click()
  page.get_by_text('seed is empty; give a number').first.wait_for()


@browser.needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize('width', [400, 1280])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_every_tab(open_page, width, scheme):
  page = open_page(
    viewport={'width': width, 'height': 900}, color_scheme=scheme
  )
  seen = {
    'Sweep': '.sweep img',
    'Codes': '.code_map img',
    'Complete': '.canvas canvas',
    'Training': 'section svg',
    'Data': 'section table',
  }
  for tab, shown in seen.items():
    if not page.get_by_role('tab', name=tab).count():  # The page is narrow.
      page.locator('.overflow-menu > button').click()
      page.locator('.overflow-dropdown').get_by_text(tab).click()
    else:
      page.get_by_role('tab', name=tab).click()
    if tab == 'Sweep':
      page.get_by_role('button', name='Sweep').click()
    page.locator(shown).first.wait_for()
    if tab == 'Codes':
      page.locator(shown).click(position={'x': 5, 'y': 5})
      page.wait_for_function(
        "document.querySelector('[aria-label*=\"for Row\"]').value === '0'"
      )
    assert page.evaluate('document.documentElement.scrollWidth') <= width, tab
  dark = page.evaluate("document.body.classList.contains('dark')")
  assert dark == (scheme == 'dark')
