"""The sampler of all priors (`base.Prior`).

One jitted call samples entire grids. Each code is sampled from the prior's
log-probabilities in these steps: guidance, autoguidance, temperature, top-k,
top-p, Gumbel-max. The prior does not know about them. The noise of a code is
the same whichever controls are on, and equally likely codes are ordered by
their numbers. A known code then replaces the sampled one, and all codes after
it depend on it.

New shapes, and controls that are switched on or off, cause a compilation; new
values, known codes and masks do not.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dermvq_jax import errors, progress
from dermvq_jax.models import arguments, losses
from dermvq_jax.models.priors import base, choice, randomness

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Controls:
  """How codes are sampled from a prior; by default from its probabilities.

  Attributes:
    temperature: T >= 0; samples from p^(1/T), at 0 the most likely code.
    top_k: samples only from the k most likely codes; 0, or K and more: off.
    top_p: in (0, 1]; samples only from the nucleus, the smallest set of most
      likely codes that has this probability (Holtzman et al. 2020, section
      3.1), after the temperature and among the codes that `top_k` keeps; 1:
      off.
    guidance_scale: s >= 0; samples from log p(code) + s (log p(code |
      conditions) - log p(code)), classifier-free guidance (Ho and Salimans
      2022, equation 6 with s = 1 + w there); 1: off, 0: without conditions.
    guidance_rise: what is added to s in raster order, from nothing at the first
      code to this at the last; below 0, s falls, at most to 0. 0: off.
    autoguidance_scale: a >= 0; samples from log w(code) + a (log p(code) - log
      w(code)), where w is the weak prior, the same prior after a small part of
      its training, and p is guided already (autoguidance, Karras et al. 2024,
      with its weight a). 1: off.

  Raises:
    errors.UserError: a value is outside its range.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  guidance_scale: float = 1.0
  guidance_rise: float = 0.0
  autoguidance_scale: float = 1.0

  def __post_init__(self):
    for name in ('temperature', 'guidance_scale', 'autoguidance_scale'):
      value = getattr(self, name)
      if not arguments.is_number(value) or not 0 <= value < math.inf:
        raise errors.UserError(
          f'{name} is {value}; give a number of at least 0'
        )
    if not (
      arguments.is_number(self.guidance_rise)
      and math.isfinite(self.guidance_rise)
    ):
      raise errors.UserError(
        f'guidance_rise is {self.guidance_rise}; give a number'
      )
    if not (
      arguments.is_number(self.top_k)
      and 0 <= self.top_k < math.inf
      and self.top_k % 1 == 0
    ):
      raise errors.UserError(
        f'top_k is {self.top_k}; give a whole number; 0 keeps all codes'
      )
    if not arguments.is_number(self.top_p) or not 0 < self.top_p <= 1:
      raise errors.UserError(
        f'top_p is {self.top_p}; give a number above 0 and at most 1'
      )

    if self.autoguides and self.guidance_scale == 0:
      raise errors.UserError(
        'guidance_scale is 0, but autoguidance knows the class; leave one out'
      )

  def switched_on(self) -> dict[str, float | int]:
    """Returns the temperature and the values of the controls that are on."""
    # An int or a NumPy number in place of a float would compile again.
    values = {'temperature': float(self.temperature)}
    if self.top_k:
      values['top_k'] = min(int(self.top_k), _MAX_TOP_K)
    if self.top_p < 1:
      values['top_p'] = float(self.top_p)
    if self.guides:
      values['guidance_scale'] = float(self.guidance_scale)
      values['guidance_rise'] = float(self.guidance_rise)
    if self.autoguides:
      values['autoguidance_scale'] = float(self.autoguidance_scale)
    return values

  @property
  def guides(self) -> bool:
    """Whether guidance is on."""
    return self.guidance_scale != 1 or self.guidance_rise != 0

  @property
  def autoguides(self) -> bool:
    """Whether autoguidance is on."""
    return self.autoguidance_scale != 1


_MAX_TOP_K = 2**31 - 1  # the largest int32; no codebook has as many codes
_DEFAULT_CONTROLS = Controls()


def check_known(
  known_codes: np.ndarray | None,
  known_mask: np.ndarray | None,
  shape: tuple[int, int, int],
  codebook_size: int,
) -> dict[str, np.ndarray]:
  """Checks the known codes of a completion.

  Args:
    known_codes: int [B, h, w]; any values where they are not known.
    known_mask: bool [B, h, w], which codes are known.
    shape: (B, h, w).
    codebook_size: K.

  Returns:
    A dict of both, with `known_codes` as int32; empty if both are None.

  Raises:
    errors.UserError: only one of them is given, a shape or dtype is wrong, or a
      known code is outside [0, K).
  """
  if known_codes is None and known_mask is None:
    return {}
  if known_codes is None or known_mask is None:
    raise errors.UserError('give both known_codes and known_mask, or neither')
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
  if known.size and (int(known.min()) < 0 or int(known.max()) >= codebook_size):
    raise errors.UserError(
      f'known codes must be in [0, {codebook_size}); these are from '
      f'{known.min()} to {known.max()}'
    )
  known_codes = np.where(known_mask, known_codes, 0).astype(np.int32)
  return {'known_codes': known_codes, 'known_mask': known_mask}


def sample_codes(
  prior: base.Prior,
  variables: dict,
  conditions: base.Conditions,
  keys: Array,
  grid: tuple[int, int],
  controls: Controls = _DEFAULT_CONTROLS,
  *,
  known_codes: np.ndarray | None = None,
  known_mask: np.ndarray | None = None,
  loss: str = 'cross_entropy',
) -> Array:
  """Samples grids of codes from a prior.

  Compiles once for each prior, batch size, grid, loss and choice of controls
  that are on. An image depends only on its own conditions, key and known codes,
  not on the batch.

  Args:
    prior: the module.
    variables: its variables, `{'params': ...}`, and for autoguidance
      `base.WEAK`.
    conditions: int [B] each.
    keys: random keys [B], from `randomness.image_keys`.
    grid: (h, w).
    controls: how a code is sampled.
    known_codes: int [B, h, w], codes to complete; they are returned unchanged.
    known_mask: bool [B, h, w], which of them are known. Every other code is
      sampled given all codes before it in raster order, and none after it.
    loss: the loss that the prior was trained with; see `losses.log_probs`.

  Returns:
    int32 [B, h, w].

  Raises:
    errors.UserError: known codes or mask do not fit.
  """
  grid = tuple(grid)
  return _sample_codes(
    prior,
    variables,
    # Only the prior's conditions: any others would cause a compilation.
    {
      name: jnp.asarray(conditions[name], jnp.int32)
      for name, _ in prior.conditions
    },
    keys,
    grid,
    loss,
    controls.switched_on(),
    check_known(
      known_codes, known_mask, (len(keys), *grid), prior.codebook_size
    ),
  )


def _guidance_scales(
  controls: dict[str, Array], grid: tuple[int, int]
) -> Array | None:
  """Takes the guidance from `controls`: its scales [h, w]; None: it is off."""
  scale = controls.pop('guidance_scale', None)
  if scale is None:
    return None
  passed = jnp.linspace(0, 1, math.prod(grid)).reshape(grid)
  return jnp.maximum(scale + controls.pop('guidance_rise') * passed, 0)


@functools.partial(jax.jit, static_argnames=('prior', 'grid', 'loss'))
def _sample_codes(
  prior, variables, conditions, keys, grid, loss, controls, known
):
  """Samples grids; `controls` and `known` hold only what is on."""
  height, width = grid
  batch = len(keys)
  controls = dict(controls)
  scales = _guidance_scales(controls, grid)
  auto_scale = controls.pop('autoguidance_scale', None)
  models = [prior.bind(variables)]
  if auto_scale is not None:
    models.append(prior.bind({'params': variables[base.WEAK]}))
  known = {k: einops.rearrange(x, 'b h w -> h w b') for k, x in known.items()}

  def streams(x, null=None):
    """What each model sees: [B, ...]; guided, the first sees [2B, ...]."""
    first = x
    if scales is not None:
      first = jnp.concatenate([x, x if null is None else null])
    return [first, x][: len(models)]

  def score(logits, i, j):
    """Log-probabilities [B, K] of the next code from the models' logits."""
    scores = [losses.log_probs(x, loss) for x in logits]
    if scales is not None:
      scores[0] = choice.guide(*jnp.split(scores[0], 2), scales[i, j])
    if auto_scale is None:
      return scores[0]
    return choice.guide(*scores, auto_scale)

  def sample_row(carry, row):
    caches, row_above = carry
    i, known = row
    caches = [
      model.start_row(cache, i, above)
      for model, cache, above in zip(models, caches, streams(row_above))
    ]
    # Small calls inside the inner loop would take longer than the model.
    noise = randomness.row_noise(
      keys, i, width, prior.codebook_size
    )  # [w, B, K]

    def sample_code(carry, column):
      caches, previous = carry
      j, noise, known = column
      stepped = [
        model.step(cache, i, j, codes)
        for model, cache, codes in zip(models, caches, streams(previous))
      ]
      caches, logits = map(list, zip(*stepped))
      code = choice.choose(score(logits, i, j), noise, **controls)
      if known:
        code = jnp.where(known['known_mask'], known['known_codes'], code)
      return (caches, code), code

    nothing = jnp.zeros(batch, jnp.int32)
    (caches, _), row = lax.scan(
      sample_code, (caches, nothing), (jnp.arange(width), noise, known)
    )
    row = einops.rearrange(row, 'w b -> b w')
    return (caches, row), row

  nulls = prior.null_conditions(batch)
  seen = {name: streams(x, nulls[name]) for name, x in conditions.items()}
  caches = [
    model.init_cache({name: x[n] for name, x in seen.items()}, grid)
    for n, model in enumerate(models)
  ]
  row_above = jnp.zeros((batch, width), jnp.int32)
  rows = jnp.arange(height), known
  _, codes = lax.scan(sample_row, (caches, row_above), rows)
  return einops.rearrange(codes, 'h b w -> b h w')


def sample_in_batches(
  prior: base.Prior,
  variables: dict,
  conditions: Mapping[str, Sequence[int]],
  keys: Array,
  grid: tuple[int, int],
  controls: Controls = _DEFAULT_CONTROLS,
  *,
  known_codes: np.ndarray | None = None,
  known_mask: np.ndarray | None = None,
  loss: str = 'cross_entropy',
  chunk_size: int = 16,
  show_progress: bool = False,
) -> np.ndarray:
  """Samples any number of grids in chunks: bounded memory, one compilation.

  Args:
    prior: the module.
    variables: its variables.
    conditions: int [N] each.
    keys: random keys [N].
    grid: (h, w).
    controls: as in `sample_codes`; so are the next three arguments.
    known_codes: int [N, h, w].
    known_mask: bool [N, h, w].
    loss: the loss that the prior was trained with.
    chunk_size: number of grids that are sampled together.
    show_progress: whether to show a progress bar with the time left.

  Returns:
    int32 [N, h, w], the same for every `chunk_size`.

  Raises:
    errors.UserError: known codes or mask do not fit.
  """
  conditions = {
    name: np.asarray(conditions[name], np.int32) for name, _ in prior.conditions
  }
  codes = np.zeros((len(keys), *grid), np.int32)
  known = check_known(known_codes, known_mask, codes.shape, prior.codebook_size)
  with progress.bar(
    total=len(keys), desc='sample', unit='image', disable=not show_progress
  ) as bar:
    for start in range(0, len(keys), chunk_size):
      chosen = np.arange(start, start + chunk_size)
      real = chosen[chosen < len(keys)]
      chosen = np.minimum(chosen, len(keys) - 1)  # repeats the last image
      # Picking keys takes a while, and a single image is a chunk.
      is_all = len(keys) == chunk_size
      chunk = sample_codes(
        prior,
        variables,
        {name: values[chosen] for name, values in conditions.items()},
        keys if is_all else keys[chosen],
        grid,
        controls,
        loss=loss,
        **{name: array[chosen] for name, array in known.items()},
      )
      codes[real] = np.asarray(chunk)[: len(real)]
      bar.update(len(real))
  return codes
