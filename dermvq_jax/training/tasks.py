"""What a phase trains, as pure functions; the loop never asks which it is."""

import dataclasses
import functools
import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dermvq_jax import errors
from dermvq_jax.models import classifier, layers, losses, quantizers, vqvae
from dermvq_jax.models.priors import levels
from dermvq_jax.training import metrics

PyTree = Any
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
  """A phase of training.

  Attributes:
    features: what to read from each record.
    best_metric: the validation metric whose lowest value marks `best/`.
    init: `(rng, batches) -> (params, model_state)`; sees the unsharded stream,
      the same on every host.
    loss_fn: `(params, model_state, batch, rng, *, train, axis_name) -> (loss,
      (metrics, observed))`. A feature `mask` [B] weights the metrics. Metrics
      are sums of this device's part; `observed` are arrays [B, ...].
    update_state: `(params, model_state, observed, rng, *, axis_name) ->
      model_state`, once a training step: what is learned without gradients,
      from what `loss_fn` observed in all parts of the batch.
    summary_images: `(params, model_state, batch) -> {name: [N, H, W, 3]}`.
  """

  features: tuple[str, ...]
  best_metric: str
  init: Callable[[jax.Array, Iterator[Batch]], tuple[PyTree, PyTree]]
  loss_fn: Callable[..., tuple[jax.Array, tuple[metrics.Metrics, PyTree]]]
  update_state: Callable[..., PyTree]
  summary_images: Callable[[PyTree, PyTree, Batch], dict[str, np.ndarray]]


def make(config: ml_collections.ConfigDict, facts: dict[str, Any]) -> Task:
  """Returns the task named by `config.task`: vqvae, prior or classifier.

  Args:
    config: the run's config.
    facts: of the dataset, from `data.prepared.describe`.

  Raises:
    UserError: the config does not fit the dataset.
  """
  makers = {
    'vqvae': vqvae_task,
    'prior': prior_task,
    'classifier': classifier_task,
  }
  if config.task not in makers:
    raise errors.UserError(
      f'config.task is {config.task!r}; it must be one of '
      + ', '.join(map(repr, makers))
    )
  needed = 'codebook_size' if config.task == 'prior' else 'image_size'
  if needed not in facts:
    raise errors.UserError(
      f'config.dataset={facts["dataset"]} can not train the {config.task}: the '
      'prior needs codes, the others images'
    )
  return makers[config.task](config, facts)


def _dtype(config: ml_collections.ConfigDict) -> jnp.dtype:
  if config.dtype not in ('float32', 'bfloat16'):
    raise errors.UserError(
      f"config.dtype is {config.dtype!r}; it must be 'float32' or 'bfloat16'"
    )
  return jnp.dtype(config.dtype)


def to_unit(images: jax.Array) -> jax.Array:
  """uint8 images to float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255


def to_uint8(images: jax.Array) -> jax.Array:
  """Images around [0, 1] to uint8."""
  return jnp.rint(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)


def _component(name: str, find: Callable[[str], Any], kind: str) -> Any:
  """Finds a component by its name, which can't point outside the package."""
  try:
    if not re.fullmatch('[a-z0-9_]+', str(name)):
      raise AttributeError
    return find(name)
  except (AttributeError, ModuleNotFoundError) as e:
    # What a component itself fails to import is not a wrong name.
    if isinstance(e, ModuleNotFoundError) and not e.name.endswith(f'.{name}'):
      raise
    raise errors.UserError(f'there is no {kind} named {name!r}') from None


def _make_component(
  component: type,
  config: ml_collections.ConfigDict,
  kind: str,
  configs: str,
  **fields: Any,
) -> Any:
  """Makes a component from the fields in its config.

  Args:
    component: the module's class.
    config: `name` and fields of the component.
    kind: what it is, for messages.
    configs: the file in configs/ whose argument is the component's name.
    **fields: those that are not in the config.

  Raises:
    UserError: a field that it does not have, or one that it lacks.
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


def _init(
  model: nn.Module, rng: jax.Array, *inputs: jax.Array, **options: Any
) -> tuple[PyTree, PyTree]:
  """Parameters and other collections of a new model."""
  # As one program: op by op, a start compiles a hundred.
  init = jax.jit(functools.partial(model.init, **options))
  state, params = flax.core.pop(init(rng, *inputs), 'params')
  return params, state


def vqvae_model(config: ml_collections.ConfigDict) -> vqvae.VQVAE:
  """Builds the VQ-VAE from `config.model` and `config.quantizer`."""
  found = _component(
    config.quantizer.name,
    lambda name: getattr(
      quantizers, name.title().replace('_', '') + 'Quantizer'
    ),
    'quantizer',
  )
  quantizer = _make_component(found, config.quantizer, 'quantizer', 'vqvae')
  shared = {**config.model, 'dtype': _dtype(config)}
  return vqvae.VQVAE(
    encoder=vqvae.Encoder(code_dim=quantizer.code_dim, **shared),
    quantizer=quantizer,
    decoder=vqvae.Decoder(**shared),
  )


def _check_divisors(model: ml_collections.ConfigDict):
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


VQVAE_PARTS = ('encoder', 'codebook', 'decoder')


def vqvae_part(
  config: ml_collections.ConfigDict, weights: PyTree, part: str
) -> tuple[Callable[..., jax.Array], PyTree]:
  """One of `VQVAE_PARTS`, as a function of its own variables.

  Args:
    config: of the VQ-VAE.
    weights: `{'params': ..., 'model_state': ...}`.
    part: which.

  Returns:
    The function of the variables and, for the encoder, uint8 images
    `[B, H, W, 3]`, to latents `[B, h, w, D]`; for the decoder the other way
    round; for the codebook nothing more, to float32 `[L*K, D]`. And the
    variables.
  """
  model = vqvae_model(config)
  name = 'quantizer' if part == 'codebook' else part
  collections = {'params': weights['params'], **weights['model_state']}
  variables = {k: v[name] for k, v in collections.items() if name in v}
  apply = getattr(model, name).apply
  functions = {
    'encoder': lambda variables, images: apply(variables, to_unit(images)),
    'codebook': lambda variables: apply(variables, method='vectors'),
    'decoder': lambda variables, vectors: to_uint8(apply(variables, vectors)),
  }
  return functions[part], variables


def encoding_weights(weights: PyTree) -> dict[str, PyTree]:
  """The part of a VQ-VAE's weights that decides an image's codes.

  Args:
    weights: `{'params': ..., 'model_state': ...}`.

  Returns:
    Encoder and quantizer without its running statistics: nested dictionaries.
  """
  params = weights['params']
  parts = {'encoder': params['encoder']}
  if 'quantizer' in params:
    parts['quantizer'] = params['quantizer']
  state = flax.traverse_util.flatten_dict(
    weights['model_state']['codebook']['quantizer']
  )
  for path, leaf in state.items():
    if path[-1] not in quantizers.STATISTICS:
      parts['/'.join(path)] = leaf
  return parts


def _check_sizes(config: ml_collections.ConfigDict, size: int):
  factor = config.model.downsampling
  if factor < 2 or factor & (factor - 1):
    raise errors.UserError(
      f'config.model.downsampling is {factor}; it must be a power of 2, '
      'from 2 up'
    )
  for name, value in (
    ('model.features', config.model.features),
    ('model.residual_features', config.model.residual_features),
  ):
    if value < 1:
      raise errors.UserError(f'config.{name} is {value}; give 1 or more')
  if config.model.activation not in vqvae.ACTIVATIONS:
    raise errors.UserError(
      f'config.model.activation is {config.model.activation!r}; it must be one '
      'of ' + ', '.join(map(repr, vqvae.ACTIVATIONS))
    )
  _check_divisors(config.model)
  if size < losses.SSIM_WINDOW:
    raise errors.UserError(
      f'images of {size} px are smaller than the {losses.SSIM_WINDOW} px that '
      'SSIM is measured over; choose another dataset size'
    )
  if size % factor:
    raise errors.UserError(
      f'images of {size} px are not divisible by config.model.downsampling='
      f'{factor}; choose another dataset size or downsampling'
    )


def vqvae_task(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> Task:
  """Phase 1: reconstruct images through a codebook.

  The loss is the reconstruction's, by default MSE / variance of the training
  images (van den Oord et al. 2017 divide likewise), plus the quantizer's.
  """
  _check_sizes(config, facts['image_size'])
  losses.check_reconstruction(config.loss)
  model = vqvae_model(config)
  num_codes, start_rows = model.quantizer.num_codes, model.quantizer.start_rows
  variance = facts['train_variance']

  def init(rng, batches):
    init_rng, start_rng = jax.random.split(rng)
    images = to_unit(next(batches)['image'])
    params, state = _init(model, init_rng, images[:1])
    variables = {'params': params, **state}
    encode = jax.jit(functools.partial(model.apply, method='latents'))
    if not start_rows:
      return params, state
    rows = []
    # As many batches as it takes.
    while sum(len(r) for r in rows) < start_rows:
      latents = encode(variables, images)
      rows.append(einops.rearrange(latents, 'b h w d -> (b h w) d'))
      images = to_unit(next(batches)['image'])
    _, state = model.apply(
      variables,
      jnp.concatenate(rows),
      method='start_codebook',
      mutable=list(state),
      rngs={'codebook': start_rng},
    )
    return params, state

  def loss_fn(params, model_state, batch, rng, *, train, axis_name=None):
    images = to_unit(batch['image'])
    target = to_unit(batch.get('target', batch['image']))
    mask = batch.get('mask')
    output = model.apply(
      {'params': params, **model_state}, images, axis_name=axis_name
    )
    quantized = output.quantized
    loss = quantized.loss + losses.reconstruction(
      output.reconstruction, target, config.loss, variance
    )
    # What a user gets is clipped; so is what is measured.
    clipped = jnp.clip(output.reconstruction, 0, 1)
    error = losses.squared_error(clipped, target)
    usage = (quantized.codes, num_codes, mask)
    parts = {
      'mse': metrics.Mean.of(error, mask),
      'nmse': metrics.Mean.of(error / variance, mask),
      'psnr': metrics.Psnr.of(error, mask),
      'perplexity': metrics.Perplexity.of(*usage),
      'codebook_usage': metrics.CodebookUsage.of(*usage),
      'dead_codes': metrics.DeadCodes.of(*usage),
      **{k: metrics.Mean.of(v, mask) for k, v in quantized.metrics.items()},
    }
    if not train:  # It would slow training.
      parts['ssim'] = metrics.Mean.of(losses.ssim(clipped, target), mask)
    return loss, (parts, quantized.observed)

  def update_state(params, model_state, observed, rng, *, axis_name=None):
    _, new_state = model.apply(
      {'params': params, **model_state},
      observed,
      axis_name=axis_name,
      method='update_codebook',
      mutable=list(model_state),
      rngs={'codebook': rng},
    )
    return new_state

  @jax.jit
  def reconstruct(params, model_state, images):
    output = model.apply({'params': params, **model_state}, images)
    return jnp.clip(output.reconstruction, 0, 1)

  def summary_images(params, model_state, batch):
    images = to_unit(batch['image'][:8])
    pairs = jnp.stack([images, reconstruct(params, model_state, images)], 1)
    return {
      'reconstructions': einops.rearrange(
        np.asarray(pairs), 'b two h w c -> 1 (two h) (b w) c'
      )
    }

  return Task(('image',), 'mse', init, loss_fn, update_state, summary_images)


def prior_model(config: ml_collections.ConfigDict, facts: dict[str, Any]):
  """Builds the prior `config.prior.name`: `Prior` of that module in models."""
  prior = _component(
    config.prior.name,
    lambda name: (
      importlib.import_module(f'dermvq_jax.models.priors.{name}').Prior
    ),
    'prior',
  )
  model = _make_component(
    prior,
    config.prior,
    'prior',
    'prior',
    codebook_size=facts['codebook_size'],
    num_classes=len(facts['class_names']),
    dtype=_dtype(config),
  )
  num_levels = facts.get('levels', 1)
  return model if num_levels == 1 else levels.LeveledPrior(model, num_levels)


def prior_task(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> Task:
  """Phase 2: predict each code from those before it and the label.

  The metrics `nll` and `bits_per_code` are of the probabilities that are
  sampled from, whatever `config.loss` and `config.label_smoothing` are.
  """
  losses.check(config.loss, config.label_smoothing)
  model = prior_model(config, facts)
  null_label = len(facts['class_names'])

  def init(rng, batches):
    batch = next(batches)
    inputs = batch['codes'][:1], batch['label'][:1]
    return _init(model, rng, *inputs, train=False)

  def loss_fn(params, model_state, batch, rng, *, train, axis_name=None):
    codes, labels = batch['codes'], batch['label']
    mask = batch.get('mask')
    if train:
      if axis_name is not None:  # noise differs between devices
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
      dropout_rng, label_rng = jax.random.split(rng)
      drop = jax.random.bernoulli(
        label_rng, config.label_dropout_rate, labels.shape
      )
      labels = jnp.where(drop, null_label, labels)
      rngs = {'dropout': dropout_rng}
    else:
      rngs = {}
    logits = model.apply(
      {'params': params, **model_state}, codes, labels, train=train, rngs=rngs
    )
    loss = losses.code_loss(
      logits, codes, config.loss, config.label_smoothing
    )  # [B, h, w]
    nll = losses.nll(logits, codes, config.loss)
    correct = layers.argmax(logits) == codes
    parts = {
      'nll': metrics.Mean.of(nll, mask),
      'bits_per_code': metrics.Mean.of(nll / np.log(2), mask),
      'accuracy': metrics.Mean.of(correct, mask),
    }
    return jnp.mean(loss), (parts, ())

  return Task(
    ('codes', 'label'),
    'nll',
    init,
    loss_fn,
    _keep_state,
    lambda *unused_args: {},
  )


def _keep_state(params, model_state, observed, rng, *, axis_name=None):
  del params, observed, rng, axis_name  # All is learned with gradients.
  return model_state


def classifier_model(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> classifier.Classifier:
  """Builds the classifier from `config.classifier`.

  Raises:
    UserError: a width that does not fit, or images that can not be halved so
      often.
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
      f'images of {facts["image_size"]} px can not be halved {stages} times; '
      'lower config.classifier.num_stages'
    )
  return classifier.Classifier(
    num_classes=len(facts['class_names']),
    dtype=_dtype(config),
    **config.classifier,
  )


def classifier_task(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> Task:
  """Classes of real images, each class as important as any other.

  The loss is the cross-entropy of the logits plus the log of the training
  split's class shares (logit adjustment, Menon et al. 2021, section 4), which
  makes the plain logits those of balanced classes. The metrics are of the
  plain logits.
  """
  model = classifier_model(config, facts)
  num_classes = len(facts['class_names'])

  def init(rng, batches):
    counts = np.ones(num_classes)  # no class is impossible
    for batch in batches:
      counts += np.bincount(batch['label'], minlength=num_classes)
      if counts.sum() >= facts['num_train'] + num_classes:
        break
    params, _ = _init(model, rng, to_unit(batch['image'][:1]))
    log_shares = jnp.asarray(np.log(counts / counts.sum()), jnp.float32)
    return params, {'class_balance': {'log_shares': log_shares}}

  def loss_fn(params, model_state, batch, rng, *, train, axis_name=None):
    del rng, train, axis_name  # it draws nothing and averages nothing
    labels, mask = batch['label'], batch.get('mask')
    logits = model.apply({'params': params}, to_unit(batch['image']))
    adjusted = logits + model_state['class_balance']['log_shares']
    loss = losses.nll(adjusted, labels)  # [B]
    correct = layers.argmax(logits) == labels
    by_class = (labels, num_classes, mask)
    parts = {
      'accuracy': metrics.Mean.of(correct, mask),
      'balanced_accuracy': metrics.ClassMean.of(correct, *by_class),
      'balanced_nll': metrics.ClassMean.of(
        losses.nll(logits, labels), *by_class
      ),
    }
    return jnp.mean(loss), (parts, ())

  return Task(
    ('image', 'label'),
    'balanced_nll',
    init,
    loss_fn,
    _keep_state,
    lambda *unused_args: {},
  )
