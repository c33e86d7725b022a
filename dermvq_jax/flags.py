"""The flags of all commands, and their help."""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from dermvq_jax import (
  __version__,
  errors,
  flag_types,
  sampling_flags,
  spelling,
)

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

`dermvq demo` does all of this on generated images, in minutes.
"""


def _add_workdir(
  sub: argparse.ArgumentParser, default: str | None = None, new: bool = False
):
  """Adds the run that a command makes, or the run or export that it uses."""
  sub.add_argument(
    '--workdir',
    required=default is None,
    default=default,
    type=flag_types.folder if new else flag_types.run,
    metavar='DIR',
    help='folder of the run, local or gs://BUCKET/...'
    + ('' if new else ', or of an export, or hf://OWNER/NAME, or demo')
    + (f' (default: {default})' if default else ''),
  )


def _add_out(sub: argparse.ArgumentParser, content: str = 'images'):
  sub.add_argument(
    '--out',
    required=True,
    type=flag_types.folder,
    metavar='DIR',
    help=f'new folder for the {content}, local or gs://BUCKET/...',
  )


def _add_data_dir(sub: argparse.ArgumentParser, required: bool = False):
  sub.add_argument(
    '--data_dir',
    required=required,
    type=flag_types.path,
    metavar='DIR',
    help='folder of prepared datasets'
    + ('' if required else ' (default: where the run was trained from)'),
  )


def _add_images(sub: argparse.ArgumentParser, use_of_label: str):
  """Adds the flags for which images a command reads."""
  sub.add_argument(
    'images',
    nargs='*',
    type=flag_types.path,
    metavar='IMAGE',
    help='files or folders of images',
  )
  sub.add_argument(
    '--split',
    choices=('train', 'val', 'test'),
    help='images of the dataset that the VQ-VAE was trained on',
  )
  sub.add_argument(
    '--label',
    metavar='CLASS',
    help=f'class of IMAGE, {use_of_label} (default: unknown)',
  )


def _add_hosts(sub: argparse.ArgumentParser):
  """Adds the flags by which the processes of several hosts find each other."""
  hosts = sub.add_argument_group(
    'several hosts',
    'Run the same command on each host, with a workdir that all can reach. '
    'Cloud TPU VMs find each other; elsewhere give:',
  )
  hosts.add_argument(
    '--coordinator',
    default='',
    metavar='HOST:PORT',
    help='address of process 0, which all others can reach',
  )
  hosts.add_argument(
    '--num_processes', type=int, metavar='N', help='number of processes'
  )
  hosts.add_argument(
    '--process_id', type=int, metavar='I', help='number of this process, from 0'
  )


def _add_preparing(sub: argparse.ArgumentParser):
  sub.add_argument(
    '--dataset',
    required=True,
    metavar='NAME/SIZE',
    help='image_folder (your own images), ham10000, isic_archive, isic2018, '
    'isic2019, pad_ufes_20, ph2 or synthetic_dermoscopy with /64, /128 or /256 '
    'pixels; dermamnist with /28, /64, /128 or /224. Without --manual_dir the '
    'command says what to download',
  )
  sub.add_argument(
    '--manual_dir',
    type=flag_types.path,
    metavar='DIR',
    help='where you put the downloaded files',
  )
  sub.add_argument('--overwrite', action='store_true', help='prepare again')
  for name, said in (
    ('image', 'image_folder: column of metadata.csv with the file names'),
    ('label', 'image_folder, isic_archive: column with the classes'),
    ('group', 'image_folder: column with the lesions or patients'),
  ):
    default = f'{name}, diagnosis_3' if name == 'label' else name
    sub.add_argument(
      f'--{name}_column', metavar='NAME', help=f'{said} (default: {default})'
    )
  sub.add_argument(
    '--max_workers',
    type=int,
    metavar='N',
    help='read images in at most so many processes (default: one a core); the '
    'records do not depend on it',
  )
  sub.add_argument(
    '--beam_options',
    metavar='runner=NAME,OPTION=VALUE,...',
    help='let Apache Beam read the images, on machines that share the two '
    'folders; needs an environment of its own, see how_to/prepare in the '
    'documentation',
  )
  sub.add_argument(
    '--condition_columns',
    metavar='NAME,NAME:WIDTH,...',
    help='image_folder: further columns of metadata.csv that the prior can be '
    'given, such as sex,age:10 (ages in ranges of 10)',
  )
  sub.add_argument(
    '--leave_out',
    type=flag_types.path,
    metavar='CSV',
    help='leave out the images that this scores.csv of dermvq score flags',
  )


def _add_commands_of_use(command: Callable[..., argparse.ArgumentParser]):
  """Adds the commands that use a trained run."""
  sub = command(
    'sample',
    'Makes new images: a folder of PNG files for each class, a sheet and '
    'metadata.csv; all are marked as synthetic.',
    '--workdir=RUN --out=SAMPLES',
    '--workdir=RUN --out=SAMPLES --counts=mel=16,nv=4 --seed=1',
    '--workdir=RUN --out=SAMPLES --counts=100 --temperature=0.9',
    '--workdir=RUN --out=SAMPLES --guidance_scale=1.5 --top_p=0.95',
    '--workdir=RUN --out=SAMPLES --choose=8',
    '--workdir=RUN --out=SAMPLES --balance',
    '--workdir=RUN --out=SAMPLES --where=age=60,sex=female',
    '--workdir=RUN --out=SAMPLES --complete=lesion.jpg --mask=bottom',
    '--workdir=RUN --out=SAMPLES --reject_memorised=0.6 --reject_unlike=0.01',
  )
  _add_workdir(sub)
  _add_out(sub)
  sampling_flags.add_sampling(sub)
  _add_data_dir(sub)
  _add_hosts(sub)

  sub = command(
    'reconstruct',
    'Reconstructs images with the VQ-VAE and reports the error.',
    '--workdir=RUN --out=OUT lesion.jpg folder_of_images/',
    '--workdir=RUN --out=OUT --split=val --num_images=16 --through_prior',
  )
  _add_images(sub, 'for --through_prior')
  _add_workdir(sub)
  _add_out(sub)
  sub.add_argument(
    '--num_images',
    type=int,
    default=16,
    metavar='N',
    help='number of images of --split (default: 16)',
  )
  sub.add_argument(
    '--through_prior',
    action='store_true',
    help="also replace each code by the prior's most likely one, given the "
    "image's true codes before it, and decode",
  )
  _add_data_dir(sub)

  sub = command(
    'score',
    'Finds images that are unlike the ones that a run was trained on, says why '
    'and shows where: scores.csv, the strangest first, a page and maps. The '
    'first call measures the images of the run, which takes minutes.',
    '--workdir=RUN --out=OUT lesion.jpg folder_of_images/',
    '--workdir=RUN --out=OUT --label=mel melanomas/',
    '--workdir=RUN --out=OUT --split=test --alpha=0.01',
  )
  _add_images(sub, 'to test if it fits')
  _add_workdir(sub)
  _add_out(sub)
  sub.add_argument(
    '--alpha',
    type=float,
    default=0.05,
    metavar='A',
    help='flag images with a p-value of at most A; of images like the held-out '
    'ones, at most a share A is flagged (default: 0.05)',
  )
  _add_data_dir(sub)

  sub = command(
    'evaluate',
    'Measures the prior (bits per code), reconstructions, and samples: how '
    'close they come to real images, and whether they are copies of them.',
    '--workdir=RUN',
    '--workdir=RUN --split=test --num_samples=200',
    '--workdir=RUN --guidance_scale=2',
    '--workdir=RUN --inception=inception.npz',
    '--workdir=RUN --num_samples=0',
  )
  _add_workdir(sub)
  sampling_flags.add_evaluation(sub)
  _add_data_dir(sub)

  sub = command(
    'report',
    'Writes a page with curves, reconstructions, codes and samples to '
    'WORKDIR/report.',
    '--workdir=RUN',
  )
  _add_workdir(sub)
  sampling_flags.add_seed(sub)
  _add_data_dir(sub)
  sub = command(
    'export',
    'Writes a folder to give away: weights, configs without paths, '
    'evaluations, samples, a model card. It is used like the run.',
    '--workdir=RUN --out=EXPORT',
  )
  _add_workdir(sub)
  _add_out(sub, 'export')
  sub.add_argument(
    '--without_search',
    action='store_true',
    help='export although no dermvq evaluate has searched samples for copies '
    'of training images',
  )
  _add_data_dir(sub)
  sub = command(
    'explore',
    'Shows a run in a browser on this machine: samples with every control, '
    'codes, completions, curves, the data. Nothing is sent elsewhere. It needs '
    'the extra explore.',
    '--workdir=demo',
    '--workdir=RUN',
    '--workdir=RUN --compare=COLLAPSED',
  )
  _add_workdir(sub, default='demo')
  sub.add_argument(
    '--compare',
    type=flag_types.run,
    metavar='DIR',
    help='folder of another run, to show beside the first',
  )
  sub.add_argument(
    '--port',
    type=flag_types.port,
    metavar='N',
    help='port of the page on 127.0.0.1 (default: the first free one from '
    '7860)',
  )
  _add_data_dir(sub)
  sub = command(
    'check',
    "Verifies a run's files; exits with 1 if any is damaged.",
    '--workdir=RUN',
  )
  _add_workdir(sub)
  _add_data_dir(sub)

  sub = command(
    'demo',
    'Runs everything on generated images, in minutes on a laptop.',
    '--workdir=runs/demo',
  )
  sub.add_argument(
    '--workdir',
    type=flag_types.path,
    default='runs/demo',
    metavar='DIR',
    help='local folder for everything (default: runs/demo)',
  )
  sub.add_argument(
    '--size',
    choices=('demo', 'smoke'),
    default='demo',
    help="'smoke' takes seconds and only shows that everything runs",
  )


class _Parser(argparse.ArgumentParser):
  """A parser whose messages are one line, whatever was given."""

  def error(self, message: str) -> NoReturn:
    """Ends with the usage and the message."""
    super().error(errors.printable(message))


def parsers() -> tuple[
  argparse.ArgumentParser, dict[str, argparse.ArgumentParser]
]:
  """Returns the parser of all commands, and that of each one by its name."""
  formatter = argparse.RawDescriptionHelpFormatter
  parser = _Parser(
    'dermvq', description=_DESCRIPTION, formatter_class=formatter
  )
  parser.add_argument('--version', action='version', version=__version__)
  commands = parser.add_subparsers(
    title='commands', metavar='COMMAND', required=True
  )
  by_name = {}

  def command(name: str, text: str, *examples: str) -> argparse.ArgumentParser:
    lines = ''.join(f'  dermvq {name} {e}\n' for e in examples)
    sub = commands.add_parser(
      name,
      help=text,
      description=text,
      epilog=f'examples:\n{lines}',
      formatter_class=formatter,
      allow_abbrev=False,
    )
    sub.set_defaults(command=name)
    by_name[name] = sub
    return sub

  sub = command(
    'prepare',
    'Converts downloaded images, or generated ones, to training records.',
    '--dataset=synthetic_dermoscopy/64 --data_dir=DATA',
    '--dataset=ham10000/64 --manual_dir=DOWNLOADS --data_dir=DATA',
    '--dataset=image_folder/64 --manual_dir=IMAGES --data_dir=DATA',
  )
  _add_preparing(sub)
  _add_data_dir(sub, required=True)

  sub = command(
    'train',
    'Trains a phase, or resumes one that was interrupted.',
    '--config=vqvae --workdir=RUN --config.data_dir=DATA',
    '--config=vqvae:sharpen --config.start_from=OLD --workdir=RUN',
    '--config=prior --workdir=RUN --config.prior.num_layers=15',
    '--config=prior:align --config.start_from=OLD --workdir=RUN',
    '--config=classifier --workdir=RUN',
  )
  sub.add_argument(
    '--config',
    required=True,
    metavar='NAME[:WORDS]',
    help='vqvae, prior or classifier, with :demo or :smoke for small ones and '
    'words such as :mse or :128+mse; or a .py file. '
    '--config.FIELD=VALUE changes a field; configs/*.py lists them',
  )
  _add_workdir(sub, new=True)
  sub.add_argument(
    '--profile',
    action='store_true',
    help="write a trace of a few steps to the phase's folder, for TensorBoard "
    'and xprof',
  )
  sub.add_argument(
    '--verbose',
    action='store_true',
    help='show all metrics, which are in metrics.jsonl in any case',
  )
  _add_hosts(sub)

  sub = command(
    'encode',
    "Encodes all images with the run's VQ-VAE, as training data of the prior.",
    '--workdir=RUN',
    '--workdir=RUN --copies=1',
  )
  _add_workdir(sub, new=True)
  _add_data_dir(sub)
  sub.add_argument(
    '--copies',
    type=int,
    default=8,
    metavar='N',
    help='encode each training image N times: as it is, then turned and '
    'mirrored, each time in another way (default: 8, all symmetries)',
  )
  _add_hosts(sub)

  _add_commands_of_use(command)
  return parser, by_name


def _underscores(argument: str) -> str:
  """Accepts flags that are written with - instead of _."""
  name, equals, value = argument.partition('=')
  if name.startswith('--') and not name.startswith('--config.'):
    name = '--' + name[2:].replace('-', '_')
  return name + equals + value


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Reads a command line.

  Args:
    argv: the words after `dermvq`.

  Returns:
    `command`, its flags, and `overrides`: the '--config.field=value' words.
    Exits with a message if the words are wrong.
  """
  # argparse does not know the fields of a config.
  overrides = [a for a in argv if a.startswith('--config.')]
  rest = [_underscores(a) for a in argv if a not in overrides]
  parser, commands = parsers()
  spelling.check_flags(rest, parser, commands)
  args = parser.parse_args(rest)
  if overrides and args.command != 'train':
    commands[args.command].error(
      f'{overrides[0]}: only dermvq train takes fields of a config'
    )
  args.overrides = overrides
  return args
