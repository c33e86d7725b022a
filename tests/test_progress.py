"""Tests of progress in a log file."""

import tqdm

from dermvq_jax import progress


def test_a_file_gets_few_whole_lines(capsys):
  with progress.bar(total=100, desc='read') as bar:
    for _ in range(100):
      bar.update()
      tqdm.tqdm.write('between')
  captured = capsys.readouterr()
  assert captured.out == 'between\n' * 100
  first, last = captured.err.splitlines()
  assert first.startswith('read:   0%') and ' 0/100' in first
  assert last.startswith('read: 100%') and '\r' not in captured.err


def test_iterating(capsys):
  assert list(progress.bar(range(3))) == [0, 1, 2]
  assert '3/3' in capsys.readouterr().err.splitlines()[-1]
  assert list(progress.bar(range(3), disable=True)) == [0, 1, 2]
  assert capsys.readouterr().err == ''
