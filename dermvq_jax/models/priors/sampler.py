"""The one sampler, for every prior that keeps the contract.

A prior is a Linen module with the methods `init_cache`, `start_row` and `step`
(see `models/gated_pixelcnn.py`). The whole grid is drawn by one jitted call.

A code is drawn from the prior's log-probabilities in this order, of which the
prior knows nothing: guidance, temperature, top-k, top-p, Gumbel-max. The noise
of a code is the same whatever is on, and codes that are equally likely come in
the order of their numbers. A known code then takes the place of the drawn one,
and all after it are drawn given it.

What is on or off is compiled in, and so are the sizes; values, known codes and
masks are not.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dermvq_jax import errors, progress
from dermvq_jax.models import layers, losses

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Controls:
  """How codes are drawn from what the prior says; by default as it says.

  Attributes:
    temperature: T >= 0; draws from p^(1/T), at 0 the most likely code.
    top_k: draws from the so many most likely codes; 0 or K and more: all.
    top_p: in (0, 1]; draws from the nucleus, the fewest most likely codes that
      have this probability together (Holtzman et al. 2020, section 3.1), after
      the temperature and among what `top_k` leaves; 1: off.
    guidance_scale: s >= 0; draws from log p(code) + s (log p(code | label) -
      log p(code)), classifier-free guidance (Ho and Salimans 2022, equation 6
      with s = 1 + w there); 1: off, 0: the null label.

  Raises:
    errors.UserError: a value outside its range.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  guidance_scale: float = 1.0

  def __post_init__(self):
    for name in ('temperature', 'guidance_scale'):
      value = getattr(self, name)
      if not (math.isfinite(value) and value >= 0):
        raise errors.UserError(
          f'{name} is {value}; give a number that is 0 or more'
        )
    if not (self.top_k >= 0 and self.top_k % 1 == 0):
      raise errors.UserError(
        f'top_k is {self.top_k}; give a whole number, 0 for all codes'
      )
    if not 0 < self.top_p <= 1:
      raise errors.UserError(
        f'top_p is {self.top_p}; give a number above 0 and up to 1'
      )

  def switched_on(self) -> dict[str, float | int]:
    """The temperature, and the values of what is on."""
    # An int or a NumPy number for a float would compile anew.
    values = {'temperature': float(self.temperature)}
    if self.top_k:
      values['top_k'] = min(int(self.top_k), _MAX_TOP_K)
    if self.top_p < 1:
      values['top_p'] = float(self.top_p)
    if self.guidance_scale != 1:
      values['guidance_scale'] = float(self.guidance_scale)
    return values


_MAX_TOP_K = 2**31 - 1  # as an int32; more than any codebook has
_AS_IT_IS = Controls()


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


def guide(conditional: Array, unconditional: Array, scale: Array) -> Array:
  """Classifier-free guidance (Ho and Salimans 2022, equation 6).

  Args:
    conditional: log-probabilities given the label, [..., K].
    unconditional: given the null label, [..., K].
    scale: scalar s.

  Returns:
    u + s (c - u), [..., K]; not normalised. A code that is impossible with
    either stays as likely as with the label.
  """
  guided = unconditional + scale * (conditional - unconditional)
  possible = jnp.isfinite(conditional) & jnp.isfinite(unconditional)
  return jnp.where(possible, guided, conditional)


def _nucleus_weight(weights: Array, top_k: Array | None, top_p: Array) -> Array:
  """What the codes of the nucleus must weigh together, [B, 1].

  Args:
    weights: of the codes, in proportion to their probabilities, [B, K].
    top_k: how many codes there are to choose from; None: all.
    top_p: share of their weight.
  """
  if top_k is not None:
    falling = -jnp.sort(-weights, axis=-1)
    weights = jnp.where(jnp.arange(weights.shape[-1]) < top_k, falling, 0)
  return top_p * weights.sum(axis=-1, keepdims=True)


def choose(
  scores: Array,
  noise: Array,
  temperature: Array,
  top_k: Array | None = None,
  top_p: Array | None = None,
) -> Array:
  """Draws codes by the Gumbel-max trick.

  The most likely of log p + T * noise is a draw from p^(1/T); the first of
  the most likely codes at temperature 0.

  Args:
    scores: log-probabilities [B, K]; need not be normalised.
    noise: standard Gumbel [B, K].
    temperature: scalar T >= 0.
    top_k: scalar >= 1, see `Controls`; None: off.
    top_p: scalar in (0, 1], see `Controls`; None: off.

  Returns:
    int32 [B].
  """
  noisy = scores + temperature * noise
  if top_k is None and top_p is None:
    return layers.argmax(noisy)
  numbers = jnp.arange(scores.shape[-1])
  if top_p is not None:
    # At temperature 0 the most likely codes share everything.
    scaled = scores - scores.max(axis=-1, keepdims=True)
    scaled = scaled / jnp.maximum(temperature, jnp.finfo(scores.dtype).tiny)
    weights = jnp.exp(scaled)
    enough = _nucleus_weight(weights, top_k, top_p)

  def draw(carry):
    """Draws; if the code may not be, leaves the more likely ones for later.

    Sorting all codes would take longer than the prior itself. Few draws are
    outside, and each takes all that are less likely out with it.
    """
    noisy, _, _ = carry
    code = layers.argmax(noisy)[:, None]
    score = jnp.take_along_axis(scores, code, axis=-1)
    before = (scores > score) | ((scores == score) & (numbers < code))
    inside = jnp.ones(code.shape, bool)
    if top_k is not None:
      inside &= before.sum(axis=-1, keepdims=True) < top_k
    if top_p is not None:  # The code that reaches top_p is the last one in.
      weight = jnp.where(before, weights, 0).sum(axis=-1, keepdims=True)
      inside &= weight < enough
    inside |= ~before.any(axis=-1, keepdims=True)  # Ends even if all are nan.
    return jnp.where(inside | before, noisy, -jnp.inf), code, inside

  start = noisy, jnp.zeros((len(scores), 1), jnp.int32), False
  _, code, _ = lax.while_loop(lambda carry: ~carry[2].all(), draw, draw(start))
  return code[:, 0]


def check_known(
  known_codes: np.ndarray | None,
  known_mask: np.ndarray | None,
  shape: tuple[int, int, int],
  codebook_size: int,
) -> dict[str, np.ndarray]:
  """Checks what a completion starts from.

  Args:
    known_codes: int [B, h, w]; anything where they are not known.
    known_mask: bool [B, h, w], which codes are known.
    shape: (B, h, w).
    codebook_size: K.

  Returns:
    Both, `known_codes` as int32; empty if both are None.

  Raises:
    errors.UserError: only one of them, a wrong shape or dtype, or a known code
      outside [0, K).
  """
  if known_codes is None and known_mask is None:
    return {}
  if known_codes is None or known_mask is None:
    raise errors.UserError('give known_codes and known_mask, or neither')
  known_codes, known_mask = np.asarray(known_codes), np.asarray(known_mask)
  for name, array, kind in (
    ('known_codes', known_codes, np.integer),
    ('known_mask', known_mask, np.bool_),
  ):
    if array.shape != tuple(shape) or not np.issubdtype(array.dtype, kind):
      raise errors.UserError(
        f'{name} must be {"bool" if kind is np.bool_ else "integers"} '
        f'{list(shape)}, not {array.dtype} {list(array.shape)}'
      )
  known = known_codes[known_mask]
  if known.size and (known.min() < 0 or known.max() >= codebook_size):
    raise errors.UserError(
      f'known codes must be in [0, {codebook_size}); these reach from '
      f'{known.min()} to {known.max()}'
    )
  known_codes = np.where(known_mask, known_codes, 0).astype(np.int32)
  return {'known_codes': known_codes, 'known_mask': known_mask}


def sample_codes(
  prior: nn.Module,
  variables: dict,
  labels: Array,
  keys: Array,
  grid: tuple[int, int],
  controls: Controls = _AS_IT_IS,
  *,
  known_codes: np.ndarray | None = None,
  known_mask: np.ndarray | None = None,
  loss: str = 'cross_entropy',
) -> Array:
  """Draws grids of codes from a prior.

  Compiles once for a prior, batch size, grid, loss and what is on of the
  controls. An image depends on its own label, key and known codes alone, not
  on the batch.

  Args:
    prior: the module.
    variables: its variables, `{'params': ...}`.
    labels: int [B].
    keys: random keys [B], from `image_keys`.
    grid: (h, w).
    controls: how a code is drawn.
    known_codes: int [B, h, w], codes to complete; they come back untouched.
    known_mask: bool [B, h, w], which of them are known. Each other code is
      drawn given all codes before it in raster order, none after it.
    loss: what the prior was trained with, see `losses.log_probs`.

  Returns:
    int32 [B, h, w].

  Raises:
    errors.UserError: known codes or mask do not fit.
  """
  grid = tuple(grid)
  shape = (len(labels), *grid)
  return _sample_codes(
    prior,
    variables,
    jnp.asarray(labels, jnp.int32),
    keys,
    grid,
    loss,
    controls.switched_on(),
    check_known(known_codes, known_mask, shape, prior.codebook_size),
  )


@functools.partial(jax.jit, static_argnames=('prior', 'grid', 'loss'))
def _sample_codes(prior, variables, labels, keys, grid, loss, controls, known):
  """`controls` and `known` hold only what is on."""
  height, width = grid
  batch = labels.shape[0]
  methods = prior.bind(variables)
  controls = dict(controls)
  scale = controls.pop('guidance_scale', None)
  known = {k: einops.rearrange(x, 'b h w -> h w b') for k, x in known.items()}

  def streams(x):
    """With guidance all images run twice: [B, ...] -> [2B, ...]."""
    return x if scale is None else jnp.concatenate([x, x])

  def draw_row(carry, row):
    cache, row_above = carry
    i, known = row
    cache = methods.start_row(cache, i, streams(row_above))
    # Small draws inside the inner loop would take longer than the model.
    noise = row_noise(keys, i, width, prior.codebook_size)  # [w, B, K]

    def draw_code(carry, column):
      cache, previous = carry
      j, noise, known = column
      cache, logits = methods.step(cache, i, j, streams(previous))
      scores = losses.log_probs(logits, loss)
      if scale is not None:
        scores = guide(*jnp.split(scores, 2), scale)
      code = choose(scores, noise, **controls)
      if known:
        code = jnp.where(known['known_mask'], known['known_codes'], code)
      return (cache, code), code

    nothing = jnp.zeros(batch, jnp.int32)
    (cache, _), row = lax.scan(
      draw_code, (cache, nothing), (jnp.arange(width), noise, known)
    )
    row = einops.rearrange(row, 'w b -> b w')
    return (cache, row), row

  if scale is not None:
    null_labels = jnp.full_like(labels, prior.num_classes)
    labels = jnp.concatenate([labels, null_labels])
  cache = methods.init_cache(labels, grid)
  row_above = jnp.zeros((batch, width), jnp.int32)
  rows = jnp.arange(height), known
  _, codes = lax.scan(draw_row, (cache, row_above), rows)
  return einops.rearrange(codes, 'h b w -> b h w')


def sample_in_batches(
  prior: nn.Module,
  variables: dict,
  labels: Sequence[int],
  keys: Array,
  grid: tuple[int, int],
  controls: Controls = _AS_IT_IS,
  *,
  known_codes: np.ndarray | None = None,
  known_mask: np.ndarray | None = None,
  loss: str = 'cross_entropy',
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
    controls: as in `sample_codes`, like the next three.
    known_codes: int [N, h, w].
    known_mask: bool [N, h, w].
    loss: what the prior was trained with.
    chunk_size: how many grids are drawn at a time.
    show_progress: whether to show a progress bar with the time left.

  Returns:
    int32 [N, h, w], the same for every `chunk_size`.

  Raises:
    errors.UserError: known codes or mask do not fit.
  """
  labels = np.asarray(labels, np.int32)
  codes = np.zeros((len(labels), *grid), np.int32)
  known = check_known(known_codes, known_mask, codes.shape, prior.codebook_size)
  with progress.bar(
    total=len(labels), desc='sample', unit='img', disable=not show_progress
  ) as bar:
    for start in range(0, len(labels), chunk_size):
      chosen = np.arange(start, start + chunk_size)
      real = chosen[chosen < len(labels)]
      chosen = np.minimum(chosen, len(labels) - 1)  # The last one fills up.
      chunk = sample_codes(
        prior,
        variables,
        labels[chosen],
        keys[chosen],
        grid,
        controls,
        loss=loss,
        **{name: array[chosen] for name, array in known.items()},
      )
      codes[real] = np.asarray(chunk)[: len(real)]
      bar.update(len(real))
  return codes
