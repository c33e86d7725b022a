"""The adversarial terms of a loss: two players in one training step.

The discriminator learns to tell real images from made ones; the model that
makes them learns to deceive it. Stop-gradients keep their gradients apart.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from dermvq_jax import errors
from dermvq_jax.models import build, discriminator
from dermvq_jax.training import metrics

Array = jax.Array
PyTree = Any

# Their weights are in config.loss.
TERMS = ('adversarial', 'feature_matching')


def with_gradient(value: Array, tree: PyTree, gradient: PyTree) -> Array:
  """Returns `value`, as a function of `tree` whose gradient is `gradient`."""
  products = jax.tree.map(
    lambda x, g: jnp.vdot(jax.lax.stop_gradient(g), x), tree, gradient
  )
  total = sum(jax.tree.leaves(products))
  return jax.lax.stop_gradient(value - total) + total


def _norm(x: Array, axis_name: str | None) -> Array:
  """Euclidean norm over all devices."""
  square = jnp.vdot(x, x)
  if axis_name is not None:
    square = jax.lax.psum(square, axis_name)
  return jnp.sqrt(square)


@dataclasses.dataclass(frozen=True)
class Adversary:
  """A discriminator and how much it counts.

  Attributes:
    model: the discriminator.
    weight: how much both terms count together. With 1 their gradient at the
      made images is as long as that of the reconstruction loss. (Esser et al.
      2021, equation 7, compare gradients at the decoder's last layer.)
    feature_matching: weight of the second term beside the first.
    start: the training step from which it plays.
    ramp_steps: steps in which the weights then rise from 0.
  """

  model: discriminator.Discriminator
  weight: float
  feature_matching: float
  start: int
  ramp_steps: int

  def init(self, rng: Array, images: Array) -> PyTree:
    """Returns the discriminator's parameters; images `[B, H, W, 3]`."""
    return build.init(self.model, rng, images[:1])[0]

  def _play(
    self, params: PyTree, made: Array, real: Array, rng: Array
  ) -> tuple[dict[str, Array], dict[str, PyTree]]:
    """Returns the terms of each image, `[B]`, and the gradients of their means.

    Those of the discriminator's loss with respect to its parameters, and those
    of the terms for the maker with respect to `made`.
    """

    def judge(params, images):
      images = discriminator.augment(rng, images)
      return self.model.apply({'params': params}, images)

    def discriminator_loss(params):
      real_logits, made_logits = judge(params, real)[0], judge(params, made)[0]
      of_image = discriminator.hinge_loss(real_logits, made_logits)
      accuracy = discriminator.accuracy(real_logits, made_logits)
      return of_image.mean(), (of_image, accuracy)

    _, real_features = judge(params, real)

    def makers_loss(made):
      logits, features = judge(params, made)
      deceiving = -discriminator.mean_logit(logits)
      matching = discriminator.feature_matching_loss(real_features, features)
      loss = (deceiving + self.feature_matching * matching).mean()
      return loss, (deceiving, matching)

    gradients, aux = {}, {}
    for name, loss, x in (
      ('discriminator', discriminator_loss, params),
      ('maker', makers_loss, made),
    ):
      gradients[name], aux[name] = jax.grad(loss, has_aux=True)(x)
    of_image, accuracy = aux['discriminator']
    deceiving, matching = aux['maker']
    return {
      'discriminator_loss': of_image,
      'discriminator_accuracy': accuracy,
      'adversarial_loss': deceiving,
      'feature_matching_loss': matching,
    }, gradients

  def loss(
    self,
    params: PyTree,
    made: Array,
    real: Array,
    reference: Array,
    rng: Array,
    step: Array,
    axis_name: str | None,
  ) -> tuple[Array, metrics.Metrics]:
    """Returns the sum of all adversarial terms, and the terms as metrics.

    Args:
      params: the discriminator's parameters.
      made: made images, `[B, H, W, 3]`.
      real: real images, of the same shape.
      reference: the gradient of the reconstruction loss at `made`.
      rng: random key, another one on each device.
      step: the number of updates before this one.
      axis_name: the axis of the devices under pmap.
    """

    def play(args):
      return self._play(*args)

    def wait(args):
      shapes = jax.eval_shape(play, args)
      return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    still = jax.lax.stop_gradient((params, made, real, rng))
    plays = step >= self.start
    terms, gradients = jax.lax.cond(plays, play, wait, still)
    length, own = (_norm(x, axis_name) for x in (reference, gradients['maker']))
    ramp = jnp.clip((step - self.start + 1) / (self.ramp_steps + 1), 0, 1)
    scale = ramp * self.weight * length / jnp.where(own > 0, own, 1)
    makers_loss = terms['adversarial_loss'].mean()
    makers_loss += self.feature_matching * terms['feature_matching_loss'].mean()
    loss = with_gradient(
      terms['discriminator_loss'].mean(), params, gradients['discriminator']
    ) + with_gradient(scale * makers_loss, made, scale * gradients['maker'])
    # Nothing is counted before the start.
    mask = jnp.full(len(made), plays, jnp.float32)
    return loss, {
      **{name: metrics.Mean.of(x, mask) for name, x in terms.items()},
      'adversarial_scale': metrics.Mean.of(jnp.full(len(made), scale), mask),
    }


def make(
  config: ml_collections.ConfigDict, image_size: int
) -> Adversary | None:
  """Makes the adversary of a VQ-VAE; None if its terms have no weight.

  Raises:
    UserError: a value is out of its range, or does not suit the images.
  """
  for name in TERMS:
    if not 0 <= config.loss[name] < math.inf:
      raise errors.UserError(
        f'config.loss.{name} is {config.loss[name]}; give a number of at least '
        '0'
      )
  if not config.loss.adversarial:
    return None
  build.check_discriminator(config, image_size)
  fields = config.discriminator
  return Adversary(
    model=build.discriminator(config),
    weight=config.loss.adversarial,
    feature_matching=config.loss.feature_matching,
    start=round(fields.start * config.num_train_steps),
    ramp_steps=fields.ramp_steps,
  )
