"""The task of each phase."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dermvq_jax import errors
from dermvq_jax.models import build, losses, nearest
from dermvq_jax.models.priors import base
from dermvq_jax.training import metrics, pretrained, vqvae_task
from dermvq_jax.training import task as task_lib


def make(
  config: ml_collections.ConfigDict,
  facts: dict[str, Any],
  start: pretrained.Start | None = None,
) -> task_lib.Task:
  """Returns the task named by `config.task`: vqvae, prior or classifier.

  Args:
    config: the run's config.
    facts: the facts of the dataset, `data.prepared.Dataset.facts`.
    start: what the decoder of a VQ-VAE is trained on from; None: a new
      VQ-VAE.

  Raises:
    UserError: the config does not fit the dataset.
  """
  makers = {
    'vqvae': functools.partial(vqvae_task.make, start=start),
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


def prior_task(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> task_lib.Task:
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

  return task_lib.Task(
    keys=('codes', *names),
    best_metric='nll',
    shown=('bits_per_code',),
    init=init,
    loss_fn=loss_fn,
  )


def classifier_task(
  config: ml_collections.ConfigDict, facts: dict[str, Any]
) -> task_lib.Task:
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

  return task_lib.Task(
    keys=('image', 'label'),
    best_metric='balanced_nll',
    shown=('balanced_accuracy',),
    init=init,
    loss_fn=loss_fn,
  )
