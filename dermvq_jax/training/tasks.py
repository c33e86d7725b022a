"""What a phase trains, as pure functions; the loop is the same for all."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dermvq_jax import errors
from dermvq_jax.models import (
  build,
  image_losses,
  losses,
  nearest,
  perceptual,
  spectrum,
  vqvae,
)
from dermvq_jax.models.priors import base
from dermvq_jax.training import adversarial, metrics

PyTree = Any
Batch = dict[str, jax.Array]


def _keep_state(params, model_state, observed, rng, *, axis_name=None):
  del params, observed, rng, axis_name  # Everything is learned by gradients.
  return model_state


def _no_images(params, model_state, batch):
  del params, model_state, batch
  return {}


@dataclasses.dataclass(frozen=True)
class Task:
  """A phase of training.

  Attributes:
    keys: the fields that are read from each record.
    best_metric: the validation metric whose lowest value marks `best/`.
    shown: the other validation metrics that the console shows.
    init: `(rng, batches) -> (params, model_state)`; sees the unsharded stream,
      the same on every host. Shapes alone decide the result's structure.
    loss_fn: `(params, model_state, batch, rng, *, train, step, axis_name) ->
      (loss, (metrics, observed))`. `step` is the number of updates before this
      one. Every term of the loss is a metric with its own name. A field `mask`
      [B] of the batch weights the metrics. Metrics are sums over this device's
      part; `observed` are arrays [B, ...].
    update_state: `(params, model_state, observed, rng, *, axis_name) ->
      model_state`, once per training step: updates what is learned without
      gradients, from `observed` of all parts of the batch.
    summary_images: `(params, model_state, batch) -> {name: [N, H, W, 3]}`.
    optimizers: how parameters are optimised: maps a top-level entry of params
      to the field of the config that describes its optimiser; '': it is not
      trained. The entry '' stands for all that are not named.
    kept: the part of params that is used after training; `best/` holds only
      this part.
  """

  keys: tuple[str, ...]
  best_metric: str
  shown: tuple[str, ...]
  init: Callable[[jax.Array, Iterator[Batch]], tuple[PyTree, PyTree]]
  loss_fn: Callable[..., tuple[jax.Array, tuple[metrics.Metrics, PyTree]]]
  update_state: Callable[..., PyTree] = _keep_state
  summary_images: Callable[..., dict[str, np.ndarray]] = _no_images
  optimizers: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {'': 'optim'}
  )
  kept: Callable[[PyTree], PyTree] = lambda params: params


def make(
  config: ml_collections.ConfigDict,
  facts: dict[str, Any],
  pretrained: PyTree = None,
) -> Task:
  """Returns the task named by `config.task`: vqvae, prior or classifier.

  Args:
    config: the run's config.
    facts: the facts of the dataset, `data.prepared.Dataset.facts`.
    pretrained: weights of a VQ-VAE whose decoder alone is trained on.

  Raises:
    UserError: the config does not fit the dataset.
  """
  makers = {
    'vqvae': functools.partial(vqvae_task, pretrained=pretrained),
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
      f'config.dataset={facts["dataset"]} cannot train the {config.task}: the '
      'prior needs codes, the others need images'
    )
  return makers[config.task](config, facts)


def _init_vqvae(
  model: vqvae.VQVAE, rng: jax.Array, batches: Iterator[Batch]
) -> tuple[PyTree, PyTree]:
  """Initialises the model, and its codebook from the first latents."""
  init_rng, codebook_rng = jax.random.split(rng)
  images = build.to_unit(next(batches)['image'])
  params, state = build.init(model, init_rng, images[:1])
  num_init_rows = model.quantizer.num_init_rows
  if not num_init_rows:
    return params, state
  variables = {'params': params, **state}
  encode = jax.jit(
    lambda variables, images: model.apply(variables, images, method='latents')
  )
  rows = []
  # Reads batches until there are enough latents.
  while sum(len(r) for r in rows) < num_init_rows:
    latents = encode(variables, images)
    rows.append(einops.rearrange(latents, 'b h w d -> (b h w) d'))
    images = build.to_unit(next(batches)['image'])
  _, state = model.apply(
    variables,
    jnp.concatenate(rows),
    method='init_codebook',
    mutable=list(state),
    rngs={'codebook': codebook_rng},
  )
  return params, state


def _reconstruction_metrics(
  reconstruction: jax.Array,
  target: jax.Array,
  variance: float,
  mask: jax.Array | None,
  *,
  train: bool,
) -> metrics.Metrics:
  """Errors of reconstructions `[B, H, W, 3]`, clipped as users get them."""
  clipped = jnp.clip(reconstruction, 0, 1)
  error = image_losses.squared_error(clipped, target)
  parts = {
    'mse': metrics.Mean.of(error, mask),
    'nmse': metrics.Mean.of(error / variance, mask),
    'psnr': metrics.Psnr.of(error, mask),
  }
  powers = [spectrum.octave_powers(x) for x in (clipped, target)]
  for i in range(spectrum.NUM_OCTAVES):
    of_image = (power[:, i] for power in powers)
    made, real = (x if mask is None else x * mask for x in of_image)
    parts[f'power_octave_{i + 1}'] = metrics.Mean(made.sum(), real.sum())
  if not train:  # It would slow training.
    parts['ssim'] = metrics.Mean.of(image_losses.ssim(clipped, target), mask)
    if target.shape[1] >= perceptual.MIN_SIZE:
      lpips = image_losses.lpips(clipped, target)
      parts['lpips'] = metrics.Mean.of(lpips, mask)
  return parts


def _code_metrics(
  codes: jax.Array, num_codes: int, mask: jax.Array | None
) -> metrics.Metrics:
  """How codes int32 `[B, h, w*L]` are used."""
  usage = (codes, num_codes, mask)
  return {
    'perplexity': metrics.Perplexity.of(*usage),
    'codebook_usage': metrics.CodebookUsage.of(*usage),
    'dead_codes': metrics.DeadCodes.of(*usage),
  }


def _reconstructions(
  model: vqvae.VQVAE,
) -> Callable[..., dict[str, np.ndarray]]:
  """Shows images above their reconstructions; see `Task.summary_images`."""

  @jax.jit
  def reconstruct(params, model_state, images):
    output = model.apply({'params': params, **model_state}, images)
    return jnp.clip(output.reconstruction, 0, 1)

  def summary_images(params, model_state, batch):
    images = build.to_unit(batch['image'][:8])
    pairs = jnp.stack([images, reconstruct(params, model_state, images)], 1)
    return {
      'reconstructions': einops.rearrange(
        np.asarray(pairs), 'b two h w c -> 1 (two h) (b w) c'
      )
    }

  return summary_images


def vqvae_task(
  config: ml_collections.ConfigDict,
  facts: dict[str, Any],
  pretrained: PyTree = None,
) -> Task:
  """The VQ-VAE: reconstructs images through a codebook.

  The loss is the sum of the quantizer's terms and of the reconstruction loss.
  By default the reconstruction loss is MSE / variance of the training images
  (van den Oord et al. 2017 divide in the same way). With pretrained weights
  only the decoder is trained, so the codes of images stay the same.
  """
  build.check_vqvae(config, facts['image_size'])
  weights = config.loss.to_dict()
  adversary = adversarial.make(config, facts['image_size'])
  pixel_weights = {
    k: v for k, v in weights.items() if k not in adversarial.TERMS
  }
  image_losses.check_reconstruction(pixel_weights)
  model = build.vqvae(config)
  num_codes, variance = model.quantizer.num_codes, facts['train_variance']
  given = pretrained['params'] if pretrained else {}
  frozen = {k: v for k, v in given.items() if k != 'decoder'}

  def init(rng, batches):
    batches = iter(batches)
    first = next(batches)
    params, state = (
      (pretrained['params'], pretrained['model_state'])
      if pretrained
      else _init_vqvae(model, rng, itertools.chain([first], batches))
    )
    if adversary:
      images = build.to_unit(first['image'])
      rng = jax.random.fold_in(rng, 1)
      params = params | {'discriminator': adversary.init(rng, images)}
    return params, state

  def loss_fn(
    params, model_state, batch, rng, *, train, step=0, axis_name=None
  ):
    if axis_name is not None:  # Views differ between devices.
      rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
    shift_rng, view_rng = jax.random.split(rng)
    params = params | {k: jax.lax.stop_gradient(params[k]) for k in frozen}
    images = build.to_unit(batch['image'])
    target = build.to_unit(batch.get('target', batch['image']))
    mask = batch.get('mask')
    output = model.apply({'params': params, **model_state}, images)
    quantized, made = output.quantized, output.reconstruction

    def reconstruction_loss(made):
      return image_losses.reconstruction(
        made, target, pixel_weights, variance, shift_rng if train else None
      )

    adversarial_terms = {}
    if train and adversary:
      (loss, terms), gradient = jax.value_and_grad(
        reconstruction_loss, has_aux=True
      )(jax.lax.stop_gradient(made))
      loss = adversarial.with_gradient(loss, made, gradient)
      adversarial_loss, adversarial_terms = adversary.loss(
        params['discriminator'],
        made,
        target,
        gradient,
        view_rng,
        step,
        axis_name,
      )
      loss += adversarial_loss
    else:
      loss, terms = reconstruction_loss(made)
    per_image = terms | quantized.metrics
    parts = {
      **_reconstruction_metrics(made, target, variance, mask, train=train),
      **_code_metrics(quantized.codes, num_codes, mask),
      **{k: metrics.Mean.of(v, mask) for k, v in per_image.items()},
      **adversarial_terms,
    }
    return quantized.loss + loss, (parts, quantized.observed)

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

  return Task(
    keys=('image',),
    best_metric='lpips' if weights['lpips'] else 'mse',
    shown=('psnr', 'codebook_usage'),
    init=init,
    loss_fn=loss_fn,
    update_state=_keep_state if pretrained else update_state,
    summary_images=_reconstructions(model),
    optimizers={
      '': 'optim',
      **dict.fromkeys(frozen, ''),
      **({'discriminator': 'discriminator_optim'} if adversary else {}),
    },
    # Averages of weights that stay would differ by rounding.
    kept=lambda params: {
      k: frozen.get(k, v) for k, v in params.items() if k != 'discriminator'
    },
  )


def prior_task(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> Task:
  """The prior: predicts each code from those before it and the conditions.

  The metrics `nll` and `bits_per_code` refer to the probabilities that codes
  are sampled from, whatever `config.loss` and `config.label_smoothing` are.
  """
  losses.check(config.loss, config.label_smoothing)
  model = build.prior(config, facts)
  names = tuple(config.conditions)
  drop_rates = tuple(config.conditions.values())
  for name, rate in config.conditions.items():
    if name != 'label' and not rate:
      raise errors.UserError(
        f'config.conditions.{name} is 0: the prior would need {name} for every '
        'image; give the share of training images in which it is hidden, such '
        'as 0.3'
      )

  def init(rng, batches):
    batch = next(batches)
    conditions = {name: batch[name][:1] for name in names}
    return build.init(model, rng, batch['codes'][:1], conditions, train=False)

  def loss_fn(
    params, model_state, batch, rng, *, train, step=0, axis_name=None
  ):
    del step
    codes, mask = batch['codes'], batch.get('mask')
    conditions = {name: batch[name] for name in names}
    rngs = {}
    if train:
      if axis_name is not None:  # Noise differs between devices.
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
      dropout_rng, condition_rng = jax.random.split(rng)
      conditions = base.drop_conditions(
        condition_rng, conditions, model.conditions, drop_rates
      )
      rngs = {'dropout': dropout_rng}
    logits = model.apply(
      {'params': params, **model_state},
      codes,
      conditions,
      train=train,
      rngs=rngs,
    )
    loss = losses.code_loss(
      logits, codes, config.loss, config.label_smoothing
    )  # [B, h, w]
    nll = losses.nll(logits, codes, config.loss)
    correct = nearest.argmax(logits) == codes
    parts = {
      'nll': metrics.Mean.of(nll, mask),
      'bits_per_code': metrics.Mean.of(nll / np.log(2), mask),
      'accuracy': metrics.Mean.of(correct, mask),
      f'{config.loss}_loss': metrics.Mean.of(loss, mask),
    }
    return jnp.mean(loss), (parts, ())

  return Task(
    keys=('codes', *names),
    best_metric='nll',
    shown=('bits_per_code',),
    init=init,
    loss_fn=loss_fn,
  )


def classifier_task(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> Task:
  """The classifier: predicts the class of real images, each equally important.

  The loss is the cross-entropy of the logits plus the log of the training
  split's class shares (logit adjustment, Menon et al. 2021, section 4). So the
  logits themselves fit balanced classes; the metrics are computed from them.
  """
  model = build.classifier(config, facts)
  num_classes = len(facts['class_names'])

  def init(rng, batches):
    counts = np.ones(num_classes)  # no class is impossible
    for batch in batches:
      counts += np.bincount(batch['label'], minlength=num_classes)
      if counts.sum() >= facts['num_train'] + num_classes:
        break
    params, _ = build.init(model, rng, build.to_unit(batch['image'][:1]))
    log_shares = jnp.asarray(np.log(counts / counts.sum()), jnp.float32)
    return params, {'class_balance': {'log_shares': log_shares}}

  def loss_fn(
    params, model_state, batch, rng, *, train, step=0, axis_name=None
  ):
    del rng, train, step, axis_name  # The same function in every step.
    labels, mask = batch['label'], batch.get('mask')
    logits = model.apply({'params': params}, build.to_unit(batch['image']))
    adjusted = logits + model_state['class_balance']['log_shares']
    loss = losses.nll(adjusted, labels)  # [B]
    correct = nearest.argmax(logits) == labels
    by_class = (labels, num_classes, mask)
    parts = {
      'accuracy': metrics.Mean.of(correct, mask),
      'balanced_accuracy': metrics.ClassMean.of(correct, *by_class),
      'balanced_nll': metrics.ClassMean.of(
        losses.nll(logits, labels), *by_class
      ),
      'adjusted_nll': metrics.Mean.of(loss, mask),
    }
    return jnp.mean(loss), (parts, ())

  return Task(
    keys=('image', 'label'),
    best_metric='balanced_nll',
    shown=('balanced_accuracy',),
    init=init,
    loss_fn=loss_fn,
  )
