"""The shapes of a phase's weights, as they follow from its config."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from dermvq_jax import errors
from dermvq_jax.models import build, losses
from dermvq_jax.models.priors import base

PyTree = Any
_NEEDED_FACTS = {
  'vqvae': ('dataset', 'class_names', 'image_size'),
  'prior': ('dataset', 'codebook_size', 'conditions', 'grid', 'vqvae_digest'),
  'classifier': ('dataset', 'class_names', 'image_size'),
}
_MAX_REASON = 200  # characters


def _vqvae(config: ml_collections.ConfigDict, facts: Mapping[str, Any]):
  build.check_vqvae(config, facts['image_size'])
  # No shape of a weight depends on the size of the image.
  side = 2 * config.model.downsampling
  return build.init(
    build.vqvae(config), jax.random.key(0), jnp.zeros((1, side, side, 3))
  )


def _prior(config: ml_collections.ConfigDict, facts: Mapping[str, Any]):
  losses.check(config.loss, config.label_smoothing)
  model = build.prior(config, facts)
  codes = jnp.zeros((1, 2, 2 * facts.get('num_levels', 1)), jnp.int32)
  conditions = {name: jnp.zeros(1, jnp.int32) for name in config.conditions}
  init = build.init(model, jax.random.key(0), codes, conditions, train=False)
  params, state = init
  weak = {base.WEAK: params} if config.weak_share else {}
  return params, state | weak


def _classifier(config: ml_collections.ConfigDict, facts: Mapping[str, Any]):
  model = build.classifier(config, facts)
  side = 1 << config.classifier.num_stages
  images = jnp.zeros((1, side, side, 3))
  params, _ = build.init(model, jax.random.key(0), images)
  log_shares = jnp.zeros(len(facts['class_names']))
  return params, {'class_balance': {'log_shares': log_shares}}


def of_weights(
  phase: str, config: ml_collections.ConfigDict, facts: Mapping[str, Any]
) -> PyTree:
  """Returns the weights in `best/`, with shapes for arrays.

  Args:
    phase: 'vqvae', 'prior' or 'classifier'.
    config: the phase's config.
    facts: the facts of its dataset.

  Raises:
    UserError: no model can be made from these values.
  """
  for name in _NEEDED_FACTS[phase]:
    if name not in facts:
      raise errors.UserError(f'{name} is missing in the facts of its data')
  init = {'vqvae': _vqvae, 'prior': _prior, 'classifier': _classifier}[phase]
  try:
    params, state = jax.eval_shape(lambda: init(config, facts))
  except errors.UserError:
    raise
  except Exception as e:  # Flax and JAX raise many kinds.
    reason = f'{type(e).__name__}: {errors.one_line(e)}'[:_MAX_REASON]
    raise errors.UserError(f'it describes no model ({reason})') from e
  return {'params': params, 'model_state': state}
