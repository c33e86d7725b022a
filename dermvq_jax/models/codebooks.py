"""What quantizers share: their contract, and how a codebook is trained.

In shape comments, B is the batch, h and w are the grid of latents, D is the
length of a code, K the number of codes of a level, and L the number of levels
(1 for all but the residual quantizer).
"""

from typing import Any

import einops
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dermvq_jax import errors
from dermvq_jax.models import nearest

Array = jax.Array

_INITS = ('latents', 'random')  # valid values of codebook_init
_MIN_NORM = 1e-6  # shorter vectors have no direction


@flax.struct.dataclass
class Quantized:
  """The output of a quantizer.

  Attributes:
    quantized: `[B, h, w, D]`; its gradient goes to the latents.
    codes: int32 `[B, h, w*L]`.
    loss: scalar to add to the training loss.
    metrics: values per image, `[B]` each; every term of the loss is among them,
      unweighted.
    observed: arrays `[B, ...]` for `update`, without gradients.
  """

  quantized: Array
  codes: Array
  loss: Array
  metrics: dict[str, Array]
  observed: Any


class Quantizer(nn.Module):
  """The contract of all quantizers.

  A subclass has fields or properties `codebook_size`, K, and `code_dim`, D.
  Variables that no gradient trains live in the collection `codebook`. The RNG
  stream `codebook`, which only `init_codebook` and `update` use, must be the
  same on every device.
  """

  num_levels = 1  # L
  num_init_rows = 0  # latents that `init_codebook` needs; 0: do not call it

  @property
  def num_codes(self) -> int:
    """Number of different codes, L * K; codes are in [0, num_codes)."""
    return self.num_levels * self.codebook_size

  def __call__(self, latents: Array) -> Quantized:
    """Quantizes latents `[B, h, w, D]`."""
    raise NotImplementedError

  def encode(self, latents: Array) -> Array:
    """Returns the codes, int32 `[B, h, w*L]`, of latents `[B, h, w, D]`.

    The levels of a latent are adjacent; level l has codes l*K .. l*K + K - 1.
    """
    raise NotImplementedError

  def lookup(self, codes: Array) -> Array:
    """Returns the quantized latents `[B, h, w, D]` of codes `[B, h, w*L]`.

    A quantized latent is the sum of the vectors of its codes, one per level.
    """
    parts = self.vectors()[codes]
    if self.num_levels == 1:
      return parts
    return einops.reduce(
      parts, 'b h (w l) d -> b h w d', 'sum', l=self.num_levels
    )

  def vectors(self) -> Array:
    """Returns the vectors of all codes, float32 `[L*K, D]`."""
    raise NotImplementedError

  def init_codebook(self, latents: Array):
    """Initialises the codebook from latents `[N, D]`, N >= num_init_rows."""
    raise NotImplementedError

  def update(self, observed: Any, *, axis_name: str | None = None):
    """Updates the variables that no gradient trains, once per training step.

    Does nothing unless a subclass overrides it.

    Args:
      observed: `Quantized.observed` of the whole batch of this device.
      axis_name: axis of the devices that share the batch; None if the batch is
        complete.
    """


def straight_through(latents: Array, quantized: Array) -> Array:
  """Returns `quantized`, with a gradient that goes to `latents` unchanged.

  Section 3.2 of van den Oord et al. 2017.

  Args:
    latents: `[..., D]`.
    quantized: `[..., D]`.
  """
  return lax.stop_gradient(quantized) + (latents - lax.stop_gradient(latents))


def normalize(vectors: Array) -> Array:
  """Scales vectors `[..., D]` to length 1; zero stays zero."""
  # The gradient of jnp.linalg.norm at zero is NaN.
  squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
  return vectors * lax.rsqrt(jnp.maximum(squared, _MIN_NORM**2))


def rows_of_global_batch(
  rows: Array, rng: Array, count: int, axis_name: str | None
) -> Array:
  """Samples from the rows of all devices; the result is the same on each.

  Args:
    rows: the rows of this device, `[N, D]`.
    rng: a key, the same on every device.
    count: number of rows to sample, with replacement.
    axis_name: axis of the devices; None: `rows` are all rows.

  Returns:
    `[count, D]`.
  """
  n = rows.shape[0]
  if axis_name is None:
    return rows[jax.random.randint(rng, (count,), 0, n)]
  num_devices = lax.axis_size(axis_name)
  index = jax.random.randint(rng, (count,), 0, n * num_devices)
  index = index - n * lax.axis_index(axis_name)
  mine = (index >= 0) & (index < n)
  found = jnp.where(mine[:, None], rows[jnp.clip(index, 0, n - 1)], 0)
  return lax.psum(found, axis_name)


def check_field(name: str, value: Any, valid: bool, advice: str):
  """Raises UserError, with advice, unless a field's value is valid."""
  if not valid:
    raise errors.UserError(f'config.quantizer.{name} is {value!r}; {advice}')


def mean_per_image(values: Array) -> Array:
  """Averages each image's values: [B, ...] -> [B]."""
  return values.mean(axis=tuple(range(1, values.ndim)))


def common_metrics(latents: Array, quantized: Array) -> dict[str, Array]:
  """Returns the metrics that every quantizer has, `[B]` each."""
  return {
    'quantization_error': mean_per_image((latents - quantized) ** 2),
    'latent_norm': mean_per_image(jnp.linalg.norm(latents, axis=-1)),
  }


class TrainedQuantizer(Quantizer):
  """The fields of all quantizers whose codebook is trained.

  Attributes:
    codebook_size: number of codes of a level, K.
    code_dim: length of a code, D.
    commitment_weight: weight of the commitment loss (beta in van den Oord et
      al. 2017, equation 3): the mean squared distance of latents to their
      codes, which trains the encoder alone.
    codebook_init: 'latents': the codebook begins as distinct latents of the
      first batches; 'random': it begins as random vectors.
    restart_after: number of steps after which an unused code is replaced by a
      latent of the current batch; 0: never.
  """

  codebook_size: int
  code_dim: int
  commitment_weight: float = 0.25
  codebook_init: str = 'latents'
  restart_after: int = 0

  def __post_init__(self):
    """Raises UserError if a field is out of range."""
    for name, least in (
      ('codebook_size', 1),
      ('code_dim', 1),
      ('commitment_weight', 0),
      ('restart_after', 0),
    ):
      value = getattr(self, name)
      check_field(name, value, value >= least, f'give {least} or more')
    known = ', '.join(map(repr, _INITS))
    init = self.codebook_init
    check_field(
      'codebook_init', init, init in _INITS, f'it must be one of {known}'
    )
    super().__post_init__()

  @property
  def num_init_rows(self) -> int:
    """Number of latents that `init_codebook` needs; 0: do not call it."""
    return 0 if self.codebook_init == 'random' else self.codebook_size


class NearestCodeQuantizer(TrainedQuantizer):
  """Each latent becomes its nearest code; subclasses train the codebook.

  A subclass defines `vectors` and the methods below that raise
  NotImplementedError.
  """

  def setup(self):
    """Makes the variables."""
    self._make_codebook()
    self.unused_steps = self.variable(
      'codebook', 'unused_steps', jnp.zeros, (self.codebook_size,), jnp.int32
    )

  def _make_codebook(self):
    """Makes the variables that hold the codes."""
    raise NotImplementedError

  def _replace(self, vectors: Array, where: Array):
    """Replaces codes and resets their statistics.

    Args:
      vectors: new codes, `[K, D]`.
      where: which codes to replace, bool `[K]`.
    """
    raise NotImplementedError

  def _follow(self, counts: Array, sums: Array):
    """Moves codes towards their latents, unless a gradient does that.

    Args:
      counts: number of latents of each code, `[K]`.
      sums: their sums, `[K, D]`.
    """

  def _to_code_space(self, latents: Array) -> Array:
    """Maps latents `[..., D]` to the space of the codes, in float32."""
    return latents.astype(jnp.float32)

  def _codebook_loss(self, latents: Array, codes: Array) -> Array | None:
    """Returns the loss that trains the codebook, `[B]`, or None."""
    del latents, codes

  def __call__(self, latents: Array) -> Quantized:
    """Quantizes `[B, h, w, D]`."""
    dtype, latents = latents.dtype, self._to_code_space(latents)
    codes = self._nearest(latents)
    # Only the codebook loss trains the codebook.
    quantized = lax.stop_gradient(self.lookup(codes))
    commitment_loss = mean_per_image((latents - quantized) ** 2)  # [B]
    loss = self.commitment_weight * jnp.mean(commitment_loss)
    metrics = common_metrics(latents, quantized)
    metrics['commitment_loss'] = commitment_loss
    codebook_loss = self._codebook_loss(latents, codes)
    if codebook_loss is not None:
      loss += jnp.mean(codebook_loss)
      metrics['codebook_loss'] = codebook_loss
    return Quantized(
      quantized=straight_through(latents, quantized).astype(dtype),
      codes=codes,
      loss=loss,
      metrics=metrics,
      observed=(lax.stop_gradient(latents), codes),
    )

  def _nearest(self, latents: Array) -> Array:
    return nearest.nearest_codes(*lax.stop_gradient((latents, self.vectors())))

  def encode(self, latents: Array) -> Array:
    """Returns the nearest codes, int32 `[B, h, w]`, of `[B, h, w, D]`."""
    return self._nearest(self._to_code_space(latents))

  def init_codebook(self, latents: Array):
    """Makes distinct latents the codes; latents `[N, D]`, N >= K."""
    vectors = jax.random.choice(
      self.make_rng('codebook'),
      self._to_code_space(latents),
      (self.codebook_size,),
      replace=False,
    )
    self._replace(vectors, jnp.ones(self.codebook_size, bool))

  def update(self, observed: Any, *, axis_name: str | None = None):
    """Updates statistics and restarts unused codes."""
    latents, codes = observed
    rows = latents.reshape(-1, self.code_dim)
    counts, sums = nearest.code_sums(rows, codes.ravel(), self.codebook_size)
    if axis_name is not None:
      counts, sums = lax.psum((counts, sums), axis_name)
    self._follow(counts, sums)
    unused = jnp.where(counts > 0, 0, self.unused_steps.value + 1)
    if self.restart_after:
      dead = unused >= self.restart_after
      candidates = rows_of_global_batch(
        rows, self.make_rng('codebook'), self.codebook_size, axis_name
      )
      self._replace(candidates, dead)
      unused = jnp.where(dead, 0, unused)
    self.unused_steps.value = unused
