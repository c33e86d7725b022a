r"""The VQ-VAE, which turns images into codes and back.

```
dermvq prepare --dataset=ham10000/64 --manual_dir=DIR --data_dir=DATA
dermvq train --config=vqvae --workdir=W --config.data_dir=DATA
```

Without an argument images have 64 px and 8x8 codes. LPIPS and, in the second
part of the training, a discriminator make reconstructions sharp. The argument
is one of these words, or some, joined by '+':

- 'mse': squared error alone, with four times as many codes, but half of the
  codebook: faster, and blurred;
- 'sharp': the default for all sizes but 'demo' and 'smoke', whose trainings are
  too short for it;
- 'sharpen': trains the decoder of a trained run on, until its reconstructions
  and its samples look real, while its codes and its prior stay: give
  `--config.start_from=RUN`;
- '128', '256': larger images, for TPU and GPU; with 'cpu' (128+cpu) in small
  batches and few epochs, for a CPU;
- 'ema', 'vq', 'l2_norm', 'fsq', 'residual': a quantizer; by default 'ema';
- 'demo': the built-in dataset in minutes; 'smoke': seconds, for tests.

For example, `--config=vqvae:128+mse`. Expected results are in
experiments/RESULTS.md.
"""

import ml_collections
from ml_collections import config_dict

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
_LOSSES = ('mse', 'sharp', 'sharpen')
_LARGE = ('128', '256')
_SIZES = (*_LARGE, 'demo', 'smoke')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: words from the list above, joined by '+'.
  """
  words = common.words('vqvae', arg, (*_LOSSES, *_QUANTIZERS, *_SIZES, 'cpu'))
  config = common.base('vqvae')
  config.dataset = 'ham10000/64'  # NAME/SIZE, as in dermvq prepare
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
  name = common.one_of(words, _QUANTIZERS, 'ema')
  config.quantizer = {'name': name, **_QUANTIZERS[name]}
  # Folder of a run whose encoder and codebook are kept; '': train all.
  config.start_from = ''
  config.loss = {  # weights of the terms
    'mse': 1.0,
    'l1': 0.0,
    'huber': 0.0,
    'ssim': 0.0,
    'gradient': 0.0,
    'lpips': 0.0,
    'spectrum': 0.0,
    # How long the discriminator's gradient at the images is, as a multiple of
    # that of the terms above; and the weight of its second term.
    'adversarial': 0.0,
    'feature_matching': 10.0,
  }
  # The network of LPIPS and of the discriminator: a file of VGG16 from
  # experiments/lpips_weights.py; '': AlexNet, which comes with the package.
  config.perceptual_weights = ''
  # Side of the random squares that it sees in training; 0: whole images.
  config.perceptual_crop = 0
  config.discriminator = {
    'features': 32,
    'num_stages': 3,
    'is_projected': True,  # whether it judges the network's features too
    'start': 0.35,  # share of the training before it plays
    'ramp_steps': 200,  # in which its weight then rises
    # How many samples of the prior of `start_from` it sees beside
    # reconstructions; 0: none.
    'num_samples': 0,
  }
  config.discriminator_optim = {
    'learning_rate': 2e-4,
    'schedule': 'constant',
    'warmup_steps': 0,
    'b1': 0.5,
    'b2': 0.99,
    'weight_decay': 0.0,
    'max_grad_norm': 0.0,
  }
  # b2 = 0.999 is 1.7 dB behind after 1,500 steps.
  config.optim.update({'b2': 0.95, 'max_grad_norm': 0.0})

  size = common.one_of(words, _SIZES, '64')
  _set_size(config, size)
  if 'cpu' in words:
    if size not in _LARGE:
      raise ValueError("'cpu' goes with 128 or 256 only; leave it out")
    _fit_a_cpu(config)
  default = 'mse' if size in ('demo', 'smoke') else 'sharp'
  loss = common.one_of(words, _LOSSES, default)
  if loss == 'sharp':
    _take_fewer_codes(config)
  if loss != 'mse':
    # Images of the size 'smoke' are too small for LPIPS.
    config.loss.update(
      {'lpips': float(size != 'smoke'), 'spectrum': 0.1, 'adversarial': 1.6}
    )
    config.optim.b1 = 0.5
    config.min_train_steps = 3500
  if loss == 'sharpen':
    # Model, quantizer and dataset are those of the other run.
    if any(word in words for word in _QUANTIZERS):
      raise ValueError(
        f"'sharpen' keeps the codes of another run; leave out {name}"
      )
    config.start_from = config_dict.placeholder(str)
    config.discriminator.start = 0.0
    config.discriminator.num_samples = 4096 if size != 'smoke' else 16
    config.optim.learning_rate = 5e-4
    config.min_train_steps = 1000
    if size == '64':
      config.num_epochs = 4.0
    elif size == 'demo':
      config.loss.adversarial = 0.8  # more gives drawn borders halos
      config.discriminator.num_samples = 1024
      config.num_train_steps = 500
  return config


def _set_size(config: ml_collections.ConfigDict, size: str) -> None:
  """Sets what depends on the size of the images."""
  if size in _LARGE:
    config.dataset = f'ham10000/{size}'
    config.batch_size = 128
    config.num_epochs = 100.0
    config.model.downsampling = 4 if size == '128' else 8
    config.dtype = 'bfloat16'
    config.num_workers = 8
  elif size == 'demo':
    config.dataset = 'synthetic_dermoscopy/64'
    config.model.features = 64
    if config.quantizer.name != 'fsq':
      config.quantizer.codebook_size = 256
    config.num_train_steps = 1000
    config.eval_every_steps = 250
  elif size == 'smoke':
    common.shorten_to_smoke(config)
    config.dataset = 'synthetic_dermoscopy/smoke'
    config.model.update({'features': 16, 'residual_features': 8})
    config.discriminator.update(
      {'features': 8, 'num_stages': 2, 'is_projected': False}
    )
    if config.quantizer.name != 'fsq':
      config.quantizer.update(
        {'codebook_size': 32, 'code_dim': 8, 'restart_after': 4}
      )


def _fit_a_cpu(config: ml_collections.ConfigDict) -> None:
  """Makes training on large images possible on a few cores."""
  config.batch_size = 8
  config.num_epochs = 7.0
  config.dtype = 'float32'
  config.num_workers = 0


def _take_fewer_codes(config: ml_collections.ConfigDict) -> None:
  """A quarter of the codes, from a codebook that is twice as large."""
  config.model.downsampling *= 2
  config.model.stage_blocks = 1
  if config.quantizer.name == 'fsq':
    config.quantizer.values_per_dim = (16, 8, 8)
  else:
    config.quantizer.codebook_size *= 2
