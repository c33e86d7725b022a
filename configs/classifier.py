r"""A classifier of the real images: the feature space of `dermvq evaluate`.

```
dermvq train --config=classifier --workdir=W
```

Trained on the images of the VQ-VAE in the workdir, so that its features suit
them; it is no part of the model. Arguments: none: some minutes on a CPU;
'demo': fewer; 'smoke': seconds, for tests. Expected results are in
experiments/RESULTS.md.
"""

import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is one of '', 'demo', 'smoke'."""
  config = ml_collections.ConfigDict()
  config.task = 'classifier'
  config.seed = 0

  config.dataset = ''  # '': that of the VQ-VAE in the workdir
  config.data_dir = ''  # '': likewise
  config.batch_size = 32  # global
  config.num_microbatches = 1  # more: gradients accumulate, with less memory
  config.num_workers = 0  # processes that read; 0: threads only
  config.augment = {
    'flips': True,
    'rgb_shift_probability': 0.5,
    'rgb_shift_limit': 10,
  }

  config.classifier = {'features': 96, 'num_stages': 3}
  config.dtype = 'float32'

  config.optim = {
    'learning_rate': 2e-3,
    'schedule': 'cosine',
    'warmup_steps': 50,
    'b2': 0.99,
    'weight_decay': 0.01,
    'max_grad_norm': 1.0,
    'skip_nonfinite': False,  # True: leave out steps that go to infinity
  }
  config.params_ema_decay = 0.99
  config.num_epochs = 10.0
  config.num_train_steps = 0  # 0: from num_epochs
  config.log_every_steps = 25
  config.eval_every_steps = 0  # 0: every epoch
  config.checkpoint_every_steps = 500
  config.parallel = 'jit'  # or 'pmap'

  if arg == 'demo':
    config.num_train_steps = 300
    config.eval_every_steps = 100
  elif arg == 'smoke':
    config.batch_size = 8
    config.classifier.features = 16
    config.classifier.num_stages = 2
    config.optim.warmup_steps = 2
    config.num_train_steps = 10
    config.log_every_steps = 5
    config.eval_every_steps = 5
    config.checkpoint_every_steps = 4
  elif arg:
    raise ValueError(f'classifier has no config {arg!r}: demo or smoke')
  return config
