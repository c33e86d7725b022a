"""What an evaluation found, as typed values; `read` and `write` them as JSON.

Sets of images that are compared with the real ones of the evaluated split have
these names:

- `real`: other real images, from `GenerationResult.floor_split`. Samples cannot
  be expected to come closer than these.
- `reconstructions`: the split's own images, encoded and decoded.
- `real_codes`: the other real images, encoded and decoded: what a perfect prior
  would reach.
- `samples`: new images, one for each of the other real images, with its class.
- `independent_codes`: decoded from codes that are sampled independently, each
  from the training frequencies of its position: what a prior must beat.
"""

import dataclasses
import json
from typing import Any

import dacite
from etils import epath

from dermvq_jax import errors

# Number of images, `[true class][predicted class]`.
Confusion = list[list[int]]
NOT_KNOWN = 'not known'  # the group of images whose value is not known
FLAGGED_AT = 0.05  # the p-value at which images are flagged, as by dermvq score


@dataclasses.dataclass(frozen=True)
class MadeBy:
  """How something was made; from `provenance.describe`.

  Attributes:
    command: the command line.
    date: in UTC.
    versions: name of a package to its version.
    devices: number and kind of the devices that JAX used.
  """

  command: str
  date: str
  versions: dict[str, str]
  devices: str


@dataclasses.dataclass(frozen=True)
class ClassLikelihood:
  """How well the prior predicts the codes of one class.

  All but `num_images` are None if the split has no image of the class.

  Attributes:
    num_images: number of images.
    nll_nats: mean of -log p(codes | class) of an image.
    bits_per_code: the same in bits, divided by the codes of an image.
    bits_per_dim: the same in bits, divided by the H * W * 3 values of an image.
    recall: share of the images whose codes are most likely under their own
      class.
  """

  num_images: int
  nll_nats: float | None
  bits_per_code: float | None
  bits_per_dim: float | None
  recall: float | None


@dataclasses.dataclass(frozen=True)
class PriorResult:
  """How well the prior predicts the codes of a split.

  The predicted class of an image is the one under which its codes are most
  likely: Bayes' rule with a uniform class prior.

  Attributes:
    dataset: name of the dataset of codes.
    num_images: number of images.
    nll_nats: see `ClassLikelihood`, of all images.
    bits_per_code: see `ClassLikelihood`, of all images.
    bits_per_dim: see `ClassLikelihood`, of all images.
    accuracy: share of the images whose predicted class is right.
    balanced_accuracy: mean recall of the classes that occur.
    classes: the results of each class by its name.
    confusion: images by true and predicted class.
    bits_per_code_given: bits per code given also all conditions that the prior
      knows and that are known of an image; None if the prior knows none.
  """

  dataset: str
  num_images: int
  nll_nats: float
  bits_per_code: float
  bits_per_dim: float
  accuracy: float
  balanced_accuracy: float
  classes: dict[str, ClassLikelihood]
  confusion: Confusion
  bits_per_code_given: float | None = None


@dataclasses.dataclass(frozen=True)
class ReconstructionResult:
  """How close reconstructions come to their originals.

  Attributes:
    num_images: number of images.
    mse: mean squared error of all values, in units of the range [0, 1].
    nmse: `mse` divided by the variance of the training images.
    psnr: -10 log10(mse), in dB.
    ssim: mean structural similarity, at most 1.
    lpips: mean LPIPS (`models.perceptual`), 0 or more; None for images that are
      too small for its network.
  """

  num_images: int
  mse: float
  nmse: float
  psnr: float
  ssim: float
  lpips: float | None


@dataclasses.dataclass(frozen=True)
class TextureResult:
  """Whether images have as much detail as real ones.

  Attributes:
    octaves: octaves of spatial frequency, such as '1/4 to 1/2' cycles per
      pixel, the finest first.
    power: name of a set, see the module's docstring, to its mean power in each
      octave, divided by that of the real images of the split. 1 is best.
  """

  octaves: list[str]
  power: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over lesions, and where it lies with a probability of 95%."""

  mean: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class GroupResult:
  """How well the images of one group are modelled.

  The estimates are None for fewer than two lesions.

  Attributes:
    num_images: number of images.
    bits_per_code: see `ClassLikelihood`, given the class.
    bits_per_code_given: the same, given also all conditions that the prior
      knows and that are known of an image; None if the prior knows none.
    mse: see `ReconstructionResult`.
    agreement: share of reconstructions that the classifier finds of the class
      of their images; None without a classifier.
    flagged: share of images with a p-value of at most `FLAGGED_AT` of being
      like the others; None if `dermvq score` has not measured the run's images.
  """

  num_images: int
  bits_per_code: Estimate | None
  bits_per_code_given: Estimate | None
  mse: Estimate | None
  agreement: Estimate | None = None
  flagged: Estimate | None = None


@dataclasses.dataclass(frozen=True)
class SetComparison:
  """How close a set of images comes to real ones in a space of features.

  The functions of `generation_metrics` explain the numbers.

  Attributes:
    num_images: number of images in the set.
    frechet_distance: 0 or more; lower is closer.
    kid: kernel inception distance, lower is closer; may be below 0.
    kid_standard_error: its standard error.
    precision: share of the set's images that look real, in [0, 1].
    recall: share of the real images that the set's images come near, in [0, 1].
    density: like `precision`, but counts how many real images are near; 0 or
      more.
    coverage: share of the real images with an image of the set near them.
  """

  num_images: int
  frechet_distance: float
  kid: float
  kid_standard_error: float
  precision: float
  recall: float
  density: float
  coverage: float


@dataclasses.dataclass(frozen=True)
class GenerationResult:
  """How close sets of images come to the real ones of the split.

  Attributes:
    num_features: dimensions of the space of features.
    num_real: number of images of the split, which all sets are compared with.
    floor_split: the split of the other real images.
    sets: name of a set, see the module's docstring, to its comparison.
    classes: class name to the comparisons of its images alone, by name of the
      set; only classes that have at least 100 images in every set.
    kid_over_independent: the KID of `samples` divided by the KID of
      `independent_codes`; None if the divisor is not above 0.
  """

  num_features: int
  num_real: int
  floor_split: str
  sets: dict[str, SetComparison]
  classes: dict[str, dict[str, SetComparison]]
  kid_over_independent: float | None


@dataclasses.dataclass(frozen=True)
class SetLabels:
  """How often a classifier recognises the classes of a set of images.

  Attributes:
    num_images: number of images in the set.
    balanced_accuracy: mean recall of the classes that occur.
    standard_error: standard error of `balanced_accuracy`.
    recalls: class name to the share of its images that are recognised; None if
      the set has no image of the class.
    confusion: images by their class (for samples, the requested class) and
      predicted class.
  """

  num_images: int
  balanced_accuracy: float
  standard_error: float
  recalls: dict[str, float | None]
  confusion: Confusion


@dataclasses.dataclass(frozen=True)
class LabelsResult:
  """Whether images show their class, according to the run's classifier.

  Attributes:
    real: the images of the split.
    reconstructions: the same, encoded and decoded.
    samples: new images; at least 25 of each class.
    samples_over_real: mean recall of `samples` divided by the mean recall of
      `real`, over the classes that both have; None if no real image is
      recognised.
  """

  real: SetLabels
  reconstructions: SetLabels
  samples: SetLabels
  samples_over_real: float | None


@dataclasses.dataclass(frozen=True)
class SpaceMemorisation:
  """Whether samples are copies, by distances in one space.

  The module `memorisation` explains the numbers.

  Attributes:
    threshold: the memorisation ratio below which an image is flagged as a copy.
    num_copied: number of samples that are flagged.
    num_held_out_copied: number of held-out images that are flagged, though they
      cannot be copies.
    ratio_quantiles: quantile ('0' to '1') of the samples' ratios.
    held_out_ratio_quantiles: the same quantiles for held-out images.
    ratio_p_value: probability of ratios as low as this if samples were like
      held-out images.
    share_closer_to_train: share of the samples whose nearest image is a
      training image, not a held-out one.
    expected_share: what that share would be by chance.
    p_value: probability of a share as high as this by chance.
  """

  threshold: float
  num_copied: int
  num_held_out_copied: int
  ratio_quantiles: dict[str, float]
  held_out_ratio_quantiles: dict[str, float]
  ratio_p_value: float
  share_closer_to_train: float
  expected_share: float
  p_value: float


@dataclasses.dataclass(frozen=True)
class MemorisationResult:
  """Whether samples are copies of training images.

  Attributes:
    num_samples: number of samples.
    num_train: number of training images.
    num_held_out: number of held-out images: all of val and test.
    spaces: the results by `pixels` and, if there is a space of features, by
      `features`: the classifier's features if the run has a classifier.
  """

  num_samples: int
  num_train: int
  num_held_out: int
  spaces: dict[str, SpaceMemorisation]


@dataclasses.dataclass(frozen=True)
class Choice:
  """How samples were chosen from several candidates.

  Attributes:
    candidates: number of candidates for each sample.
    by: 'classifier' or 'likelihood'.
    chooser: the classifier that chose, in words; None without one.
  """

  candidates: int
  by: str
  chooser: str | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What `evaluate.evaluate` found.

  Attributes:
    split: the split that was evaluated.
    dataset: name of the dataset of images.
    seed: seed of the samples.
    controls: `sampler.Controls` of the samples, by name.
    space: name of the space of features; None if there was none.
    weights: name of a phase to the id of its weights, `Phase.weights_id`.
    made_by: how this evaluation was made.
    prior: the prior, on the codes of the split.
    reconstruction: the reconstructions of the images of the split.
    texture: the detail in the sets of images.
    groups: the images by condition (but the label) and value, `NOT_KNOWN` among
      them; empty if the images have no conditions.
    generation: None without samples or a space of features.
    labels: None without samples or a classifier.
    memorisation: None without samples.
    choice: how samples were chosen; None: all that were drawn were taken.
    judge: the classifier that judged samples, in words; None without one.
  """

  split: str
  dataset: str
  seed: int
  controls: dict[str, float]
  space: str | None
  weights: dict[str, str]
  made_by: MadeBy
  prior: PriorResult
  reconstruction: ReconstructionResult
  texture: TextureResult
  groups: dict[str, dict[str, GroupResult]]
  generation: GenerationResult | None = None
  labels: LabelsResult | None = None
  memorisation: MemorisationResult | None = None
  choice: Choice | None = None
  judge: str | None = None


def from_json(tree: Any) -> Evaluation:
  """Turns JSON values into an evaluation.

  Raises:
    ValueError: a field is missing, unknown or of the wrong type.
  """
  if not isinstance(tree, dict):
    raise ValueError(f'{tree!r} is not an object')
  try:
    return dacite.from_dict(Evaluation, tree, dacite.Config(strict=True))
  except dacite.DaciteError as e:
    raise ValueError(errors.one_line(e)) from e


def read(path: epath.PathLike) -> Evaluation:
  """Reads a file that holds the result of `as_json`.

  Raises:
    UserError: the file is damaged, or an earlier version wrote it.
  """
  path = epath.Path(path)
  try:
    return from_json(json.loads(path.read_text()))
  except (ValueError, RecursionError) as e:
    split = path.stem.removeprefix('evaluate_')
    raise errors.UserError(
      f'{path} is damaged or from an earlier version ({_short(e)}); remove it, '
      f'or run dermvq evaluate --split={split} again'
    ) from e


def _short(error: Exception, length: int = 150) -> str:
  """One line of an error's text, which may quote half of the file."""
  text = errors.one_line(error)
  return text if len(text) <= length else f'{text[:length]}...'


def as_json(evaluation: Evaluation) -> str:
  """Returns an evaluation as the text that `read` reads."""
  return json.dumps(dataclasses.asdict(evaluation), indent=2) + '\n'
