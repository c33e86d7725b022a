"""Tests of the command line: exit codes, messages, help."""

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from PIL import Image

from dermvq_jax import errors, main
from dermvq_jax.generation import samples


@pytest.fixture
def places(smoke_run, tmp_path):
  """Workdirs in several states, and files; all may be changed."""
  places = {
    name: tmp_path / name
    for name in ('new', 'file', 'no_prior', 'damaged', 'empty')
    + ('image', 'white', 'text')
  }
  places['run'] = smoke_run
  places['data'] = smoke_run / 'data'
  places['file'].write_text('')
  places['empty'].mkdir()
  shutil.copytree(smoke_run / 'vqvae', places['no_prior'] / 'vqvae')
  (places['damaged'] / 'vqvae').mkdir(parents=True)
  (places['damaged'] / 'vqvae' / 'config.json').write_text('{"config')
  Image.new('RGB', (30, 20)).save(places['image'], format='PNG')
  Image.new('RGB', (30, 20), 'white').save(places['white'], format='PNG')
  places['text'].write_text('no image')
  return places


def mistake(capsys, argv):
  """Runs a command that must fail; returns the line it says on stderr."""
  assert main.main(argv) == 2
  err = capsys.readouterr().err
  assert err.startswith(f'dermvq {argv[0]}: error: ')
  assert err.endswith('\n') and err.count('\n') == 1
  assert 'Traceback' not in err
  return err


VQVAE = ['train', '--config=vqvae:smoke', '--workdir={new}']
VQVAE += ['--config.data_dir={data}']
AGAIN = ['train', '--config=vqvae:smoke', '--workdir={run}']
PRIOR = ['train', '--config=prior:smoke']
SAMPLE = ['sample', '--workdir={run}', '--out={new}']
COMPLETE = [*SAMPLE, '--complete={image}']
RECONSTRUCT = ['reconstruct', '--workdir={run}', '--out={new}']
SCORE = ['score', '--workdir={run}', '--out={new}']


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (
      ['prepare', '--dataset=ham10000/64', '--data_dir={new}'],
      'needs files that you provide',
    ),
    (
      [
        'prepare',
        '--dataset=ham10000/64',
        '--data_dir={new}',
        '--manual_dir={new}',
      ],
      'there is no folder',
    ),
    (
      [
        'prepare',
        '--dataset=ham10000/64',
        '--data_dir={new}',
        '--manual_dir={empty}',
      ],
      'is empty',
    ),
    (
      ['prepare', '--dataset=isic/64', '--data_dir={new}'],
      "no dataset 'isic'",
    ),
    (
      ['prepare', '--dataset=ham10000/65', '--data_dir={new}'],
      'ham10000/64',
    ),
    (
      ['prepare', '--dataset=ham10000', '--data_dir={new}'],
      'ham10000/64',
    ),
    (
      [
        'prepare',
        '--dataset=synthetic_dermoscopy/smoke',
        '--data_dir={file}/x',
      ],
      'Not a directory',
    ),
    (
      ['train', '--config=vqvea', '--workdir={new}'],
      'did you mean vqvae?',
    ),
    (
      ['train', '--config=vqvae:tiny', '--workdir={new}'],
      '128, 256, demo, smoke',
    ),
    ([*VQVAE, '--config.sed=1'], 'config.sed'),
    (
      [*VQVAE, '--config.model.feature=1'],
      'did you mean config.model.features?',
    ),
    (
      [*VQVAE, '--config.model.size=1'],
      'there are activation, attention_heads',
    ),
    ([*VQVAE, '--config.seed=x'], '--config.seed=x'),
    ([*VQVAE, '--config.optim.learning_rate=x'], 'learning_rate=x'),
    ([*VQVAE, '--config.seed'], '--config.seed=VALUE'),
    ([*VQVAE, '--config.model.downsampling=32'], 'not divisible'),
    ([*VQVAE, '--config.model.activation=tanh'], "'relu', 'gelu', 'silu'"),
    ([*VQVAE, '--config.batch_size=9'], 'not divisible'),
    ([*VQVAE, '--config.quantizer.name=x'], "no quantizer named 'x'"),
    ([*VQVAE, '--config.dataset=ham10000/64'], 'dermvq prepare'),
    (
      [
        'train',
        '--config=vqvae:smoke',
        '--workdir={file}',
        '--config.data_dir={data}',
      ],
      'File exists',
    ),
    (
      [
        'train',
        '--config=vqvae:smoke',
        '--workdir={damaged}',
        '--config.data_dir={data}',
      ],
      'config.json is damaged',
    ),
    ([*AGAIN, '--config.seed=1'], 'config.seed was 0, now it is 1'),
    ([*PRIOR, '--workdir={new}'], 'dermvq train --config=vqvae'),
    ([*PRIOR, '--workdir={no_prior}'], 'dermvq encode'),
    (
      [*PRIOR, '--workdir={run}', '--config.copies=2'],
      'no field config.copies',
    ),
    (
      [*PRIOR, '--workdir={run}', '--config.loss=mse'],
      "'cross_entropy', 'bce'",
    ),
    (
      [*PRIOR, '--workdir={run}', '--config.label_smoothing=1'],
      'config.label_smoothing is 1',
    ),
    ([*PRIOR, '--workdir={run}', '--config.loss=bce'], 'config.loss was'),
    (['encode', '--workdir={new}'], 'dermvq train --config=vqvae'),
    (['encode', '--workdir={file}'], 'dermvq train --config=vqvae'),
    (['encode', '--workdir={damaged}'], 'config.json is damaged'),
    (['encode', '--workdir={run}', '--copies=0'], '--copies is 0'),
    (['encode', '--workdir={run}', '--copies=101'], 'give 1 to 8'),
    (['encode', '--workdir={no_prior}'], 'dermvq prepare'),
    (['sample', '--workdir={new}', '--out={new}'], 'train --config=vqvae'),
    (['sample', '--workdir={no_prior}', '--out={new}'], 'no trained prior'),
    ([*SAMPLE, '--counts=melanoma=3'], "no class 'melanoma'; the classes are"),
    ([*SAMPLE, '--counts=0'], 'asks for no image'),
    ([*SAMPLE, '--counts=99999999999'], 'give --counts for 10,000,000 at most'),
    ([*SAMPLE, '--temperature=-1'], 'temperature'),
    ([*SAMPLE, '--temperature=nan'], 'temperature'),
    ([*SAMPLE, '--top_k=-1'], 'top_k is -1; give a whole number'),
    ([*SAMPLE, '--top_p=0'], 'top_p is 0.0; give a number above 0'),
    ([*SAMPLE, '--top_p=1.1'], 'top_p is 1.1'),
    ([*SAMPLE, '--guidance_scale=-1'], 'guidance_scale is -1.0'),
    ([*SAMPLE, '--guidance_scale=inf'], 'guidance_scale is inf'),
    ([*SAMPLE, '--complete={image}'], 'give --complete and --mask'),
    ([*SAMPLE, '--mask=left'], 'give --complete and --mask'),
    ([*COMPLETE, '--mask=middle'], "no mask 'middle'; give left, right"),
    ([*COMPLETE, '--mask={empty}'], 'no mask'),
    ([*COMPLETE, '--mask={text}'], 'unreadable'),
    ([*COMPLETE, '--mask={image}'], 'hides nothing'),  # It is black.
    ([*COMPLETE, '--mask={white}'], 'leaves no code'),
    ([*SAMPLE, '--complete={text}', '--mask=left'], 'unreadable'),
    ([*SAMPLE, '--complete={new}', '--mask=left'], 'there is no file'),
    ([*SAMPLE, '--complete={empty}', '--mask=left'], 'empty is a folder, not'),
    (['sample', '--workdir={run}', '--out={empty}'], 'exists already'),
    (
      ['sample', '--workdir={run}', '--out={file}/x', '--counts=mel=1'],
      'file is a file; give another --out',
    ),
    (RECONSTRUCT, 'either image files or --split'),
    ([*RECONSTRUCT, '--split=val', '{image}'], 'either image files or --split'),
    ([*RECONSTRUCT, '{new}.jpg'], 'there is no file'),
    ([*RECONSTRUCT, '{text}'], 'unreadable'),
    ([*RECONSTRUCT, '{empty}'], 'there is no JPEG'),
    ([*RECONSTRUCT, '--split=val', '--num_images=0'], '--num_images is 0'),
    (
      [*RECONSTRUCT, '{image}', '--through_prior', '--label=x'],
      "no class 'x'",
    ),
    (
      [
        'reconstruct',
        '--workdir={no_prior}',
        '--out={new}',
        '--through_prior',
        '{image}',
      ],
      'no trained prior',
    ),
    (['evaluate', '--workdir={new}'], 'dermvq train --config=vqvae'),
    (['evaluate', '--workdir={no_prior}'], 'no trained prior'),
    (
      ['evaluate', '--workdir={run}', '--data_dir={empty}'],
      'is not prepared in',
    ),
    (
      ['evaluate', '--workdir={run}', '--num_samples=3'],
      'give --num_samples from 10',
    ),
    (
      ['train', '--config=classifier', '--workdir={new}'],
      'dermvq train --config=vqvae',
    ),
    (
      [
        *('train', '--config=classifier', '--workdir={run}'),
        '--config.classifier.features=20',
      ],
      'multiple of 32',
    ),
    (
      [
        *('train', '--config=classifier', '--workdir={run}'),
        '--config.classifier.num_stages=5',
        '--config.classifier.features=128',
      ],
      'cannot be halved 5 times',
    ),
    ([*SAMPLE, '--reject_memorised=2'], '--reject_memorised is 2.0'),
    ([*SAMPLE, '--reject_memorised=nan'], '--reject_memorised is nan'),
    ([*SAMPLE, '--reject_unlike=1'], '--reject_unlike is 1.0'),
    ([*SCORE, '--alpha=0'], '--alpha is 0.0'),
    (SCORE, 'either image files or --split'),
    (
      [*SAMPLE, '--reject_memorised=0.6', '--data_dir={empty}'],
      'dermvq prepare',
    ),
    (
      ['evaluate', '--workdir={run}', '--inception={empty}'],
      'is not an .npz file of Inception-v3',
    ),
    (['report', '--workdir={new}'], 'dermvq train --config=vqvae'),
    (['report', '--workdir={no_prior}'], 'dermvq prepare'),
    (['check', '--workdir={new}'], 'holds no run'),
    (
      ['demo', '--size=smoke', '--workdir={file}'],
      'Not a directory',
    ),
  ],
)
def test_mistakes(places, capsys, argv, message):
  err = mistake(capsys, [arg.format_map(places) for arg in argv])
  assert message in err
  assert not places['new'].exists()
  assert places['file'].read_text() == ''


@pytest.mark.slow
def test_prior_of_another_vqvae(run_copy, tmp_path, capsys):
  """The VQ-VAE was trained again, with another seed."""
  shutil.rmtree(run_copy / 'vqvae')
  argv = ['train', '--config=vqvae:smoke', f'--workdir={run_copy}']
  assert main.main([*argv, '--config.seed=1']) == 0
  capsys.readouterr()
  out = f'--out={tmp_path}/out'
  for argv in (
    ['sample', f'--workdir={run_copy}', out],
    ['reconstruct', f'--workdir={run_copy}', out, '--split=val'],
    ['report', f'--workdir={run_copy}'],
  ):
    assert 'codes of another VQ-VAE' in mistake(capsys, argv)
  argv = ['train', '--config=prior:smoke', f'--workdir={run_copy}']
  assert 'dermvq encode' in mistake(capsys, argv)
  assert main.main(['encode', f'--workdir={run_copy}', '--copies=1']) == 0
  capsys.readouterr()
  assert 'vqvae_digest' in mistake(capsys, argv)
  # After the old prior is moved away, a new one can be trained.
  (run_copy / 'prior').rename(tmp_path / 'old')
  short = ['--config.num_train_steps=1', '--config.optim.warmup_steps=0']
  assert main.main([*argv, *short]) == 0
  argv = ['sample', f'--workdir={run_copy}', out, '--counts=1']
  assert main.main(argv) == 0
  assert len(os.listdir(tmp_path / 'out')) == 7 + 2


def test_a_missing_package_is_one_line(monkeypatch, capsys):
  """After the small installation, which can use exports only."""

  def fail(name):
    def import_it(*args, **kwargs):
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)

    monkeypatch.setattr(samples, 'sample', import_it)
    return ['sample', '--workdir=x', '--out=y']

  assert 'needs the package orbax,' in mistake(capsys, fail('orbax.checkpoint'))
  with pytest.raises(ModuleNotFoundError):  # a bug
    main.main(fail('dermvq_jax.none'))


def test_system_failures(monkeypatch, capsys):
  def fail_with(error):
    def fail(*args, **kwargs):
      raise error

    monkeypatch.setattr(samples, 'sample', fail)
    return ['sample', '--workdir=x', '--out=y']

  err = mistake(capsys, fail_with(PermissionError(13, 'Denied', '/readonly')))
  assert '/readonly: Denied' in err
  err = mistake(capsys, fail_with(OSError(28, 'No space left on device')))
  assert 'No space left' in err
  for number in (errno.EDQUOT, errno.EIO, errno.ESTALE):
    err = mistake(capsys, fail_with(OSError(number, os.strerror(number))))
    assert os.strerror(number) in err
  argv = fail_with(FileNotFoundError(2, 'a bug, not a mistake'))
  with pytest.raises(FileNotFoundError):
    main.main(argv)
  assert main.main(fail_with(KeyboardInterrupt())) == 130
  assert 'the same dermvq sample command resumes' in capsys.readouterr().err
  for number, code in (
    (signal.SIGTERM, 75),
    (signal.SIGHUP, 75),
    (signal.SIGINT, 130),
  ):
    assert main.main(fail_with(errors.StoppedError(number))) == code
    assert 'Saved; the same command resumes' in capsys.readouterr().err


def test_names_in_messages_are_escaped(monkeypatch, capsys):
  def fail(*args, **kwargs):
    raise errors.UserError('no class \x1b]0;owned\x07\nnv\u202e')

  monkeypatch.setattr(samples, 'sample', fail)
  err = mistake(capsys, ['sample', '--workdir=x', '--out=y'])
  assert 'no class \\x1b]0;owned\\x07\\nnv\\u202e' in err


@pytest.mark.slow
@pytest.mark.parametrize('damage', [False, True])
def test_a_reader_that_has_enough(run_copy, damage):
  """`dermvq check | head -1` says whether there is damage."""
  if damage:
    (run_copy / 'prior' / 'metrics.jsonl').write_text('damage\n')
  command = '"$0" -m dermvq_jax.main check --workdir="$1" | head -1'
  done = subprocess.run(
    ['bash', '-c', f'{command}; exit ${{PIPESTATUS[0]}}']
    + [sys.executable, str(run_copy)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == damage
  assert 'Traceback' not in done.stderr and len(done.stdout.splitlines()) == 1


def test_whole_path_in_single_commands(run_copy, tmp_path, capsys):
  """The commands that `demo` combines; the first three have nothing to do."""
  for argv, said in (
    (
      [
        'train',
        '--config=vqvae:smoke+sharpen',
        f'--config.start_from={run_copy}/squared_error',
      ],
      'already trained',
    ),
    (['encode', '--copies=1'], 'already prepared'),
    (['train', '--config', 'prior:smoke'], 'already trained'),
    (['sample', f'--out={tmp_path}/a', '--counts=mel=1'], f'{tmp_path}/a'),
    (
      [
        'reconstruct',
        f'--out={tmp_path}/b',
        '--split=test',
        '--num-images=2',
        '--through-prior',
      ],
      'perplexity',
    ),
    (
      [
        'sample',
        f'--out={tmp_path}/c',
        '--counts=mel=1',
        '--top-k=9',
        '--top-p=0.9',
        '--guidance-scale=2',
      ],
      f'{tmp_path}/c',
    ),
    (['evaluate', '--split=test', '--num-samples=0'], 'bits per code'),
    (['report', '--seed=3'], 'index.html'),
    (['check'], 'No damage found.'),
  ):
    assert main.main([*argv, '--workdir', str(run_copy)]) == 0
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
  made = {'mel', 'metadata.csv', 'samples.json', 'sheet.png'}
  assert set(os.listdir(tmp_path / 'a')) == made
  assert len(os.listdir(tmp_path / 'b')) == 6
  [row] = (tmp_path / 'c' / 'metadata.csv').read_text().splitlines()[1:]
  assert row == 'synthetic_mel_00000.png,mel,true,0,0,1.0,9,0.9,2.0,0.0,1.0'
  assert (run_copy / 'report' / 'evaluate_test.json').exists()


def test_demo_again_in_the_default_folder(
  run_copy, tmp_path, monkeypatch, capsys
):
  """The demo resumes; here only the evaluation and the report are missing."""
  (tmp_path / 'runs').mkdir()
  run_copy.rename(tmp_path / 'runs' / 'demo')
  shutil.rmtree(tmp_path / 'runs' / 'demo' / 'report')
  monkeypatch.chdir(tmp_path)
  assert main.main(['demo', '--size=smoke']) == 0
  captured = capsys.readouterr()
  out = captured.out
  assert (out + captured.err).count('already') == 6
  for i in range(1, 9):
    assert f'== {i}/8' in out
  assert 'Open runs/demo/report/index.html' in out
  assert os.path.exists('runs/demo/report/index.html')


def test_the_demo_leaves_another_run_alone(first_copy, capsys):
  before = sorted(first_copy.rglob('*'))
  assert main.main(['demo', '--size=smoke', f'--workdir={first_copy}']) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert 'holds another run; give a new folder as --workdir' in line
  assert sorted(first_copy.rglob('*')) == before


def test_prepare(tmp_path, capsys):
  argv = ['prepare', '--dataset=synthetic_dermoscopy/smoke']
  argv.append(f'--data-dir={tmp_path}')
  for _ in range(2):
    assert main.main(argv) == 0
    *_, images, groups, following = capsys.readouterr().out.splitlines()
    assert images.split()[:2] == ['images', '114']
    assert 'group of its own' in groups
    assert following.startswith('Next: dermvq train --config=vqvae')


def test_profile_writes_a_trace(run_copy):
  """Here the trace is of the last steps: the run resumes at step 8 of 10."""
  shutil.rmtree(run_copy / 'prior' / 'checkpoints' / '10')
  argv = ['train', '--config=prior:smoke', f'--workdir={run_copy}', '--profile']
  assert main.main(argv) == 0
  folder = run_copy / 'prior' / 'profile' / 'plugins' / 'profile'
  (whole,) = folder.glob('*/*.xplane.pb')  # what TensorBoard and xprof open
  assert whole.stat().st_size > 1000
  (events,) = folder.glob('*/*.trace.json.gz')
  events = json.loads(gzip.decompress(events.read_bytes()))['traceEvents']
  steps = {e['args']['step_num'] for e in events if e.get('name') == 'train'}
  assert steps == {'10'}
  assert any('train_step' in e.get('name', '') for e in events)


def test_datasets_are_not_prepared_in_a_bucket(capsys):
  argv = ['prepare', '--dataset=synthetic_dermoscopy/smoke']
  assert main.main([*argv, '--data_dir=gs://bucket/data']) == 2
  assert 'give a local folder as --data_dir' in capsys.readouterr().err
