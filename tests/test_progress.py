"""Tests of progress in a log file."""

import contextlib
import os
import pty
import sys
import termios

import pytest
import tqdm

from dermvq_jax import progress


def test_a_file_gets_few_whole_lines(capsys, monkeypatch):
  monkeypatch.setattr(progress, '_LOG_INTERVAL_SECONDS', 0)
  with progress.bar(total=3, desc='read', unit='image') as bar:
    for _ in range(3):
      bar.update()
      tqdm.tqdm.write('between')
    bar.set_postfix(loss='0.5', refresh=False)
  captured = capsys.readouterr()
  assert captured.out == 'between\n' * 3
  lines = captured.err.splitlines()
  assert len(lines) == len(set(lines)) == 4
  assert lines[1].startswith('read: 1 of 3 images, 33%, 00:00 passed, ')
  assert lines[3].startswith('read: 3 of 3 images, 100%')
  assert '\r' not in captured.err and captured.err.isascii()


def test_a_file_gets_no_line_of_short_work(capsys):
  assert list(progress.bar(range(3))) == [0, 1, 2]
  with progress.bar(total=100, desc='read') as bar:
    bar.update(100)
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('size', [(24, 80), (0, 0)])
def test_terminals_with_and_without_a_size(size, monkeypatch):
  monkeypatch.setattr(progress, '_LOG_INTERVAL_SECONDS', 0)
  reader, writer = pty.openpty()
  termios.tcsetwinsize(writer, size)
  with os.fdopen(writer, 'w') as terminal:
    monkeypatch.setattr(sys, 'stderr', terminal)
    assert list(progress.bar(range(2), desc='read')) == [0, 1]
  shown = b''
  with contextlib.suppress(OSError):  # Linux reports the end as an error.
    while part := os.read(reader, 1000):
      shown += part
  os.close(reader)
  assert (b'read: 100%|' in shown) == all(size)
  assert (b'read: 2 of 2 its, 100%' in shown) != all(size)
