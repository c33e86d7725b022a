"""The one sampler, for every prior that keeps the contract.

A prior is a Linen module with the methods `init_cache`, `start_row` and `step`
(see `models/gated_pixelcnn.py`). The whole grid is drawn by one jitted call.
"""

import collections
import functools
import math
from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dermvq_jax import errors, losses, progress

Array = jax.Array


def count_within_labels(labels: Sequence[int]) -> np.ndarray:
  """For each label how often it came before: the default ids of images."""
  seen = collections.Counter()
  ids = []
  for label in np.asarray(labels).tolist():
    ids.append(seen[label])
    seen[label] += 1
  return np.asarray(ids, np.int32)


def image_keys(
  seed: int, labels: Sequence[int], ids: Sequence[int] | None = None
) -> Array:
  """One random key an image, which no other image has a part in.

  Args:
    seed: of all images.
    labels: int [B].
    ids: int [B], which image of its label each one is; by default they are
      counted from 0.

  Returns:
    Keys [B]: fold_in(fold_in(key(seed), label), id).
  """
  if ids is None:
    ids = count_within_labels(labels)

  def image_key(label, n):
    return jax.random.fold_in(
      jax.random.fold_in(jax.random.key(seed), label), n
    )

  return jax.vmap(image_key)(
    jnp.asarray(labels, jnp.uint32), jnp.asarray(ids, jnp.uint32)
  )


def row_noise(keys: Array, row: Array, width: int, codebook_size: int) -> Array:
  """Gumbel noise for one row of every image: float32 [w, B, K].

  Args:
    keys: one an image, [B].
    row: index of the row.
    width: w.
    codebook_size: K.
  """

  def image_noise(key):
    key = jax.random.fold_in(key, row)
    return jax.random.gumbel(key, (width, codebook_size), jnp.float32)

  return einops.rearrange(jax.vmap(image_noise)(keys), 'b w k -> w b k')


def choose(logits: Array, noise: Array, temperature: Array) -> Array:
  """Draws codes by the Gumbel-max trick.

  The most likely of log p + T * noise is a draw from p^(1/T); the first of
  the most likely codes at temperature 0.

  Args:
    logits: [B, K].
    noise: standard Gumbel [B, K].
    temperature: scalar T >= 0.

  Returns:
    int32 [B].
  """
  scores = losses.log_probs(logits) + temperature * noise
  most = scores.max(axis=-1, keepdims=True)
  # XLA:CPU's argmax is a slow loop; a maximum and a minimum are not.
  last = scores.shape[-1] - 1  # Also where the logits are not numbers.
  indices = jnp.arange(last + 1, dtype=jnp.int32)
  return jnp.where(scores == most, indices, last).min(axis=-1)


def check_temperature(temperature: float) -> None:
  """Raises `errors.UserError` unless it is finite and not negative."""
  if not (math.isfinite(temperature) and temperature >= 0):
    raise errors.UserError(
      f'The temperature is {temperature}; give a number that is 0 or more.'
    )


def sample_codes(
  prior: nn.Module,
  variables: dict,
  labels: Array,
  keys: Array,
  grid: tuple[int, int],
  temperature: float = 1.0,
) -> Array:
  """Draws grids of codes from a prior.

  Compiles once for a prior, batch size and grid. An image depends on its own
  label and key alone, not on the batch.

  Args:
    prior: the module.
    variables: its variables, `{'params': ...}`.
    labels: int [B].
    keys: random keys [B], from `image_keys`.
    grid: (h, w).
    temperature: 1 for the prior's own distribution, 0 for the most likely
      code everywhere.

  Returns:
    int32 [B, h, w].

  Raises:
    errors.UserError: the temperature is negative or not finite.
  """
  check_temperature(temperature)
  return _sample_codes(
    prior,
    variables,
    jnp.asarray(labels, jnp.int32),
    keys,
    tuple(grid),
    float(temperature),  # An int would compile anew.
  )


@functools.partial(jax.jit, static_argnames=('prior', 'grid'))
def _sample_codes(prior, variables, labels, keys, grid, temperature):
  height, width = grid
  batch = labels.shape[0]
  methods = prior.bind(variables)

  def draw_row(carry, i):
    cache, row_above = carry
    cache = methods.start_row(cache, i, row_above)
    # Small draws inside the inner loop would take longer than the model.
    noise = row_noise(keys, i, width, prior.codebook_size)  # [w, B, K]

    def draw_code(carry, column):
      cache, previous = carry
      j, noise = column
      cache, logits = methods.step(cache, i, j, previous)
      code = choose(logits, noise, temperature)
      return (cache, code), code

    nothing = jnp.zeros(batch, jnp.int32)
    (cache, _), row = lax.scan(
      draw_code, (cache, nothing), (jnp.arange(width), noise)
    )
    row = einops.rearrange(row, 'w b -> b w')
    return (cache, row), row

  cache = methods.init_cache(labels, grid)
  row_above = jnp.zeros((batch, width), jnp.int32)
  _, codes = lax.scan(draw_row, (cache, row_above), jnp.arange(height))
  return einops.rearrange(codes, 'h b w -> b h w')


def sample_in_batches(
  prior: nn.Module,
  variables: dict,
  labels: Sequence[int],
  keys: Array,
  grid: tuple[int, int],
  temperature: float = 1.0,
  *,
  chunk_size: int = 16,
  show_progress: bool = False,
) -> np.ndarray:
  """Draws any number of grids in chunks: bounded memory, one compilation.

  Args:
    prior: the module.
    variables: its variables.
    labels: int [N].
    keys: random keys [N].
    grid: (h, w).
    temperature: as in `sample_codes`.
    chunk_size: how many grids are drawn at a time.
    show_progress: whether to show a progress bar with the time left.

  Returns:
    int32 [N, h, w], the same for every `chunk_size`.

  Raises:
    errors.UserError: the temperature is negative or not finite.
  """
  check_temperature(temperature)
  labels = np.asarray(labels, np.int32)
  codes = np.zeros((len(labels), *grid), np.int32)
  with progress.bar(
    total=len(labels), desc='sample', unit='img', disable=not show_progress
  ) as bar:
    for start in range(0, len(labels), chunk_size):
      chosen = np.arange(start, start + chunk_size)
      real = chosen[chosen < len(labels)]
      chosen = np.minimum(chosen, len(labels) - 1)  # The last one fills up.
      chunk = sample_codes(
        prior, variables, labels[chosen], keys[chosen], grid, temperature
      )
      codes[real] = np.asarray(chunk)[: len(real)]
      bar.update(len(real))
  return codes
