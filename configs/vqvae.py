r"""Phase 1: the VQ-VAE.

```
dermvq prepare --dataset=ham10000/64 --manual_dir=DIR --data_dir=DATA
dermvq train --config=vqvae --workdir=W --config.data_dir=DATA
```

Arguments: none: 64 px, 16x16 codes; 'vq', 'l2_norm', 'fsq', 'residual': the
other quantizers, 9 bits a code (18 of 'residual'); '128', '256': larger images,
for TPU and GPU; 'demo': the embedded dataset in minutes; 'smoke': seconds, for
tests. Expected results are in experiments/RESULTS.md.
"""

import ml_collections

# Of every quantizer with a trained codebook.
_CODEBOOK = {
  'codebook_size': 512,
  'code_dim': 16,
  'commitment_weight': 2.0,
  'gradient': 'straight_through',  # or 'rotation'
  'codebook_start': 'latents',  # of the first batches; or 'k_means', 'random'
  'restart_after': 50,  # steps without use; 0: never
  'entropy_weight': 0.0,
  'entropy_temperature': 1.0,
}
# Fields of each quantizer in dermvq_jax/models/quantizers.py.
_QUANTIZERS = {
  'ema': _CODEBOOK | {'codebook_ema_decay': 0.99},
  'vq': _CODEBOOK,
  'l2_norm': _CODEBOOK | {'code_dim': 8},
  'fsq': {'levels': (8, 8, 8)},
  'residual': _CODEBOOK | {'codebook_ema_decay': 0.99, 'num_levels': 2},
}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config.

  `arg` is one of '', 'vq', 'l2_norm', 'fsq', 'residual', '128', '256', 'demo',
  'smoke'.
  """
  config = ml_collections.ConfigDict()
  config.task = 'vqvae'
  config.seed = 0

  config.dataset = 'ham10000/64'
  config.data_dir = ''  # '': in the workdir
  config.batch_size = 16  # global
  config.num_microbatches = 1  # more: gradients accumulate, with less memory
  config.num_workers = 0  # processes that read; 0: threads only
  config.augment = {
    'flips': True,
    'rgb_shift_probability': 0.0,
    'rgb_shift_limit': 20,
    'cutout_probability': 0.0,
    'cutout_max_holes': 2,
    'cutout_min_side': 0.1,
    'cutout_max_side': 0.2,
    'cutout_target': 'clean',  # or 'augmented': learn to draw the boxes
  }

  config.model = {
    'features': 128,
    'num_residual_blocks': 2,
    'residual_features': 32,
    'downsampling': 4,
    'activation': 'gelu',  # by tanh; or 'relu', 'silu'
    'norm_groups': 0,  # of a group norm in the residual blocks; 0: none
    'attention_heads': 0,  # at the lowest resolution; 0: none
  }
  name = arg if arg in _QUANTIZERS else 'ema'
  config.quantizer = {'name': name, **_QUANTIZERS[name]}
  config.loss = {  # weights
    'mse': 1.0,
    'l1': 0.0,
    'huber': 0.0,
    'ssim': 0.0,
    'gradient': 0.0,
  }
  config.dtype = 'float32'  # of the convolutions; 'bfloat16' on TPU

  config.optim = {
    'learning_rate': 1e-3,
    'schedule': 'cosine',
    'warmup_steps': 100,
    'b2': 0.95,  # 0.999 is 1.7 dB behind after 1,500 steps
    'weight_decay': 0.0,
    'max_grad_norm': 0.0,
    'skip_nonfinite': False,  # True: leave out steps that go to infinity
  }
  config.params_ema_decay = 0.0
  config.num_epochs = 10.0
  config.num_train_steps = 0  # 0: from num_epochs
  config.log_every_steps = 50
  config.eval_every_steps = 0  # 0: every epoch
  config.checkpoint_every_steps = 500
  config.parallel = 'jit'  # or 'pmap'

  if arg in ('128', '256'):
    config.dataset = f'ham10000/{arg}'
    config.batch_size = 128
    config.num_epochs = 100.0
    config.model.downsampling = 4 if arg == '128' else 8
    config.dtype = 'bfloat16'
    config.num_workers = 8
  elif arg == 'demo':
    config.dataset = 'synthetic_dermoscopy/64'
    config.model.features = 64
    config.quantizer.codebook_size = 256
    config.num_train_steps = 1000
    config.eval_every_steps = 250
  elif arg == 'smoke':
    config.dataset = 'synthetic_dermoscopy/smoke'
    config.batch_size = 8
    config.model.update({'features': 16, 'residual_features': 8})
    config.quantizer.update(
      {'codebook_size': 32, 'code_dim': 8, 'restart_after': 4}
    )
    config.optim.warmup_steps = 2
    config.num_train_steps = 10
    config.log_every_steps = 5
    config.eval_every_steps = 5
    config.checkpoint_every_steps = 4
  elif arg and arg not in _QUANTIZERS:
    raise ValueError(
      f'vqvae has no config {arg!r}: vq, l2_norm, fsq, residual, 128, 256, '
      'demo or smoke'
    )
  return config
