"""Shows the page in a browser on this machine, without any network."""

import contextlib
import os
import pathlib
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from unittest import mock

from dermvq_jax import errors
from dermvq_jax.explore import session as session_lib

_HOST = '127.0.0.1'
_MAX_UPLOAD = '100mb'


@contextlib.contextmanager
def _environment(folder: str) -> Iterator[None]:
  """Lets gradio ask nobody, and keep its files in a folder.

  Variables with which gradio could be told to share more are left out.
  """
  kept = {k: v for k, v in os.environ.items() if not k.startswith('GRADIO_')}
  kept |= {
    'GRADIO_ANALYTICS_ENABLED': 'False',
    'GRADIO_TEMP_DIR': folder,
    'HF_HUB_DISABLE_TELEMETRY': '1',
    'HF_HUB_OFFLINE': '1',
  }
  # gradio calls its own server; a proxy must not be asked for it.
  for name in ('NO_PROXY', 'no_proxy'):
    others = [kept[name]] if kept.get(name) else []
    kept[name] = ','.join([*others, _HOST])
  with mock.patch.dict(os.environ, kept, clear=True):
    yield


@contextlib.contextmanager
def serving(
  runs: Sequence[tuple[str, str]], port: int | None = None
) -> Iterator[str]:
  """Serves the page to this machine only, until the context is left.

  Args:
    runs: folder of each run, one or two, and of its prepared datasets or ''.
    port: the port; None: the first free one from 7860.

  Yields:
    The address.

  Raises:
    UserError: a run has no trained VQ-VAE, gradio is not installed, or the port
      is in use.
  """
  with (
    tempfile.TemporaryDirectory(prefix='dermvq_explore_') as folder,
    _environment(folder),
  ):
    session = session_lib.Session(runs, pathlib.Path(folder))
    try:
      from dermvq_jax.explore import page as page_lib
    except ModuleNotFoundError as e:
      raise errors.UserError(
        f'this needs the package {e.name}, which is not installed: pip install '
        "-c constraints.txt '.[explore]'"
      ) from None
    page = page_lib.make(session)
    try:
      _, address, _ = page.launch(
        server_name=_HOST,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        inline=False,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=_MAX_UPLOAD,
        css=page_lib.STYLE.read_text(),
        theme=page_lib.theme(),
      )
    except OSError:
      raise errors.UserError(
        f'port {port} is in use; give another --port, or none'
        if port
        else 'no port from 7860 to 7959 is free; give another as --port'
      ) from None
    try:
      yield address
    finally:
      page.close(verbose=False)


def explore(runs: Sequence[tuple[str, str]], port: int | None = None):
  """Serves the page until Ctrl-C; for arguments and errors see `serving`."""
  # Its files are removed however it is ended.
  before = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    with serving(runs, port) as address, contextlib.suppress(KeyboardInterrupt):
      line = f'Open {address} in a browser on this machine. Ctrl-C ends.'
      print(line, flush=True)
      threading.Event().wait()
  finally:
    signal.signal(signal.SIGTERM, before)
