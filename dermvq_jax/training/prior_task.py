"""The phase of the prior."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dermvq_jax import errors
from dermvq_jax.models import build, losses, nearest
from dermvq_jax.models.priors import base
from dermvq_jax.training import metrics, pretrained, weak_prior
from dermvq_jax.training import task as task_lib

Array = jax.Array
PyTree = Any
# The sub-tree of the parameters that holds the prior as it was before.
_REFERENCE = 'reference'


def _check_conditions(config: ml_collections.ConfigDict):
  for name, rate in config.conditions.items():
    if name != 'label' and not rate:
      raise errors.UserError(
        f'config.conditions.{name} is 0: the prior would need {name} for every '
        'image; give the share of training images in which it is hidden, such '
        'as 0.3'
      )


def _check_labels(num_classes: int):
  if num_classes < 2:
    raise errors.UserError(
      'all images have the same label, so there is no other one to tell them '
      'from; leave the prior as it is'
    )


def _other_labels(
  labels: Array, codes: Array, num_classes: int, rng: Array | None
) -> Array:
  """Returns labels `[B]` that differ from those of the images.

  Args:
    labels: `[B]`; one that is not known gets any but the first.
    codes: `[B, h, w]`.
    num_classes: number of classes.
    rng: random key; None: the codes decide, so that an image always gets the
      same label, on whatever device.
  """
  if rng is None:
    offsets = codes.sum((1, 2)) % (num_classes - 1)
  else:
    offsets = jax.random.randint(rng, labels.shape, 0, num_classes - 1)
  return (labels + 1 + offsets) % num_classes


def _weights_of_others(labels: Array, shares: np.ndarray) -> Array:
  """How much each label `[B]` counts as the other one, `[B]`.

  It is drawn as often as any other label. At full weight a rare one would be
  wrong far more often than it is right, and its samples would go astray.

  Args:
    labels: from `_other_labels`.
    shares: how often training sees each label, `[num_classes]`.
  """
  drawn = 1 / (len(shares) - 1)
  return jnp.minimum(jnp.asarray(shares, jnp.float32) / drawn, 1)[labels]


def _twice(x: PyTree, y: PyTree) -> PyTree:
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x, y)


def _nll(
  model: base.Prior,
  loss: str,
  params: PyTree,
  codes: Array,
  conditions: base.Conditions,
  dropout_rng: Array | None = None,
) -> tuple[Array, Array]:
  """Logits, and nats `[B, h, w]`."""
  logits = model.apply(
    {'params': params},
    codes,
    conditions,
    train=dropout_rng is not None,
    rngs={} if dropout_rng is None else {'dropout': dropout_rng},
  )
  return logits, losses.nll(logits, codes, loss)


def _measure(
  codes: Array, logits: Array, nats: Array, mask: Array | None
) -> metrics.Metrics:
  correct = nearest.argmax(logits) == codes
  return {
    'nll': metrics.Mean.of(nats, mask),
    'bits_per_code': metrics.Mean.of(nats / np.log(2), mask),
    'accuracy': metrics.Mean.of(correct, mask),
  }


def best_metric(config: ml_collections.ConfigDict) -> str:
  """The metric that chooses the best weights; see `task.Task`.

  Args:
    config: the phase's config, from `trainer.resolve`.
  """
  return 'alignment_loss' if 'start_digest' in config else 'nll'


def make(
  config: ml_collections.ConfigDict,
  facts: dict[str, Any],
  start: pretrained.Start | None = None,
) -> task_lib.Task:
  """The prior: predicts each code from those before it and the conditions.

  The metrics `nll` and `bits_per_code` refer to the probabilities that codes
  are sampled from, whatever `config.loss` and `config.label_smoothing` are.

  With a start, that prior is trained on by `losses.alignment`: its samples then
  show their label without guidance.
  """
  losses.check(config.loss, config.label_smoothing)
  model = build.prior(config, facts)
  nll = functools.partial(_nll, model, config.loss)
  names = tuple(config.conditions)
  num_classes = dict(model.conditions).get('label', 0)
  _check_conditions(config)
  weak = weak_prior.make(config)
  if start:
    _check_labels(num_classes)

  def init(rng, batches):
    if start:
      params = start.weights['params']
      return params | {_REFERENCE: params}, start.weights['model_state']
    batch = next(batches)
    conditions = {name: batch[name][:1] for name in names}
    codes = batch['codes'][:1]
    params, _ = build.init(model, rng, codes, conditions, train=False)
    return params, weak.init(params)

  def align(params, codes, conditions, rng, dropout_rng):
    """Logits and nats of the codes, and the loss of each grid, `[B]`."""
    labels = conditions['label']
    others = conditions | {
      'label': _other_labels(labels, codes, num_classes, rng)
    }
    pair = _twice(codes, codes), _twice(conditions, others)
    logits, nats = nll(params, *pair, dropout_rng)
    # Without dropout: it is fixed.
    _, before = nll(jax.lax.stop_gradient(params[_REFERENCE]), *pair)
    ratio, negative_ratio = jnp.split((before - nats).sum((1, 2)), 2)
    is_known = labels < num_classes
    weights = _weights_of_others(others['label'], start.label_shares)
    of_grid = losses.alignment(
      ratio,
      # Its part is then a constant: no label is wrong for an unknown one.
      jnp.where(is_known, negative_ratio, 0),
      config.alignment.beta,
      config.alignment.negative_weight * weights,
    )
    size = len(codes)
    return logits[:size], nats[:size], of_grid

  def loss_fn(
    params, model_state, batch, rng, *, train, step=0, axis_name=None
  ):
    del step, model_state
    codes, mask = batch['codes'], batch.get('mask')
    conditions = {name: batch[name] for name in names}
    dropout_rng = other_rng = None
    if train:
      if axis_name is not None:  # Noise differs between devices.
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
      dropout_rng, condition_rng = jax.random.split(rng)
      other_rng = jax.random.fold_in(rng, 2)  # not one of the two
      conditions = base.drop_conditions(
        condition_rng,
        conditions,
        model.conditions,
        tuple(config.conditions.values()),
      )
    if start:
      logits, nats, loss = align(
        params, codes, conditions, other_rng, dropout_rng
      )
      # Gradients are then as long as those of the likelihood of a code.
      total = loss.mean() / (config.alignment.beta * codes[0].size)
      name = 'alignment'
    else:
      logits, nats = nll(params, codes, conditions, dropout_rng)
      loss = losses.code_loss(
        logits, codes, config.loss, config.label_smoothing
      )  # [B, h, w]
      total, name = jnp.mean(loss), config.loss
    parts = _measure(codes, logits, nats, mask)
    parts[f'{name}_loss'] = metrics.Mean.of(loss, mask)
    return total, (parts, ())

  return task_lib.Task(
    keys=('codes', *names),
    best_metric=best_metric(config),
    shown=('bits_per_code',),
    init=init,
    loss_fn=loss_fn,
    # The weak prior of a prior that is trained on stays.
    update_state=task_lib.keep_state if start else weak.update_state,
    optimizers={'': 'optim', **({_REFERENCE: ''} if start else {})},
    kept=lambda params: {k: v for k, v in params.items() if k != _REFERENCE},
  )
