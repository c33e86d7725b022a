r"""Phase 2: a class-conditional prior over the VQ-VAE's codes.

```
dermvq encode --workdir=W
dermvq train --config=prior --workdir=W
```

Arguments: none: a Gated PixelCNN for 16x16 to 32x32 codes; 'pixelcnn', 'rnn',
'transformer': the other priors, about as large; 'demo': minutes; 'smoke':
seconds, for tests. Expected results are in experiments/RESULTS.md.
"""

import ml_collections

# Fields of each prior in dermvq_jax/models: 1.2 to 1.3 million parameters for
# 512 codes and 7 classes.
_PRIORS = {
  'gated_pixelcnn': {
    'num_layers': 12,
    'features': 64,
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


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config.

  `arg` is one of '', 'pixelcnn', 'rnn', 'transformer', 'demo', 'smoke'.
  """
  config = ml_collections.ConfigDict()
  config.task = 'prior'
  config.seed = 0

  config.dataset = 'codes'  # of the VQ-VAE in the workdir
  config.copies = 1  # as in dermvq encode --copies
  config.data_dir = ''  # '': that of the VQ-VAE
  config.batch_size = 16  # global
  config.num_microbatches = 1  # more: gradients accumulate, with less memory
  config.num_workers = 0  # processes that read; 0: threads only

  name = arg if arg in _PRIORS else 'gated_pixelcnn'
  config.prior = {'name': name, **_PRIORS[name]}
  config.label_dropout_rate = 0.1  # to the null label
  config.loss = 'cross_entropy'  # or 'bce': one-vs-rest, as in the report
  config.label_smoothing = 0.0
  config.dtype = 'float32'

  config.optim = {
    'learning_rate': 1e-3,
    'schedule': 'cosine',
    'warmup_steps': 200,
    'b2': 0.99,
    'weight_decay': 0.0,
    'max_grad_norm': 1.0,
    'skip_nonfinite': False,  # True: leave out steps that go to infinity
  }
  config.params_ema_decay = 0.999
  config.num_epochs = 20.0
  config.num_train_steps = 0  # 0: from num_epochs
  config.log_every_steps = 50
  config.eval_every_steps = 0  # 0: every epoch
  config.checkpoint_every_steps = 500
  config.parallel = 'jit'  # or 'pmap'

  if arg == 'demo':
    config.copies = 4
    config.prior.num_layers = 8
    config.prior.head_features = 128
    config.num_train_steps = 2000
    config.eval_every_steps = 500
  elif arg == 'smoke':
    config.batch_size = 8
    config.prior.num_layers = 2
    config.prior.features = 8
    config.prior.head_features = 8
    config.optim.warmup_steps = 2
    config.num_train_steps = 10
    config.log_every_steps = 5
    config.eval_every_steps = 5
    config.checkpoint_every_steps = 4
  elif arg and arg not in _PRIORS:
    raise ValueError(
      f'prior has no config {arg!r}: pixelcnn, rnn, transformer, demo or smoke'
    )
  return config
