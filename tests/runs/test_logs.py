import json

import numpy as np
import pytest
from absl import logging

from dermvq_jax import errors
from dermvq_jax.runs import logs


@pytest.fixture
def folder(tmp_path):
  return tmp_path


def written(folder):
  log = logs.Log(folder, 0)
  for step in (5, 10):
    log.scalars(step, {'step/loss': step / 2})
  log.scalars(10, {'val/mse': 0.25})
  log.close()
  return logs.read(folder)


def test_rows(folder):
  rows = written(folder)
  assert rows == [
    {'step': 5, 'step/loss': 2.5},
    {'step': 10, 'step/loss': 5.0},
    {'step': 10, 'val/mse': 0.25},
  ]
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in lines] == rows


def test_all_metrics_are_shown_only_when_asked_for(folder, caplog):
  for is_verbose, said in (
    (False, []),
    (True, ['step 1,500:\n  step/loss 0.1235\n  val/psnr 20']),
  ):
    log = logs.open_log(folder, 0, is_verbose=is_verbose)
    log.scalars(1500, {'step/loss': 0.123456, 'val/psnr': 20.0})
    log.close()
    assert caplog.messages == said


def test_no_rows(folder):
  assert logs.read(folder) == []
  logs.Log(folder, 0).close()
  assert logs.read(folder) == []


@pytest.mark.parametrize(('step', 'left'), [(0, 0), (5, 1), (7, 1), (10, 3)])
def test_rows_later_than_the_restored_step_are_cut(folder, step, left):
  rows = written(folder)
  log = logs.Log(folder, step)
  assert logs.read(folder) == rows[:left]
  log.scalars(20, {'a': 1.0})
  log.close()
  assert logs.read(folder) == [*rows[:left], {'step': 20, 'a': 1.0}]
  assert not list(folder.glob('*.incomplete'))


def test_a_line_cut_by_a_kill_is_ignored(folder):
  rows = written(folder)
  with (folder / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 15, "step/lo')
  assert logs.read(folder) == rows
  logs.Log(folder, 20).close()
  assert logs.read(folder) == rows
  assert (folder / 'metrics.jsonl').read_text().endswith('\n')


@pytest.mark.parametrize(
  'line',
  [
    '{"step": 3',
    '[]',
    '{"loss": 1}',
    '\0\xff',
    '{"step": "x"}',
    '{"step": NaN}',
    '{"step": -1}',
    '{"step": 7, "a": "text"}',
    '[' * 10**5,
  ],
)
def test_a_damaged_row_is_named_and_nothing_cut(folder, line):
  written(folder)
  file = folder / 'metrics.jsonl'
  first, rest = file.read_bytes().split(b'\n', 1)
  file.write_bytes(first + b'\n' + line.encode('latin1') + b'\n' + rest)
  before = file.read_bytes()
  for use in (logs.read, lambda folder: logs.Log(folder, 20)):
    with pytest.raises(errors.UserError, match='line 2 of .* is damaged'):
      use(folder)
  assert file.read_bytes() == before


def test_flush_puts_rows_on_the_disk(folder, monkeypatch):
  synced = []
  log = logs.Log(folder, 0)
  monkeypatch.setattr(logs.os, 'fsync', synced.append)
  log.scalars(1, {'a': 1.0})
  log.flush()
  assert len(synced) == 1
  log.close()


def test_rows_can_be_read_while_training(folder):
  log = logs.Log(folder, 0)
  log.scalars(5, {'a': 1.0})
  assert logs.read(folder) == [{'step': 5, 'a': 1.0}]
  log.close()


def test_tensorboard_events(folder):
  from tensorboard.backend.event_processing import event_accumulator

  log = logs.Log(folder, 0)
  log.scalars(5, {'val/mse': 0.5})
  log.images(5, {'reconstructions': np.zeros((1, 4, 6, 3), np.float32)})
  log.images(5, {})
  log.close()
  events = event_accumulator.EventAccumulator(str(folder))
  events.Reload()
  assert 'val/mse' in events.Tags()['scalars'] + events.Tags()['tensors']
  assert 'reconstructions' in events.Tags()['images'] + events.Tags()['tensors']


def test_a_full_disk_is_one_line(folder, monkeypatch):
  from tensorflow import errors as tf_errors

  def full(*args):
    raise tf_errors.ResourceExhaustedError(None, None, '')

  log = logs.Log(folder, 0)
  with monkeypatch.context() as patch:
    patch.setattr(log._writer, 'write_scalars', full)
    with pytest.raises(errors.UserError, match='cannot write events to .*room'):
      log.scalars(1, {'a': 1.0})
  log.close()
  assert logs.read(folder) == [{'step': 1, 'a': 1.0}]


def test_console_shows_ours_on_stdout_and_drops_chatter(capsys):
  logs.setup_console()
  logging.info('from a file of these tests')
  out = capsys.readouterr().out
  assert 'from a file' not in out  # not from this package
  logging.error('an error is always shown')
  captured = capsys.readouterr()
  assert captured.out == 'an error is always shown\n'
  assert not captured.err


def test_reports_to_a_closed_event_loop_are_dropped(capsys):
  """Threads of tensorstore make them after a save on a full disk."""

  class Late:
    def __init__(self, text):
      self.text = text

    def __del__(self):
      raise RuntimeError(self.text)

  logs.setup_console()
  for text in ('Event loop is closed', 'a bug'):
    Late(text)
  err = capsys.readouterr().err
  assert 'a bug' in err and 'loop is closed' not in err
