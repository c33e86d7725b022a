"""Quantizers: continuous latents to codes and back.

`quantizer.name` in a config is the class's name in snake case without
'Quantizer': `ema` is `EmaQuantizer`; its other entries are the class's fields.
Contract, of a quantizer of L levels (1 but for `residual`) with K codes each:

- `code_dim`, `codebook_size`, `num_levels` are D, K, L; `num_codes` is L * K;
- called with latents `[B, h, w, D]` it returns `Quantized`; `encode` and
  `lookup` are its two halves; `vectors` is the table that `lookup` adds up;
- `update` moves, once a training step, what no gradient trains, by what was
  `observed` in it;
- codes are `[B, h, w*L]`, the levels of a latent adjacent, code + level * K;
- `start` takes the first latents, `start_rows` of them or more, unless 0.

What no gradient trains lives in the collection `codebook`. The RNG stream
`codebook` (`update` and `start` only) must be the same on every device.
"""

from typing import Any

import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dermvq_jax import errors
from dermvq_jax.models import codebooks, layers

# Below so many (decayed) assignments a code's statistics say nothing.
_MIN_COUNT = 1e-6
# Latents that k-means sees, for each code.
_ROWS_PER_CENTRE = 8
# Latents that tell the place and the scale of all.
_ROWS_FOR_SCALE = 256
_MIN_SPREAD = 1e-6
# Names of variables of the collection `codebook` that decide no code.
STATISTICS = ('ema_counts', 'ema_sums', 'unused_steps')
_STARTS = ('latents', 'k_means', 'random')


@flax.struct.dataclass
class Quantized:
  """What a quantizer returns.

  Attributes:
    quantized: `[B, h, w, D]`; its gradient goes to the latents.
    codes: int32 `[B, h, w*L]`.
    loss: scalar to add to the training loss.
    metrics: values worth a curve, `[B]` each.
    observed: arrays `[B, ...]` for `update`, without a gradient.
  """

  quantized: jax.Array
  codes: jax.Array
  loss: jax.Array
  metrics: dict[str, jax.Array]
  observed: Any


def _check(name: str, value: Any, right: bool, wanted: str):
  if not right:
    raise errors.UserError(f'config.quantizer.{name} is {value!r}; {wanted}')


def _check_codebook(quantizer: nn.Module):
  """Checks the fields that all quantizers with a trained codebook have."""
  q = quantizer
  for name in ('codebook_size', 'code_dim'):
    _check(name, getattr(q, name), getattr(q, name) >= 1, 'give 1 or more')
  for name in ('commitment_weight', 'restart_after', 'entropy_weight'):
    _check(name, getattr(q, name), getattr(q, name) >= 0, 'give 0 or more')
  for name, known in (
    ('gradient', tuple(codebooks.GRADIENTS)),
    ('codebook_start', _STARTS),
  ):
    value = getattr(q, name)
    wanted = 'it must be one of ' + ', '.join(map(repr, known))
    _check(name, value, value in known, wanted)
  temperature = q.entropy_temperature
  _check(
    'entropy_temperature', temperature, temperature > 0, 'give more than 0'
  )


def _check_decay(decay: float):
  wanted = 'give a number from 0 up to, without, 1'
  _check('codebook_ema_decay', decay, 0 <= decay < 1, wanted)


def _mean_per_image(values: jax.Array) -> jax.Array:
  """[B, ...] -> [B]."""
  return values.mean(axis=tuple(range(1, values.ndim)))


def _sizes(latents: jax.Array, quantized: jax.Array) -> dict[str, jax.Array]:
  """The metrics that every quantizer has, `[B]` each."""
  return {
    'quantization_error': _mean_per_image((latents - quantized) ** 2),
    'latent_norm': _mean_per_image(jnp.linalg.norm(latents, axis=-1)),
  }


class _CodebookQuantizer(nn.Module):
  """Nearest codes in a trained codebook; how it is trained, subclasses say.

  Attributes:
    codebook_size: number of codes, K.
    code_dim: length of a code, D.
    commitment_weight: weight of the commitment loss (beta in van den Oord et
      al. 2017, equation 3), the mean squared distance of latents to their
      codes, which the encoder alone is trained by.
    gradient: of the quantized latents, 'straight_through' or 'rotation'; see
      `codebooks`.
    codebook_start: 'latents', distinct latents of the first batches;
      'k_means', centres of those; 'random'.
    restart_after: steps after which an unused code becomes a latent of the
      current batch; 0: never.
    entropy_weight: weight of a loss that spreads usage: the mean entropy of
      soft assignments less the entropy of their mean (Chang et al. 2022 train
      so; Yu et al. 2024, section 3.1).
    entropy_temperature: of the soft assignments, in squared distances.
  """

  codebook_size: int
  code_dim: int
  commitment_weight: float = 0.25
  gradient: str = 'straight_through'
  codebook_start: str = 'latents'
  restart_after: int = 0
  entropy_weight: float = 0.0
  entropy_temperature: float = 1.0

  num_levels = 1

  def __post_init__(self):
    """Raises UserError for fields out of range."""
    _check_codebook(self)
    super().__post_init__()

  @property
  def num_codes(self) -> int:
    """Codes are in [0, num_codes)."""
    return self.codebook_size

  @property
  def start_rows(self) -> int:
    """How many latents `start` needs; 0: it is not to be called."""
    if self.codebook_start == 'random':
      return 0
    each = _ROWS_PER_CENTRE if self.codebook_start == 'k_means' else 1
    return each * self.codebook_size

  def setup(self):
    """Makes the codebook and what is counted."""
    self._make_codebook()
    self.unused_steps = self.variable(
      'codebook', 'unused_steps', jnp.zeros, (self.codebook_size,), jnp.int32
    )

  def _make_codebook(self):
    """Makes variables."""
    raise NotImplementedError

  def _place(self, vectors: jax.Array, where: jax.Array):
    """Puts codes `[K, D]` where true, bool `[K]`, as if never used before."""
    raise NotImplementedError

  def _follow(self, counts: jax.Array, sums: jax.Array):
    """Moves the codes by how often they were used and the sums of latents."""

  def _space(self, latents: jax.Array) -> jax.Array:
    """Latents `[..., D]` to where distances are taken, in float32."""
    return latents.astype(jnp.float32)

  def _codebook_loss(self, latents, codes) -> jax.Array | None:
    """The loss that trains the codebook, `[B]`; None: something else does."""
    del latents, codes

  def vectors(self) -> jax.Array:
    """What a code stands for, float32 `[K, D]`."""
    raise NotImplementedError

  def __call__(
    self, latents: jax.Array, *, axis_name: str | None = None
  ) -> Quantized:
    """Quantizes `[B, h, w, D]`."""
    dtype, latents = latents.dtype, self._space(latents)
    codes = self._nearest(latents)
    quantized = jax.lax.stop_gradient(self.lookup(codes))
    # The codebook's gradient is that of its own loss alone.
    commitment_loss = _mean_per_image((latents - quantized) ** 2)  # [B]
    loss = self.commitment_weight * jnp.mean(commitment_loss)
    metrics = _sizes(latents, quantized) | {'commitment_loss': commitment_loss}
    codebook_loss = self._codebook_loss(latents, codes)
    if codebook_loss is not None:
      loss += jnp.mean(codebook_loss)
    if self.entropy_weight:
      sure, spread = codebooks.assignment_entropies(
        latents, self.vectors(), self.entropy_temperature, axis_name
      )
      loss += self.entropy_weight * (sure - spread)
      for name, value in (('latent', sure), ('usage', spread)):
        per_image = jnp.broadcast_to(value, commitment_loss.shape)
        metrics[f'{name}_assignment_entropy'] = per_image
    gradient = codebooks.GRADIENTS[self.gradient]
    return Quantized(
      quantized=gradient(latents, quantized).astype(dtype),
      codes=codes,
      loss=loss,
      metrics=metrics,
      observed=(jax.lax.stop_gradient(latents), codes),
    )

  def _nearest(self, latents):
    return layers.nearest_codes(
      *jax.lax.stop_gradient((latents, self.vectors()))
    )

  def encode(self, latents: jax.Array) -> jax.Array:
    """Nearest codes, int32 `[B, h, w]`, of latents `[B, h, w, D]`."""
    return self._nearest(self._space(latents))

  def lookup(self, codes: jax.Array) -> jax.Array:
    """Code vectors `[B, h, w, D]` of codes int32 `[B, h, w]`."""
    return self.vectors()[codes]

  def start(self, latents: jax.Array):
    """Starts the codebook from latents `[N, D]`, N >= `start_rows`."""
    rows = self._space(latents)
    choose = {
      'latents': codebooks.distinct_rows,
      'k_means': codebooks.k_means,
    }[self.codebook_start]
    vectors = choose(rows, self.make_rng('codebook'), self.codebook_size)
    self._place(vectors, jnp.ones(self.codebook_size, bool))

  def update(self, observed: Any, *, axis_name: str | None = None):
    """One step of statistics and restarts, over all devices.

    Args:
      observed: of the step's `Quantized`.
      axis_name: of the devices that hold the batch; None: this is all of it.
    """
    latents, codes = observed
    rows = latents.reshape(-1, self.code_dim)
    counts, sums = layers.code_sums(rows, codes.ravel(), self.codebook_size)
    if axis_name is not None:
      counts, sums = jax.lax.psum((counts, sums), axis_name)
    self._follow(counts, sums)
    unused = jnp.where(counts > 0, 0, self.unused_steps.value + 1)
    if self.restart_after:
      dead = unused >= self.restart_after
      candidates = codebooks.rows_of_global_batch(
        rows, self.make_rng('codebook'), self.codebook_size, axis_name
      )
      self._place(candidates, dead)
      unused = jnp.where(dead, 0, unused)
    self.unused_steps.value = unused


def _random_codebook(module: nn.Module, shape: tuple[int, int]) -> jax.Array:
  init = nn.initializers.variance_scaling(1.0, 'fan_out', 'uniform')
  return init(module.make_rng('params'), shape, jnp.float32)


class EmaQuantizer(_CodebookQuantizer):
  """Codebook that follows the latents by moving averages.

  van den Oord et al. 2017, Appendix A.1: each code is the ratio of two moving
  averages, of the sum of the latents assigned to it and of their number. Both
  start at zero, so the ratio needs no bias correction: a code keeps its start
  value until it is used, and its first use moves it to the mean of its latents.
  A code that restarts has its averages at zero again.

  Attributes:
    codebook_ema_decay: decay of the averages (gamma there).
  """

  codebook_ema_decay: float = 0.99

  def __post_init__(self):
    """Raises UserError for fields out of range."""
    _check_decay(self.codebook_ema_decay)
    super().__post_init__()

  def _make_codebook(self):
    k, d = self.codebook_size, self.code_dim
    self.codebook = self.variable(
      'codebook', 'codebook', lambda: _random_codebook(self, (k, d))
    )
    self.ema_counts = self.variable('codebook', 'ema_counts', jnp.zeros, (k,))
    self.ema_sums = self.variable('codebook', 'ema_sums', jnp.zeros, (k, d))

  def _place(self, vectors, where):
    rows = where[:, None]
    self.codebook.value = jnp.where(rows, vectors, self.codebook.value)
    self.ema_counts.value = jnp.where(where, 0, self.ema_counts.value)
    self.ema_sums.value = jnp.where(rows, 0, self.ema_sums.value)

  def _follow(self, counts, sums):
    decay = self.codebook_ema_decay
    ema_counts = decay * self.ema_counts.value + (1 - decay) * counts
    ema_sums = decay * self.ema_sums.value + (1 - decay) * sums
    self.codebook.value = jnp.where(
      (ema_counts > _MIN_COUNT)[:, None],
      ema_sums / jnp.maximum(ema_counts, _MIN_COUNT)[:, None],
      self.codebook.value,
    )
    self.ema_counts.value, self.ema_sums.value = ema_counts, ema_sums

  def vectors(self) -> jax.Array:
    """The codebook, float32 `[K, D]`."""
    return self.codebook.value


class VqQuantizer(_CodebookQuantizer):
  """Codebook trained by gradient (van den Oord et al. 2017, equation 3).

  The codebook loss, the mean squared distance of codes to their latents, has
  weight 1 and trains the codebook alone; the commitment loss has
  `commitment_weight` and trains the encoder alone.

  A code is the sum of `origin`, where it started or restarted, which no
  gradient trains, and of the parameter `moved`. So a restart changes neither
  parameters nor their averages, and the optimizer finds nothing strange.
  """

  def _make_codebook(self):
    shape = (self.codebook_size, self.code_dim)
    self.origin = self.variable(
      'codebook', 'origin', lambda: _random_codebook(self, shape)
    )
    zeros = nn.initializers.zeros_init()
    self.moved = self.param('moved', zeros, shape, jnp.float32)

  def _place(self, vectors, where):
    origin = vectors - jax.lax.stop_gradient(self.moved)
    self.origin.value = jnp.where(where[:, None], origin, self.origin.value)

  def _codebook_loss(self, latents, codes):
    latents = jax.lax.stop_gradient(latents)
    return _mean_per_image((latents - self.lookup(codes)) ** 2)

  def vectors(self) -> jax.Array:
    """The codebook, float32 `[K, D]`."""
    return self.origin.value + self.moved


class L2NormQuantizer(VqQuantizer):
  """Codes on the unit sphere (Yu et al. 2021, section 3.2).

  Latents and codes are scaled to length 1, so that the nearest code is that of
  the greatest cosine; few dimensions (`code_dim` 8 to 32) keep all codes in
  use. The projections down and up of the paper are the encoder's last and the
  decoder's first convolution. The rest is as in `VqQuantizer`.
  """

  def _space(self, latents):
    return codebooks.normalize(latents.astype(jnp.float32))

  def vectors(self) -> jax.Array:
    """The codebook, float32 `[K, D]`, rows of length 1."""
    return codebooks.normalize(super().vectors())


class FsqQuantizer(nn.Module):
  """Finite scalar quantization (Mentzer et al. 2023, section 3.1).

  Each of a few dimensions is bounded by tanh and rounded to one of its levels;
  all combinations are the codebook, which is neither stored nor trained, and
  there is no loss. The gradient goes straight through the rounding.

  Unlike there, latents are shifted and scaled beforehand, for good, so that the
  first ones have mean 0 and variance 1 in each dimension: those of an untrained
  encoder are so small that all round to one code, and may long stay there.

  Attributes:
    levels: number of values of each dimension, 3 or more; K is their product.
      The paper has (8, 6, 5) for 2^8, (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5)
      for 2^12, (8, 8, 8, 6, 5) for 2^14, (8, 8, 8, 5, 5, 5) for 2^16 codes.
  """

  levels: tuple[int, ...]

  num_levels = 1
  start_rows = _ROWS_FOR_SCALE

  def __post_init__(self):
    """Raises UserError for fields out of range."""
    levels = tuple(self.levels)  # A stored config has a list.
    whole = levels and all(isinstance(n, int) and n >= 3 for n in levels)
    _check('levels', levels, bool(whole), 'give whole numbers from 3 up')
    object.__setattr__(self, 'levels', levels)
    super().__post_init__()

  @property
  def code_dim(self) -> int:
    """Length of a code, D."""
    return len(self.levels)

  @property
  def codebook_size(self) -> int:
    """Number of codes, K."""
    return int(np.prod(self.levels))

  @property
  def num_codes(self) -> int:
    """Codes are in [0, num_codes)."""
    return self.codebook_size

  def setup(self):
    """Makes the scale; the weights mean nothing without the levels either."""
    shape = (self.code_dim,)
    self.center = self.variable('codebook', 'center', jnp.zeros, shape)
    self.scale = self.variable('codebook', 'scale', jnp.ones, shape)
    self.variable(
      'codebook', 'levels', lambda: jnp.asarray(self.levels, jnp.int32)
    )

  def start(self, latents: jax.Array):
    """Finds the scale of latents `[N, D]`, N >= `start_rows`."""
    rows = latents.astype(jnp.float32)
    self.center.value = rows.mean(axis=0)
    self.scale.value = 1 / jnp.maximum(rows.std(axis=0), _MIN_SPREAD)

  def _bounded(self, latents: jax.Array) -> jax.Array:
    """To between the least and the greatest level, the center to 0."""
    levels = np.asarray(self.levels)
    # A little more, so that the outermost levels are reached.
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = np.where(levels % 2 == 0, 0.5, 0.0)
    shift = np.arctanh(offset / half)
    center, scale = jax.lax.stop_gradient((self.center.value, self.scale.value))
    z = (latents.astype(jnp.float32) - center) * scale
    return jnp.tanh(z + shift) * half - offset

  def __call__(
    self, latents: jax.Array, *, axis_name: str | None = None
  ) -> Quantized:
    """Quantizes `[B, h, w, D]`."""
    del axis_name
    half = np.asarray(self.levels) // 2
    bounded = self._bounded(latents)
    quantized = codebooks.straight_through(bounded, jnp.round(bounded)) / half
    return Quantized(
      quantized=quantized.astype(latents.dtype),
      codes=self.encode(latents),
      loss=jnp.zeros(()),
      metrics=_sizes(bounded / half, jax.lax.stop_gradient(quantized)),
      observed=(),
    )

  def update(self, observed: Any, *, axis_name: str | None = None):
    """Nothing is to be done."""

  def encode(self, latents: jax.Array) -> jax.Array:
    """Codes, int32 `[B, h, w]`, of latents `[B, h, w, D]`."""
    levels = np.asarray(self.levels)
    digits = jnp.round(self._bounded(latents)).astype(jnp.int32) + levels // 2
    place = np.cumprod([1, *levels[:-1]])
    return jnp.sum(digits * place, axis=-1, dtype=jnp.int32)

  def lookup(self, codes: jax.Array) -> jax.Array:
    """Code vectors `[B, h, w, D]` in [-1, 1] of codes int32 `[B, h, w]`."""
    levels = np.asarray(self.levels)
    digits = codes[..., None] // np.cumprod([1, *levels[:-1]]) % levels
    return (digits - levels // 2) / jnp.float32(levels // 2)

  def vectors(self) -> jax.Array:
    """What a code stands for, float32 `[K, D]`."""
    return self.lookup(jnp.arange(self.codebook_size))


class ResidualQuantizer(nn.Module):
  """Codes of what the levels before left (Lee et al. 2022, section 3.1).

  Each level is an `EmaQuantizer` of its own; the quantized latent is the sum
  of its levels' codes, and the loss the sum of theirs. L levels of K codes
  cost L codes a latent and tell apart K^L, with L * K codes to train.

  Attributes:
    num_levels: L.
    Others: of each level; see `EmaQuantizer`.
  """

  codebook_size: int
  code_dim: int
  num_levels: int = 2
  commitment_weight: float = 0.25
  codebook_ema_decay: float = 0.99
  gradient: str = 'straight_through'
  codebook_start: str = 'latents'
  restart_after: int = 0
  entropy_weight: float = 0.0
  entropy_temperature: float = 1.0

  def __post_init__(self):
    """Raises UserError for fields out of range."""
    levels = self.num_levels
    _check('num_levels', levels, levels >= 1, 'give 1 or more')
    _check_codebook(self)
    _check_decay(self.codebook_ema_decay)
    super().__post_init__()

  num_codes = property(lambda self: self.num_levels * self.codebook_size)
  start_rows = _CodebookQuantizer.start_rows

  def setup(self):
    """Makes the levels."""
    self.stages = [
      EmaQuantizer(
        codebook_size=self.codebook_size,
        code_dim=self.code_dim,
        commitment_weight=self.commitment_weight,
        codebook_ema_decay=self.codebook_ema_decay,
        codebook_start=self.codebook_start,
        restart_after=self.restart_after,
        entropy_weight=self.entropy_weight,
        entropy_temperature=self.entropy_temperature,
      )
      for _ in range(self.num_levels)
    ]

  def __call__(
    self, latents: jax.Array, *, axis_name: str | None = None
  ) -> Quantized:
    """Quantizes `[B, h, w, D]`."""
    left = z = latents.astype(jnp.float32)
    parts = []
    for stage in self.stages:
      parts.append(stage(left, axis_name=axis_name))
      left = left - jax.lax.stop_gradient(parts[-1].quantized)
    quantized = jax.lax.stop_gradient(sum(part.quantized for part in parts))
    metrics = jax.tree.map(
      lambda *values: sum(values), *[part.metrics for part in parts]
    )
    gradient = codebooks.GRADIENTS[self.gradient]
    return Quantized(
      quantized=gradient(z, quantized).astype(latents.dtype),
      codes=self._join([part.codes for part in parts]),
      loss=sum(part.loss for part in parts),
      metrics=metrics | _sizes(z, quantized),
      observed=tuple(part.observed for part in parts),
    )

  def update(self, observed: Any, *, axis_name: str | None = None):
    """As that of `EmaQuantizer`, level after level."""
    for stage, of_level in zip(self.stages, observed):
      stage.update(of_level, axis_name=axis_name)

  def _join(self, codes: list[jax.Array]) -> jax.Array:
    """Codes of the levels, L times `[B, h, w]`, to `[B, h, w*L]`."""
    firsts = self.codebook_size * jnp.arange(self.num_levels)
    codes = jnp.stack(codes, axis=-1) + firsts
    return einops.rearrange(codes, 'b h w l -> b h (w l)')

  def encode(self, latents: jax.Array) -> jax.Array:
    """Codes, int32 `[B, h, w*L]`, of latents `[B, h, w, D]`."""
    left, codes = latents.astype(jnp.float32), []
    for stage in self.stages:
      codes.append(stage.encode(left))
      left = left - stage.lookup(codes[-1])
    return self._join(codes)

  def lookup(self, codes: jax.Array) -> jax.Array:
    """Code vectors `[B, h, w, D]` of codes int32 `[B, h, w*L]`."""
    parts = self.vectors()[codes]
    return einops.reduce(
      parts, 'b h (w l) d -> b h w d', 'sum', l=self.num_levels
    )

  def vectors(self) -> jax.Array:
    """What a code adds, float32 `[L*K, D]`."""
    return jnp.concatenate([stage.vectors() for stage in self.stages])

  def start(self, latents: jax.Array):
    """Starts level after level from latents `[N, D]`, N >= `start_rows`."""
    left = latents.astype(jnp.float32)
    for stage in self.stages:
      stage.start(left)
      codes = stage.encode(left[None, :, None])
      left = left - stage.lookup(codes)[0, :, 0]
