"""Builds models from configs, and functions from models and weights.

A component is chosen by its name in a config, which cannot point outside of
`dermvq_jax.models`. Modules take explicit fields, never a config.
"""

import dataclasses
import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dermvq_jax import errors, spelling
from dermvq_jax.models import classifier as classifier_lib
from dermvq_jax.models import discriminator as discriminator_lib
from dermvq_jax.models import (
  image_losses,
  losses,
  nearest,
  perceptual,
  quantizers,
)
from dermvq_jax.models import vqvae as vqvae_lib
from dermvq_jax.models.priors import base, levels

PyTree = Any
# A config, or a part of one; `ml_collections.ConfigDict` is read like this.
Config = Any
Facts = Mapping[str, Any]

VQVAE_PARTS = ('encoder', 'codebook', 'decoder')
_PRIORS = 'dermvq_jax.models.priors'


def to_unit(images: jax.Array) -> jax.Array:
  """Converts uint8 images to float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255


def to_uint8(images: jax.Array) -> jax.Array:
  """Converts images around [0, 1] to uint8."""
  return jnp.rint(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)


def init(
  model: nn.Module, rng: jax.Array, *inputs: Any, **options: Any
) -> tuple[PyTree, PyTree]:
  """Returns the parameters and the other collections of a new model."""
  # As one program; op by op, JAX would compile a hundred small ones.
  apply = jax.jit(functools.partial(model.init, **options))
  state, params = flax.core.pop(apply(rng, *inputs), 'params')
  return params, state


def variables(weights: PyTree) -> PyTree:
  """Turns `{'params': ..., 'model_state': ...}` into a model's variables."""
  return {'params': weights['params'], **weights['model_state']}


def _dtype(config: Config) -> jnp.dtype:
  if config.dtype not in ('float32', 'bfloat16'):
    raise errors.UserError(
      f"config.dtype is {config.dtype!r}; it must be 'float32' or 'bfloat16'"
    )
  return jnp.dtype(config.dtype)


def _make(
  component: type, config: Config, kind: str, configs: str, **fields: Any
) -> Any:
  """Makes a component from the fields in its config.

  Args:
    component: the module's class.
    config: `name` and fields of the component.
    kind: a word for the component, for messages.
    configs: the file in configs/ whose argument is the component's name.
    **fields: the fields that are not in the config.

  Raises:
    UserError: a field is unknown or missing.
  """
  given = {k: v for k, v in config.items() if k != 'name'} | fields
  known = {
    f.name: f.default is dataclasses.MISSING
    for f in dataclasses.fields(component)
    if f.init and f.name not in ('parent', 'name')
  }
  problems = (
    ('has no', sorted(set(given) - set(known))),
    ('lacks', [k for k, needed in known.items() if needed and k not in given]),
  )
  for problem, names in problems:
    if names:
      raise errors.UserError(
        f'the {kind} {config.name!r} {problem} {", ".join(names)}; start '
        f'from its own config, --config={configs}:{config.name}'
      )
  return component(**given)


def vqvae(config: Config) -> vqvae_lib.VQVAE:
  """Builds the VQ-VAE from `config.model` and `config.quantizer`.

  Raises:
    UserError: an unknown quantizer, or a field is unknown or missing.
  """
  name = str(config.quantizer.name)
  if name not in quantizers.QUANTIZERS:
    raise errors.UserError(
      f'there is no quantizer named {name!r}; there are '
      + ', '.join(quantizers.QUANTIZERS)
    )
  quantizer = _make(
    quantizers.QUANTIZERS[name], config.quantizer, 'quantizer', 'vqvae'
  )
  shared = {**config.model, 'dtype': _dtype(config)}
  decoder = {'stage_blocks': shared.pop('stage_blocks')}
  return vqvae_lib.VQVAE(
    encoder=vqvae_lib.Encoder(code_dim=quantizer.code_dim, **shared),
    quantizer=quantizer,
    decoder=vqvae_lib.Decoder(**decoder, **shared),
  )


def discriminator(config: Config) -> discriminator_lib.Discriminator:
  """Builds the discriminator from `config.discriminator`."""
  return discriminator_lib.Discriminator(
    features=config.discriminator.features,
    num_stages=config.discriminator.num_stages,
    view=view(config) if config.discriminator.is_projected else None,
    dtype=_dtype(config),
  )


def view(config: Config) -> perceptual.View:
  """How LPIPS and the discriminator see images, from `config.perceptual_*`."""
  return perceptual.View(config.perceptual_weights, config.perceptual_crop)


def check_view(config: Config, image_size: int, remedy: str):
  """Checks that the network of a training can see its images.

  Args:
    config: of a VQ-VAE.
    image_size: side of the images, in pixels.
    remedy: what to set if the images are too small.

  Raises:
    UserError: the images, or what it would see of them, are too small, or its
      file cannot be read.
  """
  crop, least = config.perceptual_crop, perceptual.MIN_SIZE
  if image_size < least:
    raise errors.UserError(
      f'images of {image_size} px are smaller than the {least} px that the '
      f'network of the loss needs; set {remedy}, or choose another dataset size'
    )
  if crop and not least <= crop <= image_size:
    raise errors.UserError(
      f'config.perceptual_crop is {crop}; give 0 to see whole images, or '
      f'{least} to {image_size} px'
    )
  view(config).load()  # raises if the file cannot be read


def check_discriminator(config: Config, image_size: int):
  """Checks the discriminator's config against the size of the images.

  Raises:
    UserError: a value is out of its range, or does not suit the images.
  """
  own = config.discriminator
  if own.features % discriminator_lib.GROUPS:
    raise errors.UserError(
      f'config.discriminator.features is {own.features}; give a multiple of '
      f'{discriminator_lib.GROUPS}'
    )
  if image_size % (1 << own.num_stages):
    raise errors.UserError(
      f'images of {image_size} px cannot be halved {own.num_stages} times; '
      'lower config.discriminator.num_stages'
    )
  if own.is_projected:
    check_view(config, image_size, 'config.discriminator.is_projected=False')


def _check_divisors(model: Config):
  """Raises UserError unless norms and attention divide their widths."""
  for name, widths in (
    ('norm_groups', ('features', 'residual_features')),
    ('attention_heads', ('features',)),
  ):
    number = model.get(name, 0)
    if number < 0 or (number and any(model[w] % number for w in widths)):
      raise errors.UserError(
        f'config.model.{name} is {number}; give 0 for none, or a divisor of '
        + ' and '.join(f'config.model.{w}={model[w]}' for w in widths)
      )
  # The narrowest norm of the decoder's blocks at higher resolutions.
  quarter, groups = model.features // 4, model.get('norm_groups', 0)
  has_blocks = model.get('stage_blocks', 0) and model.downsampling > 2
  if groups and has_blocks and quarter % groups:
    raise errors.UserError(
      f'config.model.norm_groups is {groups}; with config.model.stage_blocks '
      f'it must divide a quarter of config.model.features={model.features}'
    )


def check_vqvae(config: Config, image_size: int):
  """Checks a VQ-VAE's config against the size of its images.

  Raises:
    UserError: a value is out of its range, or does not suit the images.
  """
  model = config.model
  factor = model.downsampling
  if factor < 2 or factor & (factor - 1):
    raise errors.UserError(
      f'config.model.downsampling is {factor}; it must be a power of 2, '
      'from 2 up'
    )
  for name in ('features', 'residual_features'):
    if model[name] < 1:
      raise errors.UserError(
        f'config.model.{name} is {model[name]}; give 1 or more'
      )
  if model.activation not in vqvae_lib.ACTIVATIONS:
    raise errors.UserError(
      f'config.model.activation is {model.activation!r}; it must be one of '
      + ', '.join(map(repr, vqvae_lib.ACTIVATIONS))
    )
  _check_divisors(model)
  if image_size < image_losses.SSIM_WINDOW:
    raise errors.UserError(
      f'images of {image_size} px are smaller than the '
      f'{image_losses.SSIM_WINDOW} px that SSIM is measured over; choose '
      'another dataset size'
    )
  if image_size % factor:
    raise errors.UserError(
      f'images of {image_size} px are not divisible by '
      f'config.model.downsampling={factor}; choose another dataset size or '
      'downsampling'
    )


def prior(config: Config, facts: Facts) -> base.Prior:
  """Builds the prior `config.prior.name`, the `Prior` of that module.

  Args:
    config: the config of the prior's phase.
    facts: the facts of the dataset of codes.

  Raises:
    UserError: an unknown prior, a field is unknown or missing, or the codes
      lack a condition.
  """
  name = str(config.prior.name)
  path = f'{_PRIORS}.{name}'
  is_module = re.fullmatch('[a-z0-9_]+', name) and importlib.util.find_spec(
    path
  )
  component = is_module and getattr(
    importlib.import_module(path), 'Prior', None
  )
  if not component or component is base.Prior:  # Other modules lie there too.
    raise errors.UserError(
      f'there is no prior named {name!r}; each is a module of {_PRIORS}, such '
      'as gated_pixelcnn'
    )
  unknown = [c for c in config.conditions if c not in facts['conditions']]
  if unknown:
    raise errors.UserError(
      f'config.conditions has {", ".join(unknown)}; the codes have '
      + ', '.join(facts['conditions'])
      + spelling.did_you_mean(unknown[0], facts['conditions'])
    )
  model = _make(
    component,
    config.prior,
    'prior',
    'prior',
    codebook_size=facts['codebook_size'],
    conditions=tuple(
      (c, len(facts['conditions'][c])) for c in config.conditions
    ),
    dtype=_dtype(config),
  )
  num_levels = facts.get('num_levels', 1)
  return model if num_levels == 1 else levels.LeveledPrior(model, num_levels)


def classifier(config: Config, facts: Facts) -> classifier_lib.Classifier:
  """Builds the classifier from `config.classifier`.

  Raises:
    UserError: the width does not suit the stages, or the images cannot be
      halved so often.
  """
  features, stages = config.classifier.features, config.classifier.num_stages
  if stages < 1 or features < 1 or features % (8 << (stages - 1)):
    raise errors.UserError(
      f'config.classifier.features is {features}; with num_stages={stages} it '
      f'must be a multiple of {8 << max(stages - 1, 0)}, and there must be 1 '
      'stage or more'
    )
  if facts['image_size'] % (1 << stages):
    raise errors.UserError(
      f'images of {facts["image_size"]} px cannot be halved {stages} times; '
      'lower config.classifier.num_stages'
    )
  return classifier_lib.Classifier(
    num_classes=len(facts['class_names']),
    dtype=_dtype(config),
    **config.classifier,
  )


@dataclasses.dataclass(frozen=True)
class Codec:
  """A trained VQ-VAE as compiled functions.

  Attributes:
    model: the VQ-VAE.
    encode: uint8 images `[B, H, W, 3]` to codes int32 `[B, h, w*L]`.
    distances: images to mean squared distances to the codes, `[B, h, w]`.
    embed: codes to the decoder's input, `[B, h, w, D]`.
    decode: codes to uint8 images.
  """

  model: vqvae_lib.VQVAE
  encode: Callable[[np.ndarray], jax.Array]
  distances: Callable[[np.ndarray], jax.Array]
  embed: Callable[[np.ndarray], jax.Array]
  decode: Callable[[np.ndarray], jax.Array]


def codec(config: Config, weights: PyTree) -> Codec:
  """Builds the functions of a trained VQ-VAE.

  Args:
    config: the config of the VQ-VAE.
    weights: `{'params': ..., 'model_state': ...}`.
  """
  model = vqvae(config)
  on_device = jax.device_put(variables(weights))

  @jax.jit
  def encode(variables, images):
    return model.apply(variables, to_unit(images), method='encode')

  @jax.jit
  def embed(variables, codes):
    return model.apply(variables, codes, method='embed')

  @jax.jit
  def distances(variables, images):
    return model.apply(variables, to_unit(images), method='distances')

  @jax.jit
  def decode(variables, codes):
    return to_uint8(model.apply(variables, codes, method='decode'))

  functions = (encode, distances, embed, decode)
  return Codec(model, *(functools.partial(f, on_device) for f in functions))


def vqvae_part(
  config: Config, weights: PyTree, part: str
) -> tuple[Callable[..., jax.Array], PyTree]:
  """One of `VQVAE_PARTS` as a pure function of its variables.

  Args:
    config: the config of the VQ-VAE.
    weights: `{'params': ..., 'model_state': ...}`.
    part: 'encoder', 'codebook' or 'decoder'.

  Returns:
    The function and its variables. The encoder's function takes variables and
    uint8 images `[B, H, W, 3]`, and returns latents `[B, h, w, D]`; the
    decoder's takes variables and latents, and returns images; the codebook's
    takes only variables, and returns float32 `[L*K, D]`.
  """
  model = vqvae(config)
  name = 'quantizer' if part == 'codebook' else part
  own = {k: v[name] for k, v in variables(weights).items() if name in v}
  apply = getattr(model, name).apply
  functions = {
    'encoder': lambda variables, images: apply(variables, to_unit(images)),
    'codebook': lambda variables: apply(variables, method='vectors'),
    'decoder': lambda variables, vectors: to_uint8(apply(variables, vectors)),
  }
  return functions[part], own


def likelihood(
  model: base.Prior, loss: str
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Builds the function that scores codes with a prior.

  Args:
    model: the prior.
    loss: the loss that the prior was trained with; see `losses.log_probs`.

  Returns:
    A compiled function of the prior's variables, codes int32 `[B, h, w]` and
    conditions. It returns the most likely code at each place given the true
    codes before it, int32 `[B, h, w]`, and the log-likelihood of each code,
    nats `[B, h, w]`.
  """

  @jax.jit
  def apply(variables, codes, conditions):
    logits = model.apply(variables, codes, conditions, train=False)
    return nearest.argmax(logits), -losses.nll(logits, codes, loss)

  return apply
