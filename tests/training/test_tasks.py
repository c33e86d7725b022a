"""Tests of the tasks' losses and metrics, with each option."""

import image_references
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax import config_files, errors
from dermvq_jax.models import build, image_losses, losses
from dermvq_jax.training import metrics, tasks

_FACTS = {
  'dataset': 'codes/0',
  'codebook_size': 5,
  'class_names': ['a', 'b'],
  'conditions': {'label': ['a', 'b'], 'site': ['x']},
}


def _task(*overrides):
  config = config_files.load('prior:smoke', overrides)
  return tasks.make(config, _FACTS), config


def test_a_condition_must_be_hidden_now_and_then():
  """Otherwise the prior could not do without it; the label may be needed."""
  with pytest.raises(errors.UserError, match='conditions.site is 0: .*as 0.3'):
    _task('--config.conditions.site=0')
  _task('--config.conditions.label=0')


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
@pytest.mark.parametrize('loss', losses.LOSSES)
def test_loss_is_as_chosen_and_metrics_are_the_likelihood(loss, smoothing):
  task, config = _task(
    f'--config.loss={loss}', f'--config.label_smoothing={smoothing}'
  )
  rng = np.random.default_rng(0)
  batch = {
    'codes': jnp.asarray(rng.integers(0, 5, (4, 3, 3)), jnp.int32),
    'label': jnp.asarray([0, 1, 1, 0]),
  }
  # An initialisation would take seconds.
  shapes, state = jax.eval_shape(
    lambda key: task.init(key, iter([batch])), jax.random.key(0)
  )
  params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), shapes)
  model = build.prior(config, _FACTS)

  @jax.jit
  def run(params, batch):
    logits = model.apply(
      {'params': params},
      batch['codes'],
      {'label': batch['label']},
      train=False,
    )
    key = jax.random.key(1)
    return logits, task.loss_fn(params, state, batch, key, train=False)

  logits, (value, (parts, _)) = run(params, batch)
  expected = losses.code_loss(logits, batch['codes'], loss, smoothing).mean()
  assert value == pytest.approx(float(expected), rel=1e-5)
  nll = float(losses.nll(logits, batch['codes'], loss).mean())
  told = metrics.compute(parts)
  assert told['nll'] == pytest.approx(nll, rel=1e-5)
  assert told['bits_per_code'] == pytest.approx(nll / np.log(2), rel=1e-5)
  assert told[f'{loss}_loss'] == pytest.approx(float(value), rel=1e-5)
  if loss == 'cross_entropy' and not smoothing:
    assert value == pytest.approx(nll, rel=1e-6)


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('--config.loss=mse', "config.loss is 'mse'"),
    ('--config.label_smoothing=1.0', 'label_smoothing is 1.0'),
    ('--config.label_smoothing=-0.1', 'label_smoothing is -0.1'),
  ],
)
def test_mistakes(override, message):
  with pytest.raises(errors.UserError, match=message):
    _task(override)


def test_fields_of_another_prior():
  with pytest.raises(errors.UserError, match="'rnn' has no .*prior:rnn"):
    _task('--config.prior.name=rnn')


def test_vqvae_loss_is_the_mixture_of_the_config():
  config = config_files.load(
    'vqvae:smoke', ['--config.loss.mse=0.5', '--config.loss.gradient=2.0']
  )
  variance = 0.03
  task = tasks.make(
    config, {'dataset': 'x/16', 'image_size': 16, 'train_variance': variance}
  )
  model = build.vqvae(config)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.float32(images))
  variables = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) / 5, x.dtype), shapes
  )
  params, state = variables['params'], {'codebook': variables['codebook']}
  batch = {'image': images, 'target': images[::-1]}

  @jax.jit
  def run(params, state, batch):
    output = model.apply(
      {'params': params, **state}, build.to_unit(batch['image'])
    )
    return output, *(
      task.loss_fn(params, state, batch, jax.random.key(1), train=train)
      for train in (False, True)
    )

  output, (value, (parts, _)), (value_in_training, (in_training, _)) = run(
    params, state, batch
  )
  target = np.float32(batch['target']) / 255
  reconstruction_loss, terms = image_losses.reconstruction(
    output.reconstruction, target, {'mse': 0.5, 'gradient': 2.0}, variance
  )
  expected = output.quantized.loss + reconstruction_loss
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(value_in_training, expected, rtol=1e-5)
  told = metrics.compute(parts)
  clipped = np.clip(output.reconstruction, 0, 1)
  mse = np.mean((clipped - target) ** 2)
  ssim = image_losses.ssim(clipped, target).mean()
  made, real = map(image_references.octave_powers, (clipped, target))
  shares = made.sum(0) / real.sum(0)
  dead = 32 - len(np.unique(output.quantized.codes))
  for name, number in (
    ('mse', mse),
    ('nmse', mse / variance),
    ('psnr', -10 * np.log10(mse)),
    ('ssim', ssim),
    ('dead_codes', dead),
    ('codebook_usage', 1 - dead / 32),
    *((f'power_octave_{i + 1}', share) for i, share in enumerate(shares)),
  ):
    assert told[name] == pytest.approx(float(number), rel=1e-4), name
  assert {'quantization_error', 'latent_norm', 'commitment_loss'} <= set(told)
  for name in ('mse_loss', 'gradient_loss', 'reconstruction_loss'):
    assert told[name] == pytest.approx(float(terms[name].mean()), rel=1e-4)
  weight = config.quantizer.commitment_weight
  total = told['reconstruction_loss'] + weight * told['commitment_loss']
  assert total == pytest.approx(float(value), rel=1e-4)
  assert set(told) - set(in_training) == {'ssim'}


def _vqvae_task(*overrides, size=64):
  config = config_files.load(
    'vqvae:smoke', [f'--config.{override}' for override in overrides]
  )
  config.num_train_steps = 10
  facts = {'dataset': 'x', 'image_size': size, 'train_variance': 0.03}
  return tasks.make(config, facts)


def test_power_of_masked_images_does_not_count():
  """Nor that of a split that is black; then there is no value."""
  task = _vqvae_task('model.num_residual_blocks=0', size=16)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
  params, state = task.init(jax.random.key(0), iter([{'image': images}] * 9))

  @jax.jit
  def run(batch):
    key = jax.random.key(0)
    return task.loss_fn(params, state, batch, key, train=False)[1][0]

  first, masked, black = (
    metrics.compute(run({'image': x, 'mask': np.float32(mask)}))
    for x, mask in (
      (images[:2], [1, 1]),
      (images, [1, 1, 0]),
      (np.zeros_like(images), [1, 1, 1]),
    )
  )
  names = {f'power_octave_{i}' for i in (1, 2, 3)}
  for name in names:
    assert masked[name] == pytest.approx(first[name], rel=1e-4)
  assert not names & black.keys()


def test_best_weights_are_those_that_look_best():
  assert _vqvae_task().best_metric == 'mse'
  assert _vqvae_task('loss.ssim=1').best_metric == 'mse'
  assert _vqvae_task('loss.lpips=0.5').best_metric == 'lpips'


def test_the_network_of_the_loss_chooses_the_best_weights(tmp_path):
  """So that no other one has taken part."""
  arrays = image_references.random_weights([3, 2, 3, 4, 2], [3] * 4)
  np.savez(tmp_path / 'vgg16.npz', **arrays)
  task = _vqvae_task(
    'loss.lpips=0.5', f'perceptual_weights={tmp_path / "vgg16.npz"}'
  )
  assert task.best_metric == 'lpips_loss'


@pytest.mark.parametrize(
  ('overrides', 'size', 'message'),
  [
    (['loss.lpips=1'], 16, '16 px are smaller than the 31 px'),
    (['loss.lpips=1', 'perceptual_crop=30'], 64, 'give 0 .* or 31 to 64 px'),
    (['loss.lpips=1', 'perceptual_crop=65'], 64, 'perceptual_crop is 65'),
    (['loss.lpips=1', 'perceptual_weights=no'], 64, 'no does not hold the'),
    (
      [
        'loss.adversarial=1',
        'discriminator.is_projected=True',
        'perceptual_weights=no',
      ],
      64,
      'no does not hold the',
    ),
    (['loss.adversarial=-1'], 64, 'loss.adversarial is -1'),
    (['loss.adversarial=nan'], 64, 'loss.adversarial is nan'),
    (['loss.adversarial=1', 'loss.feature_matching=inf'], 64, 'is inf'),
    (['loss.adversarial=1', 'loss.mse=0'], 64, 'at least one above 0'),
    (
      ['loss.adversarial=1', 'discriminator.features=12'],
      64,
      'discriminator.features is 12; give a multiple of 8',
    ),
    (
      ['loss.adversarial=1', 'discriminator.num_stages=5'],
      16,
      '16 px cannot be halved 5 times',
    ),
    (['loss.adversarial=1', 'model.downsampling=2'], 8, '8 px are smaller'),
    (
      ['model.norm_groups=8', 'model.stage_blocks=1'],
      16,
      'divide a quarter of config.model.features=16',
    ),
  ],
)
def test_fields_of_the_vqvae_that_do_not_fit(overrides, size, message):
  with pytest.raises(errors.UserError, match=message) as e:
    _vqvae_task(*overrides, size=size)
  assert '\n' not in str(e.value)


# The classifier.


def test_classifier_is_told_the_class_shares():
  """The loss adds the logs of class shares; the metrics are balanced."""
  config = config_files.load('classifier:smoke')
  facts = {
    'dataset': 'images/8',
    'image_size': 8,
    'num_train': 12,
    'class_names': ['a', 'b', 'c'],
  }
  task = tasks.make(config, facts)
  rng = np.random.default_rng(0)
  labels = np.array([0, 0, 0, 1])
  batch = {
    'image': rng.integers(0, 256, (4, 8, 8, 3), np.uint8),
    'label': labels,
    'mask': np.float32([1, 1, 0, 1]),
  }
  # Three batches are an epoch; one more of each class is counted.
  params, state = task.init(jax.random.key(0), iter([batch] * 9))
  shares = np.array([9 + 1, 3 + 1, 0 + 1]) / 15
  told = state['class_balance']['log_shares']
  np.testing.assert_allclose(told, np.log(shares), rtol=1e-6)

  model = build.classifier(config, facts)
  images = build.to_unit(batch['image'])
  logits = jax.jit(model.apply)({'params': params}, images)
  loss, (parts, observed) = jax.jit(
    lambda *inputs: task.loss_fn(*inputs, train=True)
  )(params, state, batch, jax.random.key(1))
  joint = np.exp(logits) * shares
  likely = (joint / joint.sum(1, keepdims=True))[np.arange(4), labels]
  assert loss == pytest.approx(-np.log(likely).mean(), rel=1e-5)
  kept = task.update_state(params, state, observed, jax.random.key(1))
  assert kept is state
  # Without the masked one, each class counts as one.
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  nll = -np.log(p[np.arange(4), labels])
  expected = ((nll[0] + nll[1]) / 2 + nll[3]) / 2
  found = metrics.compute(parts)
  assert found['balanced_nll'] == pytest.approx(expected, rel=1e-5)
  right = p.argmax(1) == labels
  expected = ((int(right[0]) + int(right[1])) / 2 + right[3]) / 2
  assert found['balanced_accuracy'] == pytest.approx(expected)
  assert found['accuracy'] == pytest.approx(right[[0, 1, 3]].mean())
  adjusted = -np.log(likely)[[0, 1, 3]].mean()
  assert found['adjusted_nll'] == pytest.approx(adjusted, rel=1e-5)
