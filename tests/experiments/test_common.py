"""The parts that studies share: tables, JSON files, queues, flags."""

import argparse
import math
import subprocess
import sys

import pytest
from absl import logging
from etils import epath

from dermvq_jax import errors
from experiments import common


def test_a_table_shows_numbers_with_three_digits_and_no_nan():
  table = common.table(['a', 'b'], [[1.23456, 'x'], [math.nan, 2], [20.0, 3]])
  assert table.splitlines() == [
    '| a | b |',
    '| --- | --- |',
    '| 1.23 | x |',
    '|  | 2 |',
    '| 20.0 | 3 |',
  ]


def test_json_files_make_their_folder(tmp_path):
  path = epath.Path(tmp_path) / 'new' / 'file.json'
  common.write_json(path, {'a': [1, None]})
  assert common.read_json(path) == {'a': [1, None]}
  assert [p.name for p in path.parent.iterdir()] == ['file.json']


def test_a_queue_runs_what_is_missing(tmp_path, caplog):
  folder, ran = epath.Path(tmp_path), []

  def job(name):
    ran.append(name)
    if name == 'c':
      raise KeyboardInterrupt
    return {'name': name}

  jobs = {f'{name}/result.json': lambda name=name: job(name) for name in 'abcd'}
  common.write_json(folder / 'a' / 'result.json', 'already there')
  with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
    common.run_missing(folder, jobs)
  assert ran == ['b', 'c']
  assert '== 2/4 b/result' in caplog.text
  assert common.read_json(folder / 'a' / 'result.json') == 'already there'
  assert common.read_json(folder / 'b' / 'result.json') == {'name': 'b'}
  assert not (folder / 'c').exists()


def test_configs_by_size():
  config = common.load_config('vqvae', 'seed=3', size='smoke')
  assert (config.seed, config.num_train_steps) == (3, 10)
  assert common.load_config('prior:rnn').prior.name == 'rnn'
  with pytest.raises(errors.UserError, match='no field config.sed'):
    common.load_config('vqvae', 'sed=3')


def test_the_dataset_of_a_study(tmp_path, smoke_run):
  parser = common.study_parser('doc', 'experiments.x')
  common.add_data_flags(parser)

  def prepare(*flags):
    args = parser.parse_args([f'--workdir={tmp_path}', *flags])
    return common.prepare_data(args)

  images = prepare('--size=smoke', f'--data_dir={smoke_run}/data')
  assert images.name == 'synthetic_dermoscopy/smoke'
  assert images.facts['image_size'] == 16
  with pytest.raises(errors.UserError, match='--manual_dir=FOLDER'):
    prepare()


def test_user_errors_are_one_line(capsys):
  parser = argparse.ArgumentParser(prog='p')
  with pytest.raises(SystemExit), common.usage_errors(parser):
    raise errors.UserError('what is wrong')
  assert capsys.readouterr().err.endswith('p: error: what is wrong\n')


def test_it_imports_nothing_heavy():
  """The benchmarks measure the memory of processes that import the module."""
  script = 'import sys, experiments.benchmarks.__main__; print(*sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True, check=True
  )
  heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'orbax', 'matplotlib'}
  assert not heavy & set(done.stdout.split())
