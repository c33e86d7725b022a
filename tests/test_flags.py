"""Tests of the flags of all commands and of their help."""

import importlib.util

import pytest

import dermvq_jax
from dermvq_jax import flags, main

COMMANDS = (
  'prepare',
  'train',
  'encode',
  'sample',
  'reconstruct',
  'evaluate',
  'report',
  'explore',
  'check',
  'demo',
)


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ([], 'COMMAND'),
    (['paint'], "'paint'"),
    (['train', '--workdir=x'], '--config'),
    (['train', '--config=vqvae'], '--workdir'),
    (
      ['train', '--config=vqvae', '--workdir=x', '--lr=3'],
      'written --config.lr=',
    ),
    (['smaple', '--workdir=x'], "'smaple'; did you mean sample?"),
    (['sample', '--workdri=x', '--out=y'], 'did you mean --workdir?'),
    (['sample', '--guidance=2'], '--guidance=2; did you mean --guidance_scale'),
    (['sample', '--workdir=x'], '--out'),
    (['sample', '--workdir=x', '--out=y', '--counts=many'], "'many'"),
    (['sample', '--workdir=x', '--out=y', '--counts=mel=-1'], "'mel=-1'"),
    (['sample', '--workdir=x', '--out=y', '--counts='], 'CLASS=NUMBER'),
    (
      ['sample', '--workdir=x', '--out=y', '--counts=1', '--balance'],
      'not allowed with',
    ),
    (['sample', '--workdir=x', '--out=y', '--where=age'], 'NAME=VALUE,...'),
    (['sample', '--workdir=x', '--out=y', '--where=sex='], 'such as age=60,'),
    (
      ['sample', '--workdir=x', '--out=y', '--where=sex=male,sex=female'],
      "'sex=male,sex=female' gives sex twice",
    ),
    (['sample', '--wheer=sex=male'], 'did you mean --where'),
    (['sample', '--workdir=x', '--out=y', '--seed=-1'], "'-1'"),
    (['sample', '--workdir=x', '--out=y', f'--seed={10**20}'], 'number from'),
    (['sample', '--workdir=x', '--out=y', '--temp=1'], '--temp'),
    (['sample', '--workdir=x', '--out=y', '--top_k=1.5'], "'1.5'"),
    (['evaluate', '--workdir=x', '--split=all'], "'all'"),
    (['sample', '--workdir=x', '--out=y', '--config.seed=1'], 'only dermvq tr'),
    (['reconstruct', '--workdir=x', '--out=y', '--split=all'], "'all'"),
    (['demo', '--size=large'], "'large'"),
    (['explore', '--port=0'], "'0' is not a port"),
    (['explore', '--port=http'], "'http' is not a port"),
    (['explore', '--compare='], 'the path is empty'),
    (['check', '--workdir='], 'is a variable of the shell not set?'),
    (['encode', '--workdir=x', '--data_dir='], 'path is empty'),
    (['check', '--workdir=--'], 'argument --workdir: '),
    (['encode', '--workdir=x', '--copies=--'], "--copies: '--' is no value"),
    (['check', '--workdir=~nobody-here/x'], 'give ./~nobody-here/x'),
    (['check', '--workdir=a\udcff'], "'a\\udcff' is not UTF-8"),
    (['check', '--workdir=a\0b'], 'cannot hold the character \\x00'),
    (['check', '--workdir=x', 'a\nb'], 'error: unrecognized arguments: a\\nb'),
  ],
)
def test_mistakes_in_flags(argv, message, capsys):
  with pytest.raises(SystemExit) as e:
    main.main(argv)
  assert e.value.code == 2
  err = capsys.readouterr().err
  assert message in err.splitlines()[-1]
  assert err.startswith('usage: dermvq')


@pytest.mark.parametrize('command', COMMANDS)
def test_help(command, capsys):
  with pytest.raises(SystemExit) as e:
    main.main([command, '--help'])
  assert e.value.code == 0
  out = capsys.readouterr().out
  assert f'usage: dermvq {command}' in out
  assert f'examples:\n  dermvq {command} --' in out


def test_help_of_all(capsys):
  with pytest.raises(SystemExit) as e:
    main.main(['--help'])
  assert e.value.code == 0
  out = capsys.readouterr().out
  for command in COMMANDS:
    assert f'\n    {command}' in out


@pytest.mark.parametrize('command', COMMANDS)
def test_examples_are_valid(command, capsys):
  with pytest.raises(SystemExit):
    main.main([command, '--help'])
  examples = capsys.readouterr().out.partition('examples:\n')[2].splitlines()
  assert examples
  for example in examples:
    args = flags.parse(example.split()[1:])
    assert args.command == command


def test_version(capsys):
  with pytest.raises(SystemExit) as e:
    main.main(['--version'])
  assert e.value.code == 0
  assert capsys.readouterr().out.strip() == dermvq_jax.__version__


def test_hyphens_and_underscores():
  args = flags.parse(
    [
      'reconstruct',
      'my-image_1.jpg',
      '--num-images=3',
      '--through-prior',
      '--workdir',
      'my-run_1',
      '--out=a-b_c',
      '--data-dir=d-e_f',
    ]
  )
  assert args.images == ['my-image_1.jpg']
  assert args.num_images == 3 and args.through_prior
  assert (args.workdir, args.out) == ('my-run_1', 'a-b_c')
  assert args.data_dir == 'd-e_f'
  args = flags.parse(
    ['train', '--config=vqvae', '--workdir=x', '--config.data_dir=a-b']
  )
  assert args.overrides == ['--config.data_dir=a-b']


def test_home_folders(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  args = flags.parse(
    ['reconstruct', '~/a.png', 'b.png', '--workdir=~/run', '--out=~']
    + ['--data_dir=~/data']
  )
  assert args.images == ['/home/me/a.png', 'b.png']
  assert (args.workdir, args.out) == ('/home/me/run', '/home/me')
  assert args.data_dir == '/home/me/data'
  args = flags.parse(
    ['sample', '--workdir=./~x', '--out=y', '--complete=~/a', '--mask=~/b']
  )
  assert (args.complete, args.mask) == ('/home/me/a', '/home/me/b')
  assert args.workdir == './~x'
  args = flags.parse(
    ['prepare', '--dataset=x/y', '--manual_dir=~/m', '--data_dir=gs://b/~']
  )
  assert (args.manual_dir, args.data_dir) == ('/home/me/m', 'gs://b/~')
  args = flags.parse(['evaluate', '--workdir=x', '--inception=~/i.npz'])
  assert args.inception == '/home/me/i.npz'


@pytest.mark.parametrize(
  ('text', 'counts'),
  [
    ('8', {'': 8}),
    ('mel=2,nv=3', {'mel': 2, 'nv': 3}),
    ('1,mel=2', {'': 1, 'mel': 2}),
  ],
)
def test_counts(text, counts):
  argv = ['sample', '--workdir=x', '--out=y', f'--counts={text}']
  assert flags.parse(argv).counts == counts


@pytest.mark.parametrize(
  ('workdir', 'client', 'message'),
  [
    ('s3://bucket/run', True, 'neither a local folder nor gs://BUCKET'),
    ('gs://bucket/run', None, 'pip install gcsfs'),
  ],
)
def test_buckets_that_can_not_be_opened(
  workdir, client, message, monkeypatch, capsys
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: client)
  with pytest.raises(SystemExit) as e:
    main.main(['check', f'--workdir={workdir}'])
  assert e.value.code == 2
  assert message in capsys.readouterr().err
