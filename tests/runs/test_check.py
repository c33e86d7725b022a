"""Tests of `dermvq check`: what it prints about a run in any state."""

import json
import shutil

import pytest

from dermvq_jax import errors, main
from dermvq_jax.data.datasets import synthetic_dermoscopy
from dermvq_jax.runs import check, logs
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
  expected += ['report/evaluate_val.json: ok', 'report/nearest_val.npz: ok']
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


def halve(path):
  """Keeps the first half of a file."""
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])


def halve_rows(path):
  rows = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(rows[: len(rows) // 2]))


def remove_all(folder, pattern):
  for path in folder.rglob(pattern):
    path.unlink()


def of_split(folder, split):
  return next((folder / IMAGES).glob(f'*-{split}.*'))


def shorten_split(path):
  """Says that the first split has one record less."""
  info = json.loads(path.read_text())
  shards = info['splits'][0]['shardLengths']
  shards[0] = str(int(shards[0]) - 1)
  path.write_text(json.dumps(info))


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


# What an interrupted copy leaves. Each must be found, and without a traceback.
@pytest.mark.parametrize(
  ('damage', 'said'),
  [
    (
      lambda run: shutil.rmtree(run / 'prior/best'),
      'prior/best: DAMAGED: missing, though it was saved',
    ),
    (
      lambda run: shutil.rmtree(run / 'classifier/checkpoints'),
      'classifier/checkpoints/10: DAMAGED: missing, though the metrics go to',
    ),
    (
      lambda run: shutil.rmtree(run / 'vqvae/checkpoints/10'),
      'vqvae/checkpoints/10: DAMAGED: missing, though the metrics go to',
    ),
    (
      lambda run: (run / 'vqvae/metrics.jsonl').unlink(),
      'vqvae/metrics.jsonl: DAMAGED: it is missing',
    ),
    (
      lambda run: halve_rows(run / 'vqvae/metrics.jsonl'),
      'vqvae/metrics.jsonl: DAMAGED: rows after step 5 are missing',
    ),
    (
      lambda run: (run / 'vqvae/metrics.jsonl').write_bytes(b''),
      'vqvae/metrics.jsonl: DAMAGED: rows after step 0 are missing',
    ),
    (
      lambda run: (run / 'vqvae/metrics.jsonl').write_text('{"step": "x"}\n'),
      'vqvae/metrics.jsonl: DAMAGED: line 1 of',
    ),
    (
      lambda run: (run / 'vqvae/metrics.jsonl').write_bytes(
        b'{"step": 1, "\xff": 2}\n'
      ),
      'vqvae/metrics.jsonl: DAMAGED: line 1 of',
    ),
    (
      lambda run: (run / 'prior/config.json').unlink(),
      'prior/config.json: DAMAGED: it is missing',
    ),
    (
      lambda run: (run / 'vqvae/config.json').write_text('null'),
      'vqvae/config.json: DAMAGED: ',
    ),
    (
      lambda run: shutil.rmtree(run / 'prior'),
      'report/evaluate_val.json: DAMAGED: what belongs to it is missing: prior',
    ),
    (
      lambda run: shutil.rmtree(run / 'vqvae/best/10/checksums'),
      'vqvae/best/10: DAMAGED: ',
    ),
    (
      lambda run: of_split(run, 'test').unlink(),
      'synthetic_dermoscopy/smoke test: DAMAGED: ',
    ),
    (
      lambda run: of_split(run, 'train').write_bytes(b''),
      'synthetic_dermoscopy/smoke train: DAMAGED: ',
    ),
    (
      lambda run: halve(of_split(run, 'train')),
      'synthetic_dermoscopy/smoke train: DAMAGED: ',
    ),
    (
      lambda run: (run / IMAGES / 'dataset_info.json').write_text(''),
      'dataset of vqvae: DAMAGED: ',
    ),
    (
      lambda run: shorten_split(run / IMAGES / 'dataset_info.json'),
      'dataset of vqvae: DAMAGED: ',
    ),
    (
      lambda run: remove_all(run / IMAGES, 'label.labels.txt'),
      'dataset of vqvae: DAMAGED: ',
    ),
    (
      lambda run: (run / IMAGES / 'label.labels.txt').write_text(''),
      'dataset of vqvae: DAMAGED: ',
    ),
    (
      lambda run: remove_all(run / IMAGES, 'metadata.json'),
      'dataset of vqvae: DAMAGED: ',
    ),
    (
      lambda run: halve(run / 'report/evaluate_val.json'),
      'report/evaluate_val.json: DAMAGED: unreadable',
    ),
    (
      lambda run: halve(run / 'report/nearest_val.npz'),
      'report/nearest_val.npz: DAMAGED: unreadable',
    ),
    (
      lambda run: (run / 'report/outliers.npz').write_bytes(b'PK'),
      'report/outliers.npz: DAMAGED: unreadable',
    ),
    (
      lambda run: (run / 'report/nearest_val.npz').unlink(),
      'report/evaluate_val.json: DAMAGED: what belongs to it is missing: near',
    ),
  ],
)
def test_what_a_copy_can_miss(run_copy, capsys, damage, said):
  damage(run_copy)
  assert main.main(['check', f'--workdir={run_copy}']) == 1
  assert any(line.startswith(said) for line in lines(capsys))


@pytest.mark.parametrize('stopped_at', [0, 8])
def test_a_run_that_was_stopped_is_whole(run_copy, capsys, stopped_at):
  """Whatever the state after a step, nothing that must be there is missing."""
  folder = run_copy / 'vqvae'
  for step in (8, 10):
    if step > stopped_at:
      shutil.rmtree(folder / 'checkpoints' / str(step))
  if stopped_at < 5:
    shutil.rmtree(folder / 'best')
  for name in ('prior', 'classifier', 'report'):
    shutil.rmtree(run_copy / name)
  rows = [row for row in logs.read(folder) if row['step'] <= stopped_at]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'metrics.jsonl').write_text(text)
  assert check.check(run_lib.Run(run_copy)), lines(capsys)


def test_a_phase_without_its_config_alone(run_copy, capsys):
  for name in ('prior', 'classifier', 'report', 'data'):
    shutil.rmtree(run_copy / name)
  (run_copy / 'vqvae/config.json').unlink()
  assert not check.check(run_lib.Run(run_copy))
  [line] = [line for line in lines(capsys) if 'DAMAGED' in line]
  assert line.startswith('vqvae/config.json: DAMAGED: it is missing')


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
