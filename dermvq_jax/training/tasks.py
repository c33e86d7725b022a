"""The task of each phase."""

import functools
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from dermvq_jax import errors
from dermvq_jax.models import build, losses, nearest
from dermvq_jax.training import metrics, pretrained, prior_task, vqvae_task
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
    start: what a VQ-VAE's decoder, or a prior, is trained on from; None: a
      new one.

  Raises:
    UserError: the config does not fit the dataset.
  """
  makers = {
    'vqvae': functools.partial(vqvae_task.make, start=start),
    'prior': functools.partial(prior_task.make, start=start),
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


def best_metric(config: ml_collections.ConfigDict) -> str:
  """The metric that chooses a phase's best weights; see `task.Task`.

  Args:
    config: the phase's config, as it is stored.
  """
  return {
    'vqvae': vqvae_task.best_metric,
    'prior': prior_task.best_metric,
    'classifier': lambda config: 'balanced_nll',
  }[config.task](config)


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
