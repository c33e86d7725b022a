"""The two players of adversarial training, against plain gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import config_files
from dermvq_jax.models import discriminator
from dermvq_jax.training import adversarial, metrics, tasks

_START, _RAMP = 10, 4
_WEIGHT, _MATCHING = 0.5, 3.0
_KEY = jax.random.key(3)


def test_with_gradient():
  tree = {'a': jnp.array([1.0, 2.0]), 'b': jnp.array(-3.0)}
  gradient = {'a': jnp.array([0.5, -4.0]), 'b': jnp.array(7.0)}
  value, found = jax.value_and_grad(
    lambda tree: adversarial.with_gradient(jnp.float32(5.5), tree, gradient)
  )(tree)
  assert value == 5.5
  jax.tree.map(np.testing.assert_array_equal, found, gradient)


def test_with_gradient_is_a_part_of_a_longer_chain():
  """Nothing flows through the value and through the gradient themselves."""

  def loss(x):
    tree = 3 * x
    value = adversarial.with_gradient(jnp.sum(x**2), tree, {'x': x}['x'])
    return 2 * value

  x = jnp.array([1.0, -2.0])
  value, gradient = jax.value_and_grad(loss)(x)
  assert value == pytest.approx(10)
  np.testing.assert_allclose(gradient, 2 * 3 * x)


def _adversary():
  return adversarial.Adversary(
    model=discriminator.Discriminator(8, 1),
    weight=_WEIGHT,
    feature_matching=_MATCHING,
    start=_START,
    ramp_steps=_RAMP,
  )


def _inputs():
  """The discriminator's parameters, made and real images, and a gradient."""
  rng = np.random.default_rng(0)
  made, real = jnp.float32(rng.random((2, 2, 16, 16, 3)))
  reference = jnp.float32(rng.normal(size=made.shape))
  params = _adversary().init(jax.random.key(0), made)
  return params, made, real, reference


@functools.cache
def _compiled():
  """Loss and metrics, and the gradients at all arrays that it is given."""
  adversary = _adversary()

  def loss(params, made, real, reference, step, drawn=None):
    made = adversarial.Made(made, drawn)
    return adversary.loss(params, made, real, reference, _KEY, step, None)

  value_and_grad = jax.value_and_grad(
    loss, argnums=(0, 1, 2, 3, 5), has_aux=True
  )
  return jax.jit(lambda *args: value_and_grad(*args, *[None] * (6 - len(args))))


def _formula(params, made, real, drawn=None):
  """Both players' losses of each image by their formulas."""
  model = _adversary().model

  def judge(images):
    views = discriminator.augment(_KEY, images)
    return model.apply({'params': params}, views)

  ([real_logits], real_stages), ([logits], stages) = judge(real), judge(made)
  of_made, of_drawn = jnp.maximum(1 + logits, 0), logits < 0
  drawn_terms = {}
  if drawn is not None:
    [drawn_logits], _ = judge(drawn)
    of_made = (of_made + jnp.maximum(1 + drawn_logits, 0)) / 2
    of_drawn = (of_drawn + 1.0 * (drawn_logits < 0)) / 2
    drawn_terms = {'drawn_loss': -drawn_logits.mean((1, 2))}
  own = jnp.maximum(1 - real_logits, 0) + of_made
  matching = [
    jnp.abs(a - b).mean((1, 2, 3)) for a, b in zip(real_stages, stages)
  ]
  right = jnp.concatenate([real_logits > 0, of_drawn], 1)
  return {
    'discriminator_loss': own.mean((1, 2)),
    'adversarial_loss': -logits.mean((1, 2)),
    'feature_matching_loss': sum(matching) / len(matching),
    'discriminator_accuracy': right.mean((1, 2)),
    **drawn_terms,
  }


@jax.jit
def _plain_gradients(params, made, real):
  """The gradients that the two players should get, and their terms."""

  def of_discriminator(params):
    made_still = jax.lax.stop_gradient(made)
    return _formula(params, made_still, real)['discriminator_loss'].mean()

  def of_maker(made):
    terms = _formula(jax.lax.stop_gradient(params), made, real)
    return (
      terms['adversarial_loss'] + _MATCHING * terms['feature_matching_loss']
    ).mean()

  return (
    jax.grad(of_discriminator)(params),
    jax.grad(of_maker)(made),
    _formula(params, made, real),
  )


def test_gradients_and_terms_are_those_of_the_formulas():
  params, made, real, reference = _inputs()
  (loss, parts), grads = _compiled()(params, made, real, reference, 50)
  own, makers, terms = _plain_gradients(params, made, real)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
    grads[0],
    own,
  )
  assert all(np.any(x != 0) for x in jax.tree.leaves(own))
  # Their gradient is as long as that of the reconstruction times the weight.
  scale = _WEIGHT * np.linalg.norm(reference) / np.linalg.norm(makers)
  np.testing.assert_allclose(grads[1], scale * makers, rtol=1e-3, atol=1e-5)
  assert np.linalg.norm(grads[1]) == pytest.approx(
    _WEIGHT * np.linalg.norm(reference), rel=1e-4
  )
  # Neither the real images nor the reference learn.
  assert not np.any(grads[2]) and not np.any(grads[3])
  told = metrics.compute(parts)
  for name, of_image in terms.items():
    assert told[name] == pytest.approx(float(of_image.mean()), rel=1e-4), name
  assert told.keys() == {*terms, 'adversarial_scale'}
  assert told['adversarial_scale'] == pytest.approx(scale, rel=1e-4)
  # The loss is the sum of the terms as they count.
  makers_loss = (
    told['adversarial_loss'] + _MATCHING * told['feature_matching_loss']
  )
  expected = told['discriminator_loss'] + scale * makers_loss
  assert loss == pytest.approx(expected, rel=1e-4)


def test_drawn_images_count_as_reconstructions_do():
  params, made, real, reference = _inputs()
  drawn = jnp.float32(np.random.default_rng(1).random(made.shape))
  (loss, parts), grads = _compiled()(params, made, real, reference, 50, drawn)

  @jax.jit
  def plain(params, made, drawn):
    still = jax.lax.stop_gradient
    own = jax.grad(
      lambda p: _formula(p, made, real, drawn)['discriminator_loss'].mean()
    )(params)
    makers = jax.grad(
      lambda x: -_formula(still(params), made, real, x)['drawn_loss'].mean()
    )(drawn)
    return own, -makers, _formula(params, made, real, drawn)

  own, makers, terms = plain(params, made, drawn)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
    grads[0],
    own,
  )
  told = metrics.compute(parts)
  scale = told['adversarial_scale']
  np.testing.assert_allclose(grads[4], scale * makers, rtol=1e-3, atol=1e-5)
  for name, of_image in terms.items():
    assert told[name] == pytest.approx(float(of_image.mean()), rel=1e-4), name
  # What reconstructions get does not depend on them, but for the scale.
  (_, without), others = _compiled()(params, made, real, reference, 50)
  assert metrics.compute(without)['adversarial_scale'] == scale
  np.testing.assert_allclose(grads[1], others[1], rtol=1e-3, atol=1e-6)
  makers_loss = (
    told['adversarial_loss']
    + _MATCHING * told['feature_matching_loss']
    + told['drawn_loss']
  )
  expected = told['discriminator_loss'] + scale * makers_loss
  assert loss == pytest.approx(expected, rel=1e-4)


def test_nothing_plays_before_the_start():
  for step in (0, _START - 1):
    (loss, parts), grads = _compiled()(*_inputs(), step)
    assert loss == 0
    assert not any(np.any(x) for x in jax.tree.leaves(grads))
    assert metrics.compute(parts) == {}


def test_the_ramp_rises_linearly_to_the_weight():
  params, made, real, reference = _inputs()
  steps = range(_START, _START + _RAMP + 3)
  lengths, of_discriminator = [], []
  for step in steps:
    _, grads = _compiled()(params, made, real, reference, step)
    lengths.append(np.linalg.norm(grads[1]) / np.linalg.norm(reference))
    of_discriminator.append(grads[0])
  shares = np.minimum(np.arange(1, len(lengths) + 1) / (_RAMP + 1), 1)
  np.testing.assert_allclose(lengths, _WEIGHT * shares, rtol=1e-4)
  # The discriminator learns at full strength from the start.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    of_discriminator[0],
    of_discriminator[-1],
  )


def test_a_gradient_of_zero_gives_no_nan():
  """A discriminator without weights is indifferent to the images."""
  params, made, real, reference = _inputs()
  blind = jax.tree.map(jnp.zeros_like, params)
  (loss, parts), grads = _compiled()(blind, made, real, reference, 50)
  assert loss == 2 and not np.any(grads[1])
  assert np.isfinite(list(metrics.compute(parts).values())).all()
  for x in jax.tree.leaves(grads):
    assert np.isfinite(x).all()
  # Nor does a perfect reconstruction.
  zero = jnp.zeros_like(reference)
  (loss, _), grads = _compiled()(params, made, real, zero, 50)
  assert np.isfinite(loss) and not np.any(grads[1])
  # And the same images on both sides.
  (loss, _), grads = _compiled()(params, real, real, reference, 50)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((loss, grads)))


# The players in the loss of the VQ-VAE.


@pytest.fixture(scope='module')
def task_and_batch():
  config = config_files.load(
    'vqvae:smoke+vq',
    [
      '--config.quantizer.commitment_weight=2',
      '--config.loss.adversarial=0.5',
      '--config.loss.feature_matching=3',
      '--config.discriminator.features=8',
      '--config.discriminator.num_stages=2',
      '--config.discriminator.start=0.5',
      '--config.discriminator.ramp_steps=0',
      '--config.num_train_steps=10',
      '--config.loss.l1=0.3',
    ],
  )
  facts = {'dataset': 'x/16', 'image_size': 16, 'train_variance': 0.03}
  task = tasks.make(config, facts)
  plain = config.copy_and_resolve_references()
  plain.loss.adversarial = 0.0
  rng = np.random.default_rng(0)
  batch = {'image': rng.integers(0, 256, (4, 16, 16, 3), np.uint8)}
  shapes = jax.eval_shape(
    lambda key: task.init(key, iter([batch] * 9)), jax.random.key(0)
  )
  start = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) / 5, x.dtype), shapes
  )
  return task, tasks.make(plain, facts), batch, start


def _compiled_task(task, state, batch):
  """Loss, metrics and gradients by parameters and step."""

  def loss(params, step):
    return task.loss_fn(params, state, batch, _KEY, train=True, step=step)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_the_discriminator_is_not_trained_by_the_makers_terms(task_and_batch):
  """And the other way round; before the start only the maker learns."""
  task, plain, batch, (params, state) = task_and_batch
  others = task.kept(params)
  assert others.keys() == {'encoder', 'decoder', 'quantizer'}
  run, run_alone = (_compiled_task(t, state, batch) for t in (task, plain))
  (_, (parts, _)), before = run(params, 4)
  (loss, (terms, _)), after = run(params, 5)
  _, alone = run_alone(others, 5)
  assert not any(np.any(x) for x in jax.tree.leaves(before['discriminator']))
  for name in others:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
      before[name],
      alone[name],
    )
    changed = jax.tree.map(
      lambda a, b: np.any(a != b), after[name], before[name]
    )
    # The codebook is trained by its own loss only.
    assert any(jax.tree.leaves(changed)) == (name != 'quantizer'), name
  # (The hinge loss may cancel for the bias of the logits.)
  for name in ('Conv_0', 'Conv_1', 'Conv_2'):
    assert np.any(after['discriminator'][name]['kernel']), name
  adversarial_names = {
    'discriminator_loss',
    'discriminator_accuracy',
    'adversarial_loss',
    'feature_matching_loss',
    'adversarial_scale',
  }
  told = metrics.compute(terms)
  assert told.keys() - metrics.compute(parts).keys() == adversarial_names
  # Without a ramp they count fully from the start.
  (_, (later, _)), _ = run(params, 9)
  assert metrics.compute(later) == told
  # The terms of the loss, each as it counts, add up.
  makers = told['adversarial_loss'] + 3 * told['feature_matching_loss']
  expected = (
    told['reconstruction_loss']
    + told['discriminator_loss']
    + told['adversarial_scale'] * makers
    + told['codebook_loss']
    + 2 * told['commitment_loss']
  )
  assert loss == pytest.approx(expected, rel=1e-4)


def test_evaluation_knows_no_discriminator(task_and_batch):
  task, plain, batch, (params, state) = task_and_batch
  found = []
  for its_task in (task, plain):
    loss, (parts, _) = jax.jit(
      functools.partial(its_task.loss_fn, train=False)
    )(task.kept(params), state, batch, _KEY)
    found.append(metrics.compute(parts) | {'loss': float(loss)})
  assert found[0] == found[1]
