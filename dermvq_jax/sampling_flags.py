"""The flags for what is sampled or evaluated, and how."""

import argparse
import dataclasses

from dermvq_jax import flag_types


@dataclasses.dataclass(frozen=True)
class Number:
  """A number that can be given: a flag here, a slider in `dermvq explore`.

  Attributes:
    name: the name of the flag, and of the argument in Python.
    default: its value if it is not given; its type is that of all values.
    help: what it does; the flag says the default too.
    default_text: the default in words.
    metavar: stands for the number in the help of the flag.
    most: the end of the slider; None: the number of codes. The flag takes any
      number.
    step: the step of the slider.
    least: the start of the slider.
  """

  name: str
  default: float | int
  help: str
  default_text: str
  metavar: str | None
  most: float | None
  step: float
  least: float = 0

  @property
  def text(self) -> str:
    """What it does, and its default."""
    return f'{self.help} (default: {self.default_text})'

  def add_to(self, sub: argparse.ArgumentParser):
    """Adds the flag."""
    sub.add_argument(
      f'--{self.name}',
      type=type(self.default),
      default=self.default,
      metavar=self.metavar,
      help=self.text,
    )


# The fields of `sampler.Controls`.
CONTROLS = (
  Number(
    'temperature',
    1.0,
    'below 1: more typical, less varied',
    '1',
    metavar=None,
    most=1.5,
    step=0.05,
  ),
  Number(
    'top_k',
    0,
    'sample each code from the K most likely ones',
    '0, from all',
    metavar='K',
    most=None,
    step=1,
  ),
  Number(
    'top_p',
    1.0,
    'nucleus sampling: keep the smallest set of codes whose probabilities sum '
    'to P',
    '1, off',
    metavar='P',
    most=1,
    step=0.05,
    least=0.05,
  ),
  Number(
    'guidance_scale',
    1.0,
    'classifier-free guidance; above 1 exaggerates what distinguishes the '
    'class, 0 ignores the class',
    '1, off',
    metavar='S',
    most=5,
    step=0.1,
  ),
  Number(
    'guidance_rise',
    0.0,
    'what the guidance scale gains from the first code, at the top left, to '
    'the last; below 0 it falls',
    '0, off',
    metavar='S',
    most=4,
    step=0.1,
    least=-4,
  ),
  Number(
    'autoguidance_scale',
    1.0,
    'above 1 exaggerates what the prior has learned since the first part of '
    'its training: more plausible images',
    '1, off',
    metavar='A',
    most=3,
    step=0.1,
  ),
)
# What `dermvq sample` replaces.
REJECTIONS = (
  Number(
    'reject_memorised',
    0.0,
    'replace samples that look memorised: memorisation ratio, by pixels, below '
    'T; try 0.6, or the threshold that dermvq evaluate reports',
    '0, off',
    metavar='T',
    most=1,
    step=0.05,
  ),
  Number(
    'reject_unlike',
    0.0,
    'replace samples that are unlike the images of the run, encoded and '
    'decoded: p-value of at most P, as in dermvq score',
    '0, off',
    metavar='P',
    most=0.99,
    step=0.01,
  ),
)
CHOOSE = Number(
  'choose',
  1,
  'draw K candidates for each image and keep the best',
  '1, off',
  metavar='K',
  most=16,
  step=1,
  least=1,
)
# What is best; the first is the default.
CHOOSE_BY = ('classifier', 'likelihood')


def add_seed(sub: argparse.ArgumentParser):
  """Adds --seed."""
  sub.add_argument('--seed', type=flag_types.seed, default=0, help='default: 0')


def add_controls(sub: argparse.ArgumentParser):
  """Adds the flags for how images are sampled."""
  for number in CONTROLS:
    number.add_to(sub)
  CHOOSE.add_to(sub)
  sub.add_argument(
    '--choose_by',
    choices=CHOOSE_BY,
    default=CHOOSE_BY[0],
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
  for number in REJECTIONS:
    number.add_to(sub)
  sub.add_argument(
    '--shards',
    type=int,
    default=0,
    metavar='N',
    help='write .tar files of at most N images each, for example 10000, where '
    'so many single files are too many (default: 0, a folder for each class)',
  )


def add_evaluation(sub: argparse.ArgumentParser):
  """Adds the flags for what `dermvq evaluate` measures."""
  sub.add_argument(
    '--split',
    choices=('train', 'val', 'test'),
    default='val',
    help='split to evaluate on (default: val)',
  )
  sub.add_argument(
    '--num_samples',
    type=int,
    metavar='N',
    help='number of samples to evaluate; 0 skips what needs samples, which is '
    'fast (default: the size of the reference split)',
  )
  sub.add_argument(
    '--inception',
    type=flag_types.path,
    metavar='FILE',
    help='compare images in the features of the standard FID, with the weights '
    'in this .npz file; docs/how_to/evaluate.md says where to get them '
    "(default: in the features of the run's classifier)",
  )
  add_controls(sub)
  sub.add_argument(
    '--judge',
    type=flag_types.run,
    metavar='DIR',
    help='run whose classifier judges samples; --choose by a classifier needs '
    "one of another seed and architecture (default: the run's own)",
  )
  add_seed(sub)
