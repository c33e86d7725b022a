"""Conditions beside the label, from the CSV of the images to new PNG files."""

import collections
import re
import shutil

import numpy as np
import pytest
from pictures import read_csv, read_png, sample_file

import dermvq_jax
from dermvq_jax import errors, inference, main
from dermvq_jax.data import conditions, prepared
from dermvq_jax.evaluation import evaluate
from dermvq_jax.generation import samples
from dermvq_jax.runs import run as run_lib

# Each takes seconds; the contract of priors has tests of its own.
PRIORS = [
  'gated_pixelcnn',
  *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in ('pixelcnn', 'rnn', 'transformer')
  ),
]
one_prior = pytest.mark.parametrize(
  'workdir', ['gated_pixelcnn'], indirect=True
)


def train(conditioned_run, folder, name, *known):
  """Trains a prior for one step; returns the workdir."""
  workdir = folder / name
  shutil.copytree(conditioned_run / 'vqvae', workdir / 'vqvae')
  argv = ['train', f'--config=prior:{name}+smoke', f'--workdir={workdir}']
  argv += ['--config.num_train_steps=1', '--config.optim.warmup_steps=0']
  argv += [f'--config.conditions.{c}=0.3' for c in known]
  assert main.main(argv) == 0
  return workdir


@pytest.fixture(scope='module', params=PRIORS)
def workdir(request, conditioned_run, tmp_path_factory):
  """A run with a prior that knows sex and age."""
  folder = tmp_path_factory.mktemp('run')
  return train(conditioned_run, folder, request.param, 'sex', 'age')


def test_from_csv_to_png(workdir, tmp_path):
  out = tmp_path / 'out'
  argv = ['sample', f'--workdir={workdir}', f'--out={out}', '--counts=a=2']
  assert main.main([*argv, '--where=age=33,sex=female']) == 0
  rows = read_csv(out / 'metadata.csv')
  assert [row['age'] for row in rows] == ['30-39'] * 2
  assert [row['sex'] for row in rows] == ['female'] * 2
  # Otherwise a condition could have the name of another column.
  assert rows[0].keys() - {'age', 'sex'} <= conditions.RESERVED
  model = dermvq_jax.load(workdir)
  expected = model.sample('a', 2, age='30-39', sex='female')
  assert len(expected) == 2
  for i, image in enumerate(expected):
    np.testing.assert_array_equal(read_png(out / sample_file('a', i)), image)
  codes = model.encode(expected)
  given = model.log_likelihood(codes, ['a'], age=33, sex='female')
  for other in ({}, {'age': 33}, {'age': 33, 'sex': 'male'}):
    assert (model.log_likelihood(codes, ['a'], **other) != given).all()


@one_prior
def test_groups_are_evaluated(workdir):
  """By sex and age, given the class and given all that the prior knows."""
  run = run_lib.Run(workdir)
  result = evaluate.evaluate(run, 'train', num_samples=0)
  assert evaluate.current_result(run, 'train') == result
  assert result.groups.keys() == {'sex', 'age'}
  model, records = inference.Model(run), list(run.codes.split('train'))
  assert result.prior.bits_per_code_given != result.prior.bits_per_code
  mine = [r for r in records if r['sex'] == 0]
  codes, labels = (np.stack([r[k] for r in mine]) for k in ('codes', 'label'))
  ages = [(*model.conditions['age'], None)[r['age']] for r in mine]
  female = result.groups['sex']['female']
  assert female.num_images == len(mine) / 2  # There are two copies of each.
  for found, given in (
    (female.bits_per_code, {}),
    (female.bits_per_code_given, {'sex': 'female', 'age': ages}),
  ):
    nats = -model.log_likelihood(codes, labels, **given)
    bits = nats / codes[0].size / np.log(2)
    lesions = np.array([r['group'] for r in mine])
    means = [bits[lesions == lesion].mean() for lesion in np.unique(lesions)]
    assert found.mean == pytest.approx(np.mean(means), rel=1e-5)


@one_prior
def test_what_no_training_image_shows(workdir, tmp_path, monkeypatch, caplog):
  """A value is refused; values that do not occur together are told."""
  records = [
    {'label': 0, 'sex': 0, 'age': 5},
    {'label': 0, 'sex': 2, 'age': 0},
  ]
  monkeypatch.setattr(prepared.Dataset, 'split', lambda *_, **__: records)
  run, counts = run_lib.Run(workdir), {'a': 1}
  with pytest.raises(errors.UserError, match='no training image has sex male'):
    samples.sample(run, tmp_path / 'a', counts=counts, where={'sex': 'male'})
  assert not (tmp_path / 'a').exists()
  where = {'sex': 'female', 'age': '5'}
  samples.sample(run, tmp_path / 'b', counts=counts, where=where)
  said = 'No training image of a has sex female, age 0-9 together'
  assert said in caplog.text
  caplog.clear()
  samples.sample(run, tmp_path / 'c', counts=counts, where={'age': '5'})
  assert 'together' not in caplog.text
  [row] = read_csv(tmp_path / 'c' / 'metadata.csv')
  assert (row['age'], row['sex']) == ('0-9', '')


@one_prior
def test_combinations_are_balanced(workdir, tmp_path, capsys):
  """Those with training images; the others are named."""
  out, run = tmp_path / 'out', run_lib.Run(workdir)
  argv = ['sample', f'--workdir={workdir}', f'--out={out}']
  assert main.main([*argv, '--balance=label,sex', '--where=age=5']) == 0
  said = capsys.readouterr()
  rows = read_csv(out / 'metadata.csv')
  have = collections.Counter(
    (run.codes.facts['class_names'][r['label']], r['sex'])
    for r in run.images.split('train')
  )
  names = run.codes.facts['conditions']['sex']
  have = {
    (label, names[sex]): n
    for (label, sex), n in have.items()
    if sex < len(names)
  }
  new = collections.Counter((row['label'], row['sex']) for row in rows)
  assert {have[key] + new[key] for key in have} == {max(have.values())}
  assert new.keys() <= have.keys() and new
  assert {row['age'] for row in rows} == {'0-9'}
  # An image has a number of its own in its class, so none is drawn twice.
  assert len({(row['label'], row['id']) for row in rows}) == len(rows)
  row = rows[-1]
  again = dermvq_jax.load(workdir).sample(
    row['label'], ids=[int(row['id'])], sex=row['sex'], age=5
  )
  file = out / row['label'] / row['image']
  np.testing.assert_array_equal(read_png(file), again[0])
  label, sex = min(have)
  told = f'{label}, {sex}: {have[label, sex]} training images, '
  assert told in said.out + said.err
  with pytest.raises(errors.UserError, match='--balance and --where both name'):
    samples.sample(run, out, balance=['label', 'age'], where={'age': '5'})


@one_prior
def test_combinations_without_images_are_left_out(
  workdir, tmp_path, monkeypatch, caplog
):
  values = {'label': np.array([0, 0, 0, 1]), 'sex': np.array([0, 0, 1, 0])}
  monkeypatch.setattr(prepared.Dataset, 'values', lambda *_: values)
  run, out = run_lib.Run(workdir), tmp_path / 'out'
  monkeypatch.setitem(run.codes.facts, 'copies', 1)
  samples.sample(run, out, balance=['label', 'sex'])
  a, b = run.codes.facts['class_names'][:2]
  assert f'are left out: {b}, male' in caplog.text
  found = [(row['label'], row['sex']) for row in read_csv(out / 'metadata.csv')]
  assert found == [(a, 'male'), (b, 'female')]


@one_prior
@pytest.mark.parametrize(
  ('where', 'message'),
  [
    ('sxe=male', "no condition 'sxe'; .* knows age, sex; did you mean sex"),
    ('sex=mael', "there is no sex 'mael'; .*; did you mean male"),
    ('age=99', "there is no age '99'; its values are 0-9, 10-19"),
    ('label=a', 'the label is no condition beside the label'),
  ],
)
def test_mistakes_are_one_line(workdir, tmp_path, capsys, where, message):
  argv = ['sample', f'--workdir={workdir}', f'--out={tmp_path}/out']
  assert main.main([*argv, f'--where={where}']) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert re.search(message, line)
  assert not (tmp_path / 'out').exists()
