"""The phase of the VQ-VAE."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import einops
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dermvq_jax.models import (
  build,
  image_losses,
  perceptual,
  spectrum,
  vqvae,
)
from dermvq_jax.training import adversarial, metrics, pretrained
from dermvq_jax.training import task as task_lib

PyTree = Any


def _init(
  model: vqvae.VQVAE, rng: jax.Array, batches: Iterator[task_lib.Batch]
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
  """Returns a function that shows images above their reconstructions."""

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


def _check_lpips(config: ml_collections.ConfigDict, image_size: int):
  if config.loss.lpips:
    build.check_view(config, image_size, 'config.loss.lpips=0')


def best_metric(config: ml_collections.ConfigDict) -> str:
  """The metric that chooses the best weights; see `task.Task`.

  Args:
    config: the phase's config, from `trainer.resolve`.
  """
  if not config.loss.lpips:
    return 'mse'
  # The network of the loss chooses, so that others can judge.
  is_other = config.get('perceptual_weights') or 'perceptual_digest' in config
  return 'lpips_loss' if is_other else 'lpips'


def make(
  config: ml_collections.ConfigDict,
  facts: dict[str, Any],
  start: pretrained.Start | None = None,
) -> task_lib.Task:
  """The VQ-VAE: reconstructs images through a codebook.

  The loss is the sum of the quantizer's terms and of the reconstruction loss.
  By default the reconstruction loss is MSE / variance of the training images
  (van den Oord et al. 2017 divide in the same way). With a start only the
  decoder is trained, so the codes of images stay the same. It then learns to
  deceive the discriminator with images of drawn codes, too: codes that a prior
  draws fit together less well than those of images.
  """
  build.check_vqvae(config, facts['image_size'])
  _check_lpips(config, facts['image_size'])
  weights = config.loss.to_dict()
  adversary = adversarial.make(config, facts['image_size'])
  pixel_weights = {
    k: v for k, v in weights.items() if k not in adversarial.TERMS
  }
  image_losses.check_reconstruction(pixel_weights)
  model, view = build.vqvae(config), build.view(config)
  num_codes, variance = model.quantizer.num_codes, facts['train_variance']
  given = start.weights['params'] if start else {}
  frozen = {k: v for k, v in given.items() if k != 'decoder'}
  drawn_codes = start.drawn_codes if start else None

  def init(rng, batches):
    batches = iter(batches)
    first = next(batches)
    params, state = (
      (start.weights['params'], start.weights['model_state'])
      if start
      else _init(model, rng, itertools.chain([first], batches))
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
    shift_rng, view_rng, draw_rng = jax.random.split(rng, 3)
    params = params | {k: jax.lax.stop_gradient(params[k]) for k in frozen}
    images = build.to_unit(batch['image'])
    target = build.to_unit(batch.get('target', batch['image']))
    mask = batch.get('mask')
    variables = {'params': params, **model_state}
    output = model.apply(variables, images)
    quantized, made = output.quantized, output.reconstruction

    def draw():
      if drawn_codes is None:
        return None
      chosen = jax.random.randint(draw_rng, (len(made),), 0, len(drawn_codes))
      codes = jnp.asarray(drawn_codes)[chosen]
      return model.apply(
        variables, codes, method=lambda m, codes: m.decoder(m.embed(codes))
      )

    def reconstruction_loss(made):
      return image_losses.reconstruction(
        made,
        target,
        pixel_weights,
        variance,
        shift_rng if train else None,
        view,
      )

    adversarial_terms = {}
    if train and adversary:
      (loss, terms), gradient = jax.value_and_grad(
        reconstruction_loss, has_aux=True
      )(jax.lax.stop_gradient(made))
      loss = adversarial.with_gradient(loss, made, gradient)
      adversarial_loss, adversarial_terms = adversary.loss(
        params['discriminator'],
        adversarial.Made(made, draw()),
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

  def update_state(
    params, model_state, observed, rng, *, step=0, axis_name=None
  ):
    del step
    _, new_state = model.apply(
      {'params': params, **model_state},
      observed,
      axis_name=axis_name,
      method='update_codebook',
      mutable=list(model_state),
      rngs={'codebook': rng},
    )
    return new_state

  return task_lib.Task(
    keys=('image',),
    best_metric=best_metric(config),
    shown=('psnr', 'codebook_usage'),
    init=init,
    loss_fn=loss_fn,
    update_state=task_lib.keep_state if start else update_state,
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
