r"""The VQ-VAE, which turns images into codes and back.

```
dermvq prepare --dataset=ham10000/64 --manual_dir=DIR --data_dir=DATA
dermvq train --config=vqvae --workdir=W --config.data_dir=DATA
```

Without an argument images have 64 px and 16x16 codes; 'vq', 'l2_norm', 'fsq'
and 'residual' are the other quantizers, with 9 bits per code ('residual': 18
bits); '128' and '256' have larger images, for TPU and GPU; 'demo' trains
on the built-in dataset in minutes; 'smoke' takes seconds, for tests. Expected
results are in experiments/RESULTS.md.
"""

import ml_collections

from dermvq_jax.configs import common

# The fields of all quantizers with a trained codebook.
_CODEBOOK = {
  'codebook_size': 512,
  'code_dim': 16,
  'commitment_weight': 2.0,
  'codebook_init': 'latents',  # from the first batches; or 'random'
  'restart_after': 50,  # steps without use; 0: never
}
# The fields of each quantizer in dermvq_jax/models/quantizers.py.
_QUANTIZERS = {
  'ema': _CODEBOOK | {'codebook_ema_decay': 0.99},
  'vq': _CODEBOOK,
  'l2_norm': _CODEBOOK | {'code_dim': 8},
  'fsq': {'values_per_dim': (8, 8, 8)},
  'residual': _CODEBOOK | {'codebook_ema_decay': 0.99, 'num_levels': 2},
}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config.

  `arg` is one of '', 'vq', 'l2_norm', 'fsq', 'residual', '128', '256', 'demo',
  'smoke'.
  """
  common.check_argument(
    'vqvae', arg, (*_QUANTIZERS, '128', '256', 'demo', 'smoke')
  )
  config = common.base('vqvae')
  config.dataset = 'ham10000/64'
  config.augment = {
    'flips': True,
    'rgb_shift_probability': 0.0,
    'rgb_shift_limit': 20,
    'cutout_probability': 0.0,
    'cutout_max_holes': 2,
    'cutout_min_side': 0.1,
    'cutout_max_side': 0.2,
    'cutout_target': 'clean',  # or 'augmented': reproduce the boxes
  }

  config.model = {
    'features': 128,
    'num_residual_blocks': 2,
    'residual_features': 32,
    'downsampling': 4,
    'stage_blocks': 0,  # the decoder's residual blocks at higher resolutions
    'activation': 'gelu',  # approximated by tanh; or 'relu', 'silu'
    'norm_groups': 0,  # groups of the norms in residual blocks; 0: no norm
    'attention_heads': 0,  # at the lowest resolution; 0: no attention
  }
  name = arg if arg in _QUANTIZERS else 'ema'
  config.quantizer = {'name': name, **_QUANTIZERS[name]}
  config.loss = {  # weights of the reconstruction's terms
    'mse': 1.0,
    'l1': 0.0,
    'huber': 0.0,
    'ssim': 0.0,
    'gradient': 0.0,
    'lpips': 0.0,
    'spectrum': 0.0,
    # Relative to the sum of the terms above; see `discriminator`.
    'adversarial': 0.0,
    'feature_matching': 0.0,
  }
  config.discriminator = {
    'features': 32,
    'num_stages': 3,
    'start': 0.5,  # share of the training before it plays
    'ramp_steps': 200,  # in which its weights then rise
  }
  config.discriminator_optim = {
    'learning_rate': 4e-4,
    'schedule': 'constant',
    'warmup_steps': 0,
    'b1': 0.5,
    'b2': 0.99,
    'weight_decay': 0.0,
    'max_grad_norm': 0.0,
  }
  # b2 = 0.999 is 1.7 dB behind after 1,500 steps.
  config.optim.update({'b2': 0.95, 'max_grad_norm': 0.0})

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
    common.shorten_to_smoke(config)
    config.dataset = 'synthetic_dermoscopy/smoke'
    config.model.update({'features': 16, 'residual_features': 8})
    config.quantizer.update(
      {'codebook_size': 32, 'code_dim': 8, 'restart_after': 4}
    )
  return config
