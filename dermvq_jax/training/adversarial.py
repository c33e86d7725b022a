"""The adversarial terms of a loss: two players in one training step.

The discriminator learns to tell real images from made ones; the model that
makes them learns to deceive it. Stop-gradients keep their gradients apart.
"""

import dataclasses
import math
from typing import Any, NamedTuple

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


class Made(NamedTuple):
  """Made images.

  Attributes:
    reconstructions: of the real images, `[B, H, W, 3]`.
    drawn: images of drawn codes, of the same shape; None: there are none.
  """

  reconstructions: Array
  drawn: Array | None = None

  @property
  def present(self) -> list[Array]:
    """Those that there are."""
    return [images for images in self if images is not None]


@dataclasses.dataclass(frozen=True)
class Adversary:
  """A discriminator and how much it counts.

  Attributes:
    model: the discriminator.
    weight: how much the terms for the maker count together. With 1 their
      gradient at the reconstructions is as long as that of the reconstruction
      loss. (Esser et al. 2021, equation 7, compare gradients at the decoder's
      last layer.) The gradient at drawn images has the same scale.
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
    self, params: PyTree, made: Made, real: Array, rng: Array
  ) -> tuple[dict[str, Array], dict[str, PyTree]]:
    """Returns the terms of each image, `[B]`, and the gradients of their means.

    Those of the discriminator's loss with respect to its parameters, and those
    of the terms for the maker with respect to `made`.
    """

    def judge(params, images):
      images = discriminator.augment(rng, images)
      # Another key than the three that `augment` makes.
      cut_rng = jax.random.fold_in(rng, 3)
      return self.model.apply({'params': params}, images, cut_rng)

    def discriminator_loss(params):
      real_logits, _ = judge(params, real)
      of_made = [judge(params, images)[0] for images in made.present]
      of_image, accuracy = (
        sum(f(real_logits, logits) for logits in of_made) / len(of_made)
        for f in (discriminator.hinge_loss, discriminator.accuracy)
      )
      return of_image.mean(), (of_image, accuracy)

    _, real_features = judge(params, real)

    def makers_loss(made):
      logits, features = judge(params, made.reconstructions)
      terms = {
        'adversarial_loss': -discriminator.mean_logit(logits),
        'feature_matching_loss': discriminator.feature_matching_loss(
          real_features, features
        ),
      }
      if made.drawn is not None:
        logits, _ = judge(params, made.drawn)
        terms['drawn_loss'] = -discriminator.mean_logit(logits)
      return self._makers_loss(terms), terms

    own, (of_image, accuracy) = jax.grad(discriminator_loss, has_aux=True)(
      params
    )
    makers, terms = jax.grad(makers_loss, has_aux=True)(made)
    return {
      'discriminator_loss': of_image,
      'discriminator_accuracy': accuracy,
      **terms,
    }, {'discriminator': own, 'maker': makers}

  def _makers_loss(self, terms: dict[str, Array]) -> Array:
    """The sum of the terms for the maker, as a mean over the images."""
    weights = {'feature_matching_loss': self.feature_matching}
    names = 'adversarial_loss', 'feature_matching_loss', 'drawn_loss'
    return sum(
      weights.get(name, 1) * terms[name].mean()
      for name in names
      if name in terms
    )

  def loss(
    self,
    params: PyTree,
    made: Made,
    real: Array,
    reference: Array,
    rng: Array,
    step: Array,
    axis_name: str | None,
  ) -> tuple[Array, metrics.Metrics]:
    """Returns the sum of all adversarial terms, and the terms as metrics.

    Args:
      params: the discriminator's parameters.
      made: made images.
      real: real images, `[B, H, W, 3]`, of which the reconstructions are.
      reference: the gradient of the reconstruction loss at the reconstructions.
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
    makers = gradients['maker']
    length = _norm(reference, axis_name)
    own = _norm(makers.reconstructions, axis_name)
    ramp = jnp.clip((step - self.start + 1) / (self.ramp_steps + 1), 0, 1)
    scale = ramp * self.weight * length / jnp.where(own > 0, own, 1)
    loss = with_gradient(
      terms['discriminator_loss'].mean(), params, gradients['discriminator']
    ) + with_gradient(
      scale * self._makers_loss(terms),
      made,
      jax.tree.map(lambda x: scale * x, makers),
    )
    # Nothing is counted before the start.
    mask = jnp.full(len(real), plays, jnp.float32)
    return loss, {
      **{name: metrics.Mean.of(x, mask) for name, x in terms.items()},
      'adversarial_scale': metrics.Mean.of(jnp.full(len(real), scale), mask),
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
