"""The flags for what is sampled, and how."""

import argparse

from dermvq_jax import flag_types


def add_seed(sub: argparse.ArgumentParser):
  """Adds --seed."""
  sub.add_argument('--seed', type=flag_types.seed, default=0, help='default: 0')


def add_controls(sub: argparse.ArgumentParser):
  """Adds the flags for how images are sampled."""
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
    help='sample each code from the K most likely ones (default: 0, from all)',
  )
  sub.add_argument(
    '--top_p',
    type=float,
    default=1.0,
    metavar='P',
    help='nucleus sampling: keep the smallest set of codes whose probabilities '
    'sum to P (default: 1, off)',
  )
  sub.add_argument(
    '--guidance_scale',
    type=float,
    default=1.0,
    metavar='S',
    help='classifier-free guidance; above 1 exaggerates what distinguishes the '
    'class, 0 ignores the class (default: 1, off)',
  )
  sub.add_argument(
    '--choose',
    type=int,
    default=1,
    metavar='K',
    help='draw K candidates for each image and keep the best (default: 1, off)',
  )
  sub.add_argument(
    '--choose_by',
    choices=('classifier', 'likelihood'),
    default='classifier',
    help="what is best: what the run's classifier finds most of its class, or "
    'what has the most likely codes (default: classifier)',
  )


def add_sampling(sub: argparse.ArgumentParser):
  """Adds the flags for what `dermvq sample` makes, and how."""
  add_seed(sub)
  number = sub.add_mutually_exclusive_group()
  number.add_argument(
    '--counts',
    type=flag_types.counts,
    default=flag_types.counts('8'),
    metavar='N|CLASS=N,...',
    help='number of images, of every class or of some (default: 8)',
  )
  number.add_argument(
    '--balance',
    nargs='?',
    type=flag_types.names,
    const=['label'],
    default=[],
    metavar='label,NAME,...',
    help='top up every class until it is as large as the largest class of the '
    'training split; with conditions that the prior knows (label,sex) every '
    'combination of their values',
  )
  sub.add_argument(
    '--where',
    type=flag_types.where,
    default={},
    metavar='NAME=VALUE,...',
    help='what else the images show, such as age=60,sex=female: conditions '
    'that the prior was trained with (default: not known)',
  )
  add_controls(sub)
  sub.add_argument(
    '--complete',
    type=flag_types.path,
    metavar='IMAGE',
    help='complete this image instead; --mask hides a part of it',
  )
  sub.add_argument(
    '--mask',
    type=flag_types.path,
    metavar='NAME|FILE',
    help='left, right, top, bottom (halves), center, border, or an image file '
    'that is white where it hides the image',
  )
  sub.add_argument(
    '--reject_memorised',
    type=float,
    default=0.0,
    metavar='T',
    help='replace samples that look memorised: memorisation ratio, by pixels, '
    'below T; try 0.6, or the threshold that dermvq evaluate reports (default: '
    '0, off)',
  )
  sub.add_argument(
    '--reject_unlike',
    type=float,
    default=0.0,
    metavar='P',
    help='replace samples that are unlike the images of the run, encoded and '
    'decoded: p-value of at most P, as in dermvq score (default: 0, off)',
  )
  sub.add_argument(
    '--shards',
    type=int,
    default=0,
    metavar='N',
    help='write .tar files of at most N images each, for example 10000, where '
    'so many single files are too many (default: 0, a folder for each class)',
  )
