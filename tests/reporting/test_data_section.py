"""The report's section about the data."""

import shutil

from dermvq_jax import config_files
from dermvq_jax.reporting import data_section
from dermvq_jax.runs import run as run_lib


def test_images_are_counted_by_class_and_condition(conditioned_run):
  run = run_lib.Run(conditioned_run)
  section = data_section.section(run)
  assert [table.columns[0] for table in section.tables] == [
    *('class', 'sex', 'age')
  ]
  records = [list(run.images.split(s)) for s in ('train', 'val', 'test')]
  _, sexes, _ = section.tables
  assert [row[0] for row in sexes.rows] == [
    *('female', 'male', 'not known', 'all')
  ]
  for i in range(3):
    expected = [str(sum(r['sex'] == i for r in split)) for split in records]
    assert list(sexes.rows[i][1:]) == expected
  assert list(sexes.rows[-1][1:]) == [str(len(split)) for split in records]
  assert len(section.text) == 2  # There is no prior yet.


def test_what_the_prior_knows_is_said(conditioned_run, tmp_path):
  shutil.copytree(conditioned_run / 'vqvae', tmp_path / 'run' / 'vqvae')
  run = run_lib.Run(tmp_path / 'run', conditioned_run / 'data')
  config = config_files.load('prior:smoke', ['--config.conditions.sex=0.3'])
  run.prior.start(config, {})
  said = data_section.section(run).text[-1]
  assert said.startswith('The prior knows label (10%), sex (30%). In brackets')
  assert said.endswith('It does not know age.')


def test_what_a_model_card_says(conditioned_run, tmp_path):
  shutil.copytree(conditioned_run / 'vqvae', tmp_path / 'run' / 'vqvae')
  run = run_lib.Run(tmp_path / 'run', conditioned_run / 'data')
  assert data_section.known_conditions(run) == {}
  config = config_files.load('prior:smoke', ['--config.conditions.sex=0.3'])
  run.prior.start(config, {'conditions': run.images.facts['conditions']})
  sexes = [int(record['sex']) for record in run.images.split('train')]
  assert data_section.known_conditions(run) == {
    'sex': [f'female ({sexes.count(0)})', f'male ({sexes.count(1)})']
  }
  away = run_lib.Run(tmp_path / 'run', tmp_path / 'elsewhere')
  assert data_section.known_conditions(away) == {'sex': ['female', 'male']}
