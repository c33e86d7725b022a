r"""A classifier of the real images: the feature space of `dermvq evaluate`.

```
dermvq train --config=classifier --workdir=W
```

It is trained on the images of the VQ-VAE in the workdir, so its features suit
them; sampling does not need it. Without an argument it takes some minutes on a
CPU; 'demo' takes fewer; 'smoke' takes seconds, for tests. Expected results are
in experiments/RESULTS.md.
"""

import ml_collections

from dermvq_jax.configs import common

_SIZES = ('demo', 'smoke')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is one of '', 'demo', 'smoke'."""
  size = common.one_of(common.words('classifier', arg, _SIZES), _SIZES, '')
  config = common.base('classifier')
  config.dataset = ''  # '': the dataset of the VQ-VAE in the workdir
  config.batch_size = 32
  config.augment = {
    'flips': True,
    'rgb_shift_probability': 0.5,
    'rgb_shift_limit': 10,
  }
  config.classifier = {'features': 96, 'num_stages': 3}
  config.optim.update(
    {'learning_rate': 2e-3, 'warmup_steps': 50, 'weight_decay': 0.01}
  )
  config.params_ema_decay = 0.99
  config.min_train_steps = 1000
  config.log_every_steps = 25

  if size == 'demo':
    config.num_train_steps = 300
    config.optim.warmup_steps = 30
    config.eval_every_steps = 100
  elif size == 'smoke':
    common.shorten_to_smoke(config)
    config.classifier.update({'features': 16, 'num_stages': 2})
  return config
