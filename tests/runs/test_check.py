"""Tests of `dermvq check`: what it prints about a run in any state."""

import json
import shutil

import pytest

from dermvq_jax import errors, main
from dermvq_jax.data.datasets import synthetic_dermoscopy
from dermvq_jax.runs import check
from dermvq_jax.runs import run as run_lib

VERSION = synthetic_dermoscopy.Builder.VERSION
IMAGES = f'data/synthetic_dermoscopy/smoke/{VERSION}'


def lines(capsys):
  return capsys.readouterr().out.splitlines()


def test_a_whole_run(smoke_run, capsys):
  assert check.check(run_lib.Run(smoke_run))
  codes = run_lib.Run(smoke_run).prior.facts['dataset']
  expected = ['No damage found.']
  for phase in ('vqvae', 'prior', 'classifier'):
    expected += [
      f'{phase}/config.json: ok',
      f'{phase}/metrics.jsonl: ok, 4 rows, the last of step 10',
      f'{phase}/checkpoints/8: ok',
      f'{phase}/checkpoints/10: ok',
      f'{phase}/best/10: ok',
    ]
  for dataset in ('synthetic_dermoscopy/smoke', codes):
    expected += [
      f'{dataset} train: ok, 114 records',
      f'{dataset} val: ok, 13 records',
      f'{dataset} test: ok, 13 records',
    ]
  assert sorted(lines(capsys)) == sorted(expected)


def spoil(path):
  """Changes one bit in the middle of a file."""
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def spoil_data(folder):
  """Spoils every file of array data; some of these files are not read."""
  for path in folder.rglob('d/*'):
    spoil(path)


def cut(path):
  path.write_bytes(path.read_bytes()[:-1000])


def largest(folder):
  files = (p for p in folder.rglob('*') if p.is_file())
  return max(files, key=lambda p: p.stat().st_size)


@pytest.mark.parametrize(
  ('damage', 'said'),
  [
    (
      lambda run: (run / 'prior/config.json').write_text('{'),
      ['prior/config.json: DAMAGED', 'dataset of prior: DAMAGED'],
    ),
    (
      lambda run: (run / 'vqvae/metrics.jsonl').write_text('{"step": 1}\n{\n'),
      ['vqvae/metrics.jsonl: DAMAGED: line 2 of '],
    ),
    (
      lambda run: spoil_data(run / 'vqvae/checkpoints/8/default'),
      ['vqvae/checkpoints/8: DAMAGED'],
    ),
    (
      lambda run: spoil_data(run / 'prior/best/10/default'),
      ['prior/best/10: DAMAGED'],
    ),
    (
      lambda run: cut(largest(run / IMAGES)),
      ['synthetic_dermoscopy/smoke train: DAMAGED: record 0 of 114 in '],
    ),
    (
      lambda run: shutil.rmtree(run / 'data/codes'),
      ['dataset of prior: DAMAGED: codes/'],
    ),
  ],
)
def test_damage_is_named(run_copy, capsys, damage, said):
  damage(run_copy)
  assert main.main(['check', f'--workdir={run_copy}']) == 1
  out = lines(capsys)
  assert out[-1] == f'{len(said)} damaged'
  found = [line for line in out if 'DAMAGED' in line]
  for line, start in zip(found, said, strict=True):
    assert line.startswith(start)


def test_codes_outside_the_codebook(run_copy, capsys):
  file = run_copy / 'prior' / 'config.json'
  stored = json.loads(file.read_text())
  stored['facts']['codebook_size'] = 2
  file.write_text(json.dumps(stored))
  assert not check.check(run_lib.Run(run_copy))
  assert 'has codes outside the codebook' in capsys.readouterr().out


def test_it_changes_nothing(run_copy):
  def files():
    every = sorted(p for p in run_copy.rglob('*') if p.is_file())
    return {p: p.read_bytes() for p in every}

  spoil(largest(run_copy / 'vqvae/checkpoints/10/default'))
  before = files()
  assert not check.check(run_lib.Run(run_copy))
  assert files() == before


def test_a_run_of_an_earlier_version_is_not_damaged(run_copy, capsys):
  file = run_copy / 'vqvae' / 'config.json'
  stored = json.loads(file.read_text())
  del stored['format']
  file.write_text(json.dumps(stored))
  assert main.main(['check', f'--workdir={run_copy}']) == 2
  out, err = capsys.readouterr()
  assert 'DAMAGED' not in out
  assert 'this version cannot read' in err and err.count('\n') == 1


def test_no_run(tmp_path):
  with pytest.raises(errors.UserError, match='holds no run'):
    check.check(run_lib.Run(tmp_path))


def test_codes_of_another_vqvae(run_copy, capsys):
  file = run_copy / 'prior' / 'config.json'
  stored = json.loads(file.read_text())
  stored['facts']['vqvae_digest'] = '0123456789abcdef'
  file.write_text(json.dumps(stored))
  assert not check.check(run_lib.Run(run_copy))
  [line] = [line for line in lines(capsys) if 'DAMAGED' in line]
  assert line.startswith('dataset of prior: DAMAGED: the prior in')
  assert 'codes of another VQ-VAE' in line
