r"""A class-conditional prior over the VQ-VAE's codes.

```
dermvq encode --workdir=W
dermvq train --config=prior --workdir=W
```

Without an argument it is 'gated_pixelcnn', for grids of 8x8 to 32x32 codes;
'pixelcnn', 'rnn' and 'transformer' are the other priors, half as large.
'large', for TPU and GPU, has 2.5 times the parameters. 'demo' takes minutes;
'smoke' takes seconds, for tests. 'align' trains the prior of another run on,
until its samples show their label without guidance: give
`--config.start_from=RUN`. Words are joined by '+': `--config=prior:rnn+demo`.
Expected results are in experiments/RESULTS.md.
"""

import ml_collections
from ml_collections import config_dict

from dermvq_jax.configs import common

# The fields of each prior in dermvq_jax/models/priors. With 512 codes and 7
# classes the first has 2.7 million parameters, the others 1.2 to 1.3 million.
_PRIORS = {
  'gated_pixelcnn': {
    'num_layers': 12,
    'features': 96,
    'kernel_size': 3,
    'first_kernel_size': 7,
    'head_features': 256,
    'dropout_rate': 0.1,
  },
  'pixelcnn': {
    'num_layers': 16,
    'features': 128,
    'kernel_size': 3,
    'first_kernel_size': 7,
    'head_features': 256,
    'tie_embeddings': False,
    'dropout_rate': 0.1,
  },
  'rnn': {
    'num_layers': 2,
    'features': 208,
    'cell': 'lstm',  # or 'gru'
    'kernel_size': 3,
    'tie_embeddings': False,
    'dropout_rate': 0.1,
  },
  'transformer': {
    'num_layers': 6,
    'features': 128,
    'num_heads': 4,
    'mlp_ratio': 4,
    'tie_embeddings': False,
    'dropout_rate': 0.1,
  },
}
_SIZES = ('large', 'demo', 'smoke')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: words from the list above, joined by '+'.
  """
  words = common.words('prior', arg, (*_PRIORS, *_SIZES, 'align'))
  config = common.base('prior')
  config.dataset = 'codes'  # the codes of the VQ-VAE in the workdir
  name = common.one_of(words, _PRIORS, 'gated_pixelcnn')
  config.prior = {'name': name, **_PRIORS[name]}
  # Condition -> the share of training images whose value is replaced by the
  # null value. Guidance needs a share above 0.
  config.conditions = {'label': 0.1}
  # How much more often the images of rare classes are seen: 0 as often as
  # others, 1 so often that all classes are equally frequent.
  config.class_balance = 0.5
  config.loss = 'cross_entropy'  # or 'bce': one-vs-rest, as in the report
  config.label_smoothing = 0.0  # share of the target for all codes
  # The weak prior of autoguidance is what the prior is after this share of its
  # training; 0: none is kept.
  config.weak_share = 0.3
  # Folder of a run whose prior continues to learn; '': a new prior.
  config.start_from = ''
  config.alignment = {  # if a prior is trained on: `losses.alignment`
    'beta': 0.1,  # the higher, the less it changes
    'negative_weight': 1.0,  # how much other labels count; rare ones less
  }
  # With 64 features 0.1 needs 0.15 bits per code more, 1.5 0.24, none 0.31.
  config.optim.weight_decay = 0.5
  if name == 'gated_pixelcnn':  # The others were not tried with it.
    config.optim.learning_rate = 2e-3
  config.optim.warmup_steps = 200
  config.params_ema_decay = 0.999
  config.num_epochs = 36.0
  config.min_train_steps = 3000

  size = common.one_of(words, _SIZES, '')
  if size == 'large':
    if name != 'gated_pixelcnn':
      raise ValueError(f"'large' is a Gated PixelCNN; leave out {name}")
    config.prior.features = 160
  elif size == 'demo':  # on codes of `dermvq encode`
    _shrink(config, num_layers=8, head_features=128)
    if name == 'gated_pixelcnn':
      config.prior.features = 64
    config.num_train_steps = 2000
    config.eval_every_steps = 500
  elif size == 'smoke':
    common.shorten_to_smoke(config)
    _shrink(config, num_layers=2, features=8, head_features=8)
  if 'align' in words:
    if own := [word for word in words if word in (*_PRIORS, 'large')]:
      raise ValueError(
        f"'align' takes the prior of another run; leave out {own[0]}"
      )
    # Prior, weak prior, conditions, loss and codes are those of the other run.
    config.start_from = config_dict.placeholder(str)
    config.optim.learning_rate = 3e-4
    config.params_ema_decay = 0.99
    if size != 'smoke':
      config.num_train_steps = 500
      config.eval_every_steps = 100
  return config


def _shrink(config: ml_collections.ConfigDict, **fields: int) -> None:
  """Sets those fields that the prior has, to at most what they were."""
  for field in fields.keys() & config.prior.keys():
    config.prior[field] = min(fields[field], config.prior[field])
