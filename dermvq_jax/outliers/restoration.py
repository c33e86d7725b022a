"""What a run would expect in place of what is strange.

Codes of strange places are drawn anew given the rest, several times (Marimont
and Tarroni 2021, Pinaya et al. 2022).
"""

import dataclasses

import einops
import numpy as np

from dermvq_jax.outliers import measure

_STRANGE = 1.0  # Codes are drawn anew from this many standard deviations on.
_NUM_DRAWS = 4


@dataclasses.dataclass(frozen=True)
class Restored:
  """Images without what is strange.

  Attributes:
    images: one draw of each image, uint8 `[B, H, W, 3]`.
    differences: mean absolute difference between the reconstruction and the
      draws, in [0, 1], float32 `[B, H, W]`.
  """

  images: np.ndarray
  differences: np.ndarray


def strange_codes(
  maps: np.ndarray, grid: tuple[int, int], num_levels: int
) -> np.ndarray:
  """Which codes are drawn anew, bool `[B, h, w*L]`.

  Args:
    maps: how strange pixels are, `[B, H, W]`; see `Scores.maps`.
    grid: h and w*L.
    num_levels: L.
  """
  height, width = grid[0], grid[1] // num_levels
  means = einops.reduce(
    maps, 'b (h i) (w j) -> b h w', 'mean', h=height, w=width
  )
  return (means > _STRANGE).repeat(num_levels, axis=2)


def restore(
  model: measure.Model, images: np.ndarray, maps: np.ndarray, seed: int = 0
) -> Restored:
  """Draws the codes of strange places anew.

  Each is drawn given all codes before it in raster order, strange or not, for
  an image of any class.

  Args:
    model: a run with a trained prior that knows images without a label.
    images: uint8 `[B, H, W, 3]`.
    maps: `Scores.maps` of the images, `[B, H, W]`.
    seed: the seed of the draws.
  """
  codes = model.encode(images)
  strange = strange_codes(maps, codes.shape[1:], model.num_levels)
  made = model.decode(codes)
  drawn = model.sample_codes(
    [len(model.class_names)] * len(images) * _NUM_DRAWS,
    seed=seed,
    known_codes=np.tile(codes, (_NUM_DRAWS, 1, 1)),
    known_mask=np.tile(~strange, (_NUM_DRAWS, 1, 1)),
  )
  decoded = model.decode(drawn).reshape(_NUM_DRAWS, *images.shape)
  differences = np.abs(decoded / 255.0 - made / 255.0).mean((0, -1))
  return Restored(decoded[0], np.float32(differences))
