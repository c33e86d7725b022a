"""The command line: commands and flags, nothing else."""

import argparse
import errno
import importlib.util
import signal
import sys
from collections.abc import Callable, Sequence

from absl import flags

from dermvq_jax import __version__, errors
from dermvq_jax.training import compile_cache, host_memory

_DESCRIPTION = """\
Trains a VQ-VAE on dermoscopic images and an autoregressive prior on its codes,
and makes new images.

A run is one folder, the workdir:
  dermvq prepare --dataset=ham10000/64 --manual_dir=DOWNLOADS --data_dir=DATA
  dermvq train --config=vqvae --workdir=RUN --config.data_dir=DATA
  dermvq encode --workdir=RUN
  dermvq train --config=prior --workdir=RUN
  dermvq sample --workdir=RUN --counts=mel=16,nv=16 --out=SAMPLES
  dermvq evaluate --workdir=RUN

`dermvq demo` does all of it on generated images, in minutes.
"""
_MISTAKE = 2  # exit code, as argparse's
_DAMAGED = 1  # exit code of dermvq check
_INTERRUPTED = 130  # exit code, as the shell's
# Exit code after SIGTERM, EX_TEMPFAIL of sysexits.h: all is saved, start the
# same command again. 143, the shell's, would be that of a process that died.
_STOPPED = 75
# What a wrong path, missing permissions or a full disk give.
_SYSTEM_ERRORS = {
  errno.EACCES,
  errno.EEXIST,
  errno.EISDIR,
  errno.ENAMETOOLONG,
  errno.ENOSPC,
  errno.ENOTDIR,
  errno.EPERM,
  errno.EROFS,
}


def _run_of(args: argparse.Namespace):
  """The run that a command is about."""
  from dermvq_jax.runs import run

  return run.Run(args.workdir, getattr(args, 'data_dir', ''))


def _controls_of(args: argparse.Namespace) -> dict[str, float | int]:
  """How images are sampled, as `sampler.Controls` names it."""
  names = ('temperature', 'top_k', 'top_p', 'guidance_scale')
  return {name: getattr(args, name) for name in names}


def _prepare(args: argparse.Namespace):
  from dermvq_jax.data import prepare

  prepared = prepare.run(
    args.dataset, args.data_dir, args.manual_dir, overwrite=args.overwrite
  )
  for split, info in prepared.info.splits.items():
    print(f'{split}: {info.num_examples} images')


def _train(args: argparse.Namespace):
  from dermvq_jax import config_files
  from dermvq_jax.runs import hosts
  from dermvq_jax.training import loop

  config = config_files.load(args.config, args.overrides)
  hosts.initialize(args.coordinator, args.num_processes, args.process_id)
  loop.train(config, _run_of(args), profile=args.profile)


def _encode(args: argparse.Namespace):
  from dermvq_jax.generation import encode

  encode.encode(_run_of(args), args.copies)


def _sample(args: argparse.Namespace):
  from dermvq_jax.generation import samples

  samples.sample(
    _run_of(args),
    args.out,
    counts=None if args.balance else args.counts,
    balance=args.balance,
    seed=args.seed,
    complete=args.complete,
    mask=args.mask,
    reject_memorised=args.reject_memorised,
    **_controls_of(args),
  )


def _reconstruct(args: argparse.Namespace):
  from dermvq_jax.generation import reconstructions

  reconstructions.reconstruct(
    _run_of(args),
    args.out,
    paths=args.images,
    split=args.split,
    num_images=args.num_images,
    through_prior=args.through_prior,
    label=args.label,
  )


def _evaluate(args: argparse.Namespace):
  from dermvq_jax.evaluation import evaluate, feature_spaces

  evaluate.evaluate(
    _run_of(args),
    args.split,
    space=feature_spaces.Inception(args.inception) if args.inception else None,
    num_samples=args.num_samples,
    seed=args.seed,
    **_controls_of(args),
  )


def _check(args: argparse.Namespace) -> int:
  from dermvq_jax.runs import check

  return 0 if check.check(_run_of(args)) else _DAMAGED


def _report(args: argparse.Namespace):
  from dermvq_jax.reporting import report

  report.report(_run_of(args), args.seed)


def _demo(args: argparse.Namespace):
  from dermvq_jax import demo

  demo.demo(args.workdir, args.size)


def _folder(text: str) -> str:
  """A path that this installation can open."""
  scheme, separator, _ = text.partition('://')
  if separator and scheme != 'gs':
    raise argparse.ArgumentTypeError(
      f'{text!r} is neither a local folder nor gs://BUCKET/...'
    )
  if separator and not importlib.util.find_spec('gcsfs'):
    raise argparse.ArgumentTypeError(
      f'{text!r} needs a client for buckets: pip install gcsfs'
    )
  return text


def _counts(text: str) -> dict[str, int]:
  """'mel=16,nv=4' or '8' to counts per class; '' stands for every class."""
  try:
    counts = {}
    for part in text.split(','):
      name, _, number = part.rpartition('=')
      counts[name] = int(number)
    if min(counts.values()) < 0:
      raise ValueError
    return counts
  except ValueError:
    raise argparse.ArgumentTypeError(
      f'{text!r} is neither a number nor CLASS=NUMBER,...'
    ) from None


def _seed_number(text: str) -> int:
  try:
    seed = int(text)
    if not 0 <= seed < 2**32:
      raise ValueError
    return seed
  except ValueError:
    raise argparse.ArgumentTypeError(
      f'{text!r} is no whole number from 0 to {2**32 - 1}'
    ) from None


def _add_seed(sub: argparse.ArgumentParser):
  sub.add_argument('--seed', type=_seed_number, default=0, help='default: 0')


def _add_evaluation(sub: argparse.ArgumentParser):
  """Adds what `dermvq evaluate` looks at."""
  sub.add_argument(
    '--split',
    choices=('train', 'val', 'test'),
    default='val',
    help='of the codes that the prior was trained on (default: val)',
  )
  sub.add_argument(
    '--num_samples',
    type=int,
    metavar='N',
    help='images to draw; 0 for none, which is fast (default: as many as '
    'another split has, which measures the floor)',
  )
  sub.add_argument(
    '--inception',
    metavar='FILE',
    help='compare images in the features of the standard FID, with the weights '
    'in this .npz file; the README tells where to get them (default: in those '
    "of the run's classifier)",
  )
  _add_controls(sub)
  _add_seed(sub)


def _add_controls(sub: argparse.ArgumentParser):
  """Adds how images are drawn."""
  sub.add_argument(
    '--temperature',
    type=float,
    default=1.0,
    help='below 1: more typical, less varied (default: 1)',
  )
  sub.add_argument(
    '--top_k',
    type=int,
    default=0,
    metavar='K',
    help='draw each code from the K most likely ones (default: 0, from all)',
  )
  sub.add_argument(
    '--top_p',
    type=float,
    default=1.0,
    metavar='P',
    help='draw each code from the fewest that have the probability P together '
    '(default: 1, from all)',
  )
  sub.add_argument(
    '--guidance_scale',
    type=float,
    default=1.0,
    metavar='S',
    help='above 1: more typical of the class (default: 1, off)',
  )


def _add_sampling(sub: argparse.ArgumentParser):
  """Adds what `dermvq sample` draws, and how."""
  _add_seed(sub)
  number = sub.add_mutually_exclusive_group()
  number.add_argument(
    '--counts',
    type=_counts,
    default=_counts('8'),
    metavar='N|CLASS=N,...',
    help='images of every class, or of some (default: 8)',
  )
  number.add_argument(
    '--balance',
    action='store_true',
    help='as many as even out the classes of the training split',
  )
  _add_controls(sub)
  sub.add_argument(
    '--complete',
    metavar='IMAGE',
    help='complete this image instead, of which --mask hides a part',
  )
  sub.add_argument(
    '--mask',
    metavar='NAME|FILE',
    help='left, right, top, bottom (halves), center, border, or an image file '
    'that is white where --complete is to be hidden',
  )
  sub.add_argument(
    '--reject_memorised',
    type=float,
    default=0.0,
    metavar='T',
    help='leave out images that look copied from a training image: whose '
    'distance, by pixels, to the nearest one is less than T times the mean to '
    'the nearest five lesions; 0.6 is a good T, dermvq evaluate tells the best '
    '(default: 0, off)',
  )


def _add_reconstructing(sub: argparse.ArgumentParser):
  """Adds what `dermvq reconstruct` takes besides image files."""
  sub.add_argument(
    '--split',
    choices=('train', 'val', 'test'),
    help='images of the dataset that the VQ-VAE was trained on',
  )
  sub.add_argument(
    '--num_images', type=int, default=16, help='of --split (default: 16)'
  )
  sub.add_argument(
    '--through_prior',
    action='store_true',
    help="also decode the prior's most likely codes, each given the image's "
    'true codes before it',
  )
  sub.add_argument(
    '--label',
    metavar='CLASS',
    help='class of IMAGE for --through_prior (default: unknown)',
  )


def _add_hosts(sub: argparse.ArgumentParser):
  """Adds how the processes of several hosts find each other."""
  hosts = sub.add_argument_group(
    'several hosts',
    'The same command on each, with one workdir that all reach. Cloud TPU VMs '
    'find each other; elsewhere:',
  )
  hosts.add_argument(
    '--coordinator',
    default='',
    metavar='HOST:PORT',
    help='of process 0, where all others reach it',
  )
  hosts.add_argument('--num_processes', type=int, metavar='N')
  hosts.add_argument(
    '--process_id', type=int, metavar='I', help='of this one, from 0'
  )


def _add_preparing(sub: argparse.ArgumentParser):
  sub.add_argument(
    '--dataset',
    required=True,
    metavar='NAME/SIZE',
    help='ham10000, isic2018, isic2019, image_folder (your own images) or '
    'synthetic_dermoscopy with /64, /128 or /256 pixels; dermamnist with /28, '
    '/64, /128 or /224. Without --manual_dir it says what to download',
  )
  sub.add_argument(
    '--manual_dir', metavar='DIR', help='where you put the downloaded files'
  )
  sub.add_argument('--overwrite', action='store_true', help='prepare again')


def _parser() -> argparse.ArgumentParser:
  formatter = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    'dermvq', description=_DESCRIPTION, formatter_class=formatter
  )
  parser.add_argument('--version', action='version', version=__version__)
  commands = parser.add_subparsers(
    title='commands', metavar='COMMAND', required=True
  )

  def command(
    name: str, run: Callable, text: str, *examples: str
  ) -> argparse.ArgumentParser:
    lines = ''.join(f'  dermvq {name} {e}\n' for e in examples)
    sub = commands.add_parser(
      name,
      help=text,
      description=text,
      epilog=f'examples:\n{lines}',
      formatter_class=formatter,
      allow_abbrev=False,
    )
    sub.set_defaults(run=run, command=name)
    return sub

  def workdir(sub, **kwargs):
    sub.add_argument(
      '--workdir',
      type=_folder,
      metavar='DIR',
      help='folder of the run, local or gs://BUCKET/...',
      **kwargs,
    )

  def data_dir(sub, **kwargs):
    sub.add_argument(
      '--data_dir', metavar='DIR', help='folder of prepared datasets', **kwargs
    )

  sub = command(
    'prepare',
    _prepare,
    'Turns an archive, or the embedded generator, into records to train from.',
    '--dataset=synthetic_dermoscopy/64 --data_dir=DATA',
    '--dataset=ham10000/64 --manual_dir=DOWNLOADS --data_dir=DATA',
    '--dataset=image_folder/64 --manual_dir=IMAGES --data_dir=DATA',
  )
  _add_preparing(sub)
  data_dir(sub, required=True)

  sub = command(
    'train',
    _train,
    'Trains a phase, or goes on where it stopped.',
    '--config=vqvae --workdir=RUN --config.data_dir=DATA',
    '--config=vqvae:smoke --workdir=/tmp/run --config.num_train_steps=20',
    '--config=prior --workdir=RUN --config.prior.num_layers=15',
    '--config=classifier --workdir=RUN',
  )
  sub.add_argument(
    '--config',
    required=True,
    metavar='NAME[:SIZE]',
    help='vqvae, prior or classifier, with :demo or :smoke for small ones; or '
    'a .py file. '
    '--config.FIELD=VALUE changes a field; configs/*.py lists them',
  )
  workdir(sub, required=True)
  sub.add_argument(
    '--profile',
    action='store_true',
    help="write a trace of a few steps to the phase's folder, for TensorBoard "
    'and xprof',
  )
  _add_hosts(sub)

  sub = command(
    'encode',
    _encode,
    "Makes the dataset of codes, with the run's frozen VQ-VAE.",
    '--workdir=RUN',
    '--workdir=RUN --copies=8',
  )
  workdir(sub, required=True)
  data_dir(sub, default='')
  sub.add_argument(
    '--copies',
    type=int,
    default=1,
    help='encode each training image so often, randomly flipped and turned; '
    'train the prior with --config.copies of the same number (default: 1)',
  )

  sub = command(
    'sample',
    _sample,
    'Makes new images: a folder of PNG files a class, a sheet and '
    'metadata.csv; all marked as synthetic.',
    '--workdir=RUN --out=SAMPLES',
    '--workdir=RUN --out=SAMPLES --counts=mel=16,nv=4 --seed=1',
    '--workdir=RUN --out=SAMPLES --counts=100 --temperature=0.9',
    '--workdir=RUN --out=SAMPLES --guidance_scale=1.5 --top_p=0.95',
    '--workdir=RUN --out=SAMPLES --balance',
    '--workdir=RUN --out=SAMPLES --complete=lesion.jpg --mask=bottom',
    '--workdir=RUN --out=SAMPLES --reject_memorised=0.6',
  )
  workdir(sub, required=True)
  sub.add_argument(
    '--out',
    required=True,
    type=_folder,
    metavar='DIR',
    help='new folder for the images, local or gs://BUCKET/...',
  )
  _add_sampling(sub)
  data_dir(sub, default='')

  sub = command(
    'reconstruct',
    _reconstruct,
    'Sends images through the VQ-VAE and tells the error.',
    '--workdir=RUN --out=OUT lesion.jpg folder_of_images/',
    '--workdir=RUN --out=OUT --split=val --num_images=16 --through_prior',
  )
  sub.add_argument(
    'images', nargs='*', metavar='IMAGE', help='files or folders of images'
  )
  workdir(sub, required=True)
  sub.add_argument(
    '--out',
    required=True,
    type=_folder,
    metavar='DIR',
    help='new folder for the images, local or gs://BUCKET/...',
  )
  _add_reconstructing(sub)
  data_dir(sub, default='')

  sub = command(
    'evaluate',
    _evaluate,
    'Measures the prior (bits per code), reconstructions, and samples: how '
    'close they come to real images, whether they are copies of some.',
    '--workdir=RUN',
    '--workdir=RUN --split=test --num_samples=200',
    '--workdir=RUN --guidance_scale=2',
    '--workdir=RUN --inception=inception.npz',
    '--workdir=RUN --num_samples=0',
  )
  workdir(sub, required=True)
  _add_evaluation(sub)
  data_dir(sub, default='')

  sub = command(
    'report',
    _report,
    'Draws curves, reconstructions, codes and samples to WORKDIR/report.',
    '--workdir=RUN',
  )
  workdir(sub, required=True)
  _add_seed(sub)
  data_dir(sub, default='')
  sub = command(
    'check',
    _check,
    'Reads all files of a run and tells which are damaged; exit code 1 if any '
    'is.',
    '--workdir=RUN',
  )
  workdir(sub, required=True)
  data_dir(sub, default='')

  sub = command(
    'demo',
    _demo,
    'Runs everything on generated images, in minutes on a laptop.',
    '--workdir=runs/demo',
  )
  sub.add_argument(
    '--workdir',
    default='runs/demo',
    metavar='DIR',
    help='folder for all of it, local (default: runs/demo)',
  )
  sub.add_argument(
    '--size',
    choices=('demo', 'smoke'),
    default='demo',
    help="'smoke' takes seconds and shows only that it works",
  )
  return parser


def _underscores(argument: str) -> str:
  """Lets flags be written with - for _."""
  name, equals, value = argument.partition('=')
  if name.startswith('--') and not name.startswith('--config.'):
    name = '--' + name[2:].replace('-', '_')
  return name + equals + value


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  # Fields of a config are not known to argparse.
  overrides = [a for a in argv if a.startswith('--config.')]
  rest = [_underscores(a) for a in argv if a not in overrides]
  parser = _parser()
  args = parser.parse_args(rest)
  if overrides and args.command != 'train':
    parser.error(f'{overrides[0]}: only dermvq train takes fields of a config')
  args.overrides = overrides
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit code."""
  args = _parse(sys.argv[1:] if argv is None else argv)
  host_memory.keep()
  compile_cache.enable()
  from dermvq_jax.runs import logs

  logs.setup_console()
  # grain's worker processes read absl flags; ours are argparse's.
  flags.FLAGS.mark_as_parsed()
  try:
    code = args.run(args)
  except errors.UserError as e:
    print(f'dermvq {args.command}: error: {e}', file=sys.stderr)
    return _MISTAKE
  except OSError as e:
    if e.errno not in _SYSTEM_ERRORS:
      raise
    where = e.filename or 'the disk'
    print(
      f'dermvq {args.command}: error: {where}: {e.strerror}; check the path, '
      'the permissions and the space there',
      file=sys.stderr,
    )
    return _MISTAKE
  except errors.StoppedError as e:
    print('Saved; the same command goes on from here.', file=sys.stderr)
    return _STOPPED if e.signal == signal.SIGTERM else _INTERRUPTED
  except KeyboardInterrupt:
    print(
      '\nInterrupted; dermvq train goes on with the same command.',
      file=sys.stderr,
    )
    return _INTERRUPTED
  return code or 0


if __name__ == '__main__':
  sys.exit(main())
