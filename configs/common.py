"""Fields that the configs of all phases share. This file is not a config."""

from collections.abc import Iterable, Sequence

import ml_collections


class UnknownWordError(ValueError):
  """A config's argument has a word that it does not know.

  Attributes:
    word: that word.
    known: the words that the config knows.
  """

  def __init__(self, name: str, word: str, known: Sequence[str]):
    super().__init__(
      f'{name} has no config {word!r}; give one of {", ".join(known)}, or '
      "some joined by '+'"
    )
    self.word, self.known = word, known


def base(task: str) -> ml_collections.ConfigDict:
  """Returns the fields that every phase has, with their default values.

  Args:
    task: 'vqvae', 'prior' or 'classifier'.
  """
  config = ml_collections.ConfigDict()
  config.task = task  # the phase
  config.seed = 0  # from 0 to 2**32 - 1

  config.data_dir = ''  # '': the data_dir of the VQ-VAE, or WORKDIR/data
  config.batch_size = 16  # of all devices together
  config.num_microbatches = 1  # more take less memory: gradients accumulate
  config.num_workers = 0  # processes that read data; 0: threads only
  config.dtype = 'float32'  # of the computation; 'bfloat16' on TPU and GPU

  config.optim = {
    'learning_rate': 1e-3,  # the highest, after the warm-up
    'schedule': 'cosine',  # to zero at the last step; or 'constant'
    # In which the learning rate rises from zero; with 'cosine' at most a tenth
    # of the training.
    'warmup_steps': 100,
    'b1': 0.9,  # Adam's decay of the mean of the gradients
    'b2': 0.99,  # Adam's decay of the mean of their squares
    'weight_decay': 0.0,  # AdamW's
    'max_grad_norm': 1.0,  # 0: gradients are not clipped
    'skip_nonfinite': False,  # True: skip steps with an infinite or NaN value
  }
  config.params_ema_decay = 0.0  # of averaged weights; 0: no averages
  config.num_epochs = 10.0  # how often each image is seen
  # What a model needs, however few images there are. On the command line,
  # --config.num_epochs sets it to 0.
  config.min_train_steps = 2500
  config.num_train_steps = 0  # 0: num_epochs, but at least min_train_steps
  # The training ends after so many validations without a better value; 0: only
  # after its last step.
  config.patience = 0
  config.log_every_steps = 50  # metrics `step/...`
  config.eval_every_steps = 0  # 0: whole epochs, at most 20 times in all
  config.checkpoint_every_steps = 500  # states to resume from
  config.parallel = 'jit'  # how a step runs on several devices; or 'pmap'
  return config


def shorten_to_smoke(config: ml_collections.ConfigDict) -> None:
  """Shortens training to ten small steps, for tests."""
  config.batch_size = 8
  config.optim.warmup_steps = 1
  config.num_train_steps = 10
  config.log_every_steps = 5
  config.eval_every_steps = 5
  config.checkpoint_every_steps = 4


def words(name: str, arg: str, known: Sequence[str]) -> list[str]:
  """Returns the words of a config's argument, which are joined by '+'.

  Args:
    name: the name of the config.
    arg: the argument; '' has no words.
    known: the words that the config knows.

  Raises:
    UnknownWordError: a word is unknown.
  """
  found = arg.split('+') if arg else []
  for word in found:
    if word not in known:
      raise UnknownWordError(name, word, known)
  return found


def one_of(words: Sequence[str], choices: Iterable[str], default: str) -> str:
  """Returns the word that is one of the choices; by default `default`.

  Raises:
    ValueError: several words are.
  """
  found = [word for word in words if word in choices] or [default]
  if len(found) > 1:
    raise ValueError(f'give only one of {", ".join(found)}')
  return found[0]
