"""The quantizers: each class fulfils the contract `codebooks.Quantizer`."""

from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dermvq_jax.models import codebooks

Array = jax.Array

# Variables of the collection `codebook` that have no influence on the codes.
STATISTICS = ('ema_counts', 'ema_sums', 'unused_steps')
# A code with a smaller (decayed) number of latents has no reliable mean.
_MIN_COUNT = 1e-6
# Number of latents that the mean and deviation of all are estimated from.
_ROWS_FOR_SCALE = 256
_MIN_DEVIATION = 1e-6


def _random_codebook(module: nn.Module, shape: tuple[int, int]) -> Array:
  init = nn.initializers.variance_scaling(1.0, 'fan_out', 'uniform')
  return init(module.make_rng('params'), shape, jnp.float32)


def _check_decay(decay: float):
  advice = 'give a number that is at least 0 and less than 1'
  codebooks.check_field('codebook_ema_decay', decay, 0 <= decay < 1, advice)


class EmaQuantizer(codebooks.NearestCodeQuantizer):
  """The codebook follows the latents by moving averages.

  Appendix A.1 of van den Oord et al. 2017: each code is the ratio of two moving
  averages, of the sum of the latents assigned to it and of their number. Both
  begin at zero, so the ratio needs no bias correction: a code keeps its initial
  value until it is used, and its first use moves it to the mean of its latents.
  A restart sets the averages of a code to zero again.

  Attributes:
    codebook_ema_decay: decay of the averages (gamma there).
  """

  codebook_ema_decay: float = 0.99

  def __post_init__(self):
    """Raises UserError if a field is out of range."""
    _check_decay(self.codebook_ema_decay)
    super().__post_init__()

  def _make_codebook(self):
    k, d = self.codebook_size, self.code_dim
    self.codebook = self.variable(
      'codebook', 'codebook', lambda: _random_codebook(self, (k, d))
    )
    self.ema_counts = self.variable('codebook', 'ema_counts', jnp.zeros, (k,))
    self.ema_sums = self.variable('codebook', 'ema_sums', jnp.zeros, (k, d))

  def _replace(self, vectors, where):
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

  def vectors(self) -> Array:
    """Returns the codebook, float32 `[K, D]`."""
    return self.codebook.value


class VqQuantizer(codebooks.NearestCodeQuantizer):
  """The codebook is trained by gradient (van den Oord et al. 2017, equation 3).

  The codebook loss, the mean squared distance of codes to their latents, has
  weight 1 and trains the codebook alone; the commitment loss has
  `commitment_weight` and trains the encoder alone.

  A code is the sum of `origin`, its value at its start or last restart, which
  no gradient trains, and of the parameter `moved`. So a restart changes neither
  parameters nor the optimizer's averages of their gradients.
  """

  def _make_codebook(self):
    shape = (self.codebook_size, self.code_dim)
    self.origin = self.variable(
      'codebook', 'origin', lambda: _random_codebook(self, shape)
    )
    zeros = nn.initializers.zeros_init()
    self.moved = self.param('moved', zeros, shape, jnp.float32)

  def _replace(self, vectors, where):
    origin = vectors - lax.stop_gradient(self.moved)
    self.origin.value = jnp.where(where[:, None], origin, self.origin.value)

  def _codebook_loss(self, latents, codes):
    latents = lax.stop_gradient(latents)
    return codebooks.mean_per_image((latents - self.lookup(codes)) ** 2)

  def vectors(self) -> Array:
    """Returns the codebook, float32 `[K, D]`."""
    return self.origin.value + self.moved


class L2NormQuantizer(VqQuantizer):
  """Codes on the unit sphere (Yu et al. 2021, section 3.2).

  Latents and codes are scaled to length 1, so the nearest code is the one with
  the greatest cosine. With few dimensions (`code_dim` 8 to 32) all codes stay
  in use. The encoder's last and the decoder's first convolution take the place
  of the paper's projections down and up. The rest is as in `VqQuantizer`.
  """

  def _to_code_space(self, latents):
    return codebooks.normalize(latents.astype(jnp.float32))

  def vectors(self) -> Array:
    """Returns the codebook, float32 `[K, D]`, rows of length 1."""
    return codebooks.normalize(super().vectors())


class FsqQuantizer(codebooks.Quantizer):
  """Finite scalar quantization (Mentzer et al. 2023, section 3.1).

  Each of a few dimensions is bounded by tanh and rounded to one of its values.
  All combinations of these are the codebook, which is neither stored nor
  trained, and there is no loss. The gradient goes straight through the
  rounding.

  Unlike in the paper, latents are shifted and scaled first, by constants that
  give the first latents mean 0 and variance 1 in each dimension. The latents of
  an untrained encoder are so small that all would be rounded to one code, and
  could stay there for a long time.

  Attributes:
    values_per_dim: number of values of each dimension, at least 3; K is their
      product. The paper has (8, 6, 5) for 2^8, (8, 5, 5, 5) for 2^10,
      (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14, (8, 8, 8, 5, 5, 5) for
      2^16 codes.
  """

  values_per_dim: tuple[int, ...]

  num_init_rows = _ROWS_FOR_SCALE

  def __post_init__(self):
    """Raises UserError if the field is out of range."""
    values = tuple(self.values_per_dim)  # a stored config has a list
    valid = values and all(isinstance(n, int) and n >= 3 for n in values)
    advice = 'give whole numbers that are 3 or more'
    codebooks.check_field('values_per_dim', values, bool(valid), advice)
    object.__setattr__(self, 'values_per_dim', values)
    super().__post_init__()

  @property
  def code_dim(self) -> int:
    """Length of a code, D."""
    return len(self.values_per_dim)

  @property
  def codebook_size(self) -> int:
    """Number of codes, K."""
    return int(np.prod(self.values_per_dim))

  def setup(self):
    """Makes the variables."""
    shape = (self.code_dim,)
    self.center = self.variable('codebook', 'center', jnp.zeros, shape)
    self.scale = self.variable('codebook', 'scale', jnp.ones, shape)
    # Stored because the codes depend on it.
    self.variable(
      'codebook',
      'values_per_dim',
      lambda: jnp.asarray(self.values_per_dim, jnp.int32),
    )

  def init_codebook(self, latents: Array):
    """Finds shift and scale from latents `[N, D]`, N >= num_init_rows."""
    rows = latents.astype(jnp.float32)
    self.center.value = rows.mean(axis=0)
    self.scale.value = 1 / jnp.maximum(rows.std(axis=0), _MIN_DEVIATION)

  def _bounded(self, latents: Array) -> Array:
    """Maps latents to the range of the values, and the center to 0."""
    values = np.asarray(self.values_per_dim)
    # Slightly more, so that the outermost values are reached.
    half = (values - 1) * (1 + 1e-3) / 2
    offset = np.where(values % 2 == 0, 0.5, 0.0)
    shift = np.arctanh(offset / half)
    center, scale = lax.stop_gradient((self.center.value, self.scale.value))
    z = (latents.astype(jnp.float32) - center) * scale
    return jnp.tanh(z + shift) * half - offset

  def __call__(self, latents: Array) -> codebooks.Quantized:
    """Quantizes `[B, h, w, D]`."""
    half = np.asarray(self.values_per_dim) // 2
    bounded = self._bounded(latents)
    quantized = codebooks.straight_through(bounded, jnp.round(bounded)) / half
    metrics = codebooks.common_metrics(
      bounded / half, lax.stop_gradient(quantized)
    )
    return codebooks.Quantized(
      quantized=quantized.astype(latents.dtype),
      codes=self.encode(latents),
      loss=jnp.zeros(()),
      metrics=metrics,
      observed=(),
    )

  def encode(self, latents: Array) -> Array:
    """Returns the codes, int32 `[B, h, w]`, of latents `[B, h, w, D]`."""
    values = np.asarray(self.values_per_dim)
    digits = jnp.round(self._bounded(latents)).astype(jnp.int32) + values // 2
    place = np.cumprod([1, *values[:-1]])
    return jnp.sum(digits * place, axis=-1, dtype=jnp.int32)

  def lookup(self, codes: Array) -> Array:
    """Returns vectors `[B, h, w, D]` in [-1, 1] of codes `[B, h, w]`."""
    values = np.asarray(self.values_per_dim)
    digits = codes[..., None] // np.cumprod([1, *values[:-1]]) % values
    return (digits - values // 2) / jnp.float32(values // 2)

  def vectors(self) -> Array:
    """Returns the vectors of all codes, float32 `[K, D]`."""
    return self.lookup(jnp.arange(self.codebook_size))


class ResidualQuantizer(codebooks.TrainedQuantizer):
  """Each level quantizes what the level before left (Lee et al. 2022, 3.1).

  Each level is a separate `EmaQuantizer`. The quantized latent is the sum of
  the codes of all levels, and the loss is the sum of their losses. L levels of
  K codes take L codes per latent and distinguish K^L latents, with only L * K
  codes to train.

  Attributes:
    num_levels: L.
    codebook_ema_decay: see `EmaQuantizer`; like all other fields, it applies to
      each level.
  """

  num_levels: int = 2
  codebook_ema_decay: float = 0.99

  def __post_init__(self):
    """Raises UserError if a field is out of range."""
    codebooks.check_field(
      'num_levels', self.num_levels, self.num_levels >= 1, 'give 1 or more'
    )
    _check_decay(self.codebook_ema_decay)
    super().__post_init__()

  def setup(self):
    """Makes the levels."""
    self.stages = [
      EmaQuantizer(
        codebook_size=self.codebook_size,
        code_dim=self.code_dim,
        commitment_weight=self.commitment_weight,
        codebook_init=self.codebook_init,
        restart_after=self.restart_after,
        codebook_ema_decay=self.codebook_ema_decay,
      )
      for _ in range(self.num_levels)
    ]

  def __call__(self, latents: Array) -> codebooks.Quantized:
    """Quantizes `[B, h, w, D]`."""
    rest = z = latents.astype(jnp.float32)
    parts = []
    for stage in self.stages:
      parts.append(stage(rest))
      rest = rest - lax.stop_gradient(parts[-1].quantized)
    quantized = lax.stop_gradient(sum(part.quantized for part in parts))
    metrics = jax.tree.map(
      lambda *values: sum(values), *[part.metrics for part in parts]
    )
    return codebooks.Quantized(
      quantized=codebooks.straight_through(z, quantized).astype(latents.dtype),
      codes=self._join([part.codes for part in parts]),
      loss=sum(part.loss for part in parts),
      metrics=metrics | codebooks.common_metrics(z, quantized),
      observed=tuple(part.observed for part in parts),
    )

  def update(self, observed: Any, *, axis_name: str | None = None):
    """Updates each level like `EmaQuantizer`."""
    for stage, of_level in zip(self.stages, observed):
      stage.update(of_level, axis_name=axis_name)

  def _join(self, codes: list[Array]) -> Array:
    """Joins the codes of the levels, L times `[B, h, w]`, to `[B, h, w*L]`."""
    firsts = self.codebook_size * jnp.arange(self.num_levels)
    codes = jnp.stack(codes, axis=-1) + firsts
    return einops.rearrange(codes, 'b h w l -> b h (w l)')

  def encode(self, latents: Array) -> Array:
    """Returns the codes, int32 `[B, h, w*L]`, of latents `[B, h, w, D]`."""
    rest, codes = latents.astype(jnp.float32), []
    for stage in self.stages:
      codes.append(stage.encode(rest))
      rest = rest - stage.lookup(codes[-1])
    return self._join(codes)

  def vectors(self) -> Array:
    """Returns what each code adds to a latent, float32 `[L*K, D]`."""
    return jnp.concatenate([stage.vectors() for stage in self.stages])

  def init_codebook(self, latents: Array):
    """Initialises level after level from latents `[N, D]`, N >= K."""
    rest = latents.astype(jnp.float32)
    for stage in self.stages:
      stage.init_codebook(rest)
      codes = stage.encode(rest[None, :, None])
      rest = rest - stage.lookup(codes)[0, :, 0]


# The quantizers, by their names in config.quantizer.name.
QUANTIZERS = {
  'ema': EmaQuantizer,
  'vq': VqQuantizer,
  'l2_norm': L2NormQuantizer,
  'fsq': FsqQuantizer,
  'residual': ResidualQuantizer,
}
