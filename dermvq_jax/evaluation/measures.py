"""Measures the prior, the reconstructions and the labels of images."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from dermvq_jax.evaluation import generation_metrics, results
from dermvq_jax.inference import classifier as classifier_lib
from dermvq_jax.models import (
  bayes,
  build,
  chunks,
  image_losses,
  perceptual,
  spectrum,
)

# Images uint8 `[N, H, W, 3]` and their labels int `[N]`.
LabelledImages = tuple[np.ndarray, np.ndarray]


def _mean(values: np.ndarray) -> float | None:
  """The mean; None if there are no values (JSON has no NaN)."""
  return float(np.mean(values)) if len(values) else None


def ratio(part: float, whole: float) -> float | None:
  """Returns part / whole, or None if `whole` is not positive."""
  return float(part / whole) if whole > 0 else None


def _confusion(
  labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> results.Confusion:
  counts = np.zeros((num_classes, num_classes), int)
  np.add.at(counts, (labels, predicted), 1)
  return counts.tolist()


def measure_prior(
  likelihoods: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str],
  *,
  dataset: str,
  num_codes: int,
  num_values: int,
) -> results.PriorResult:
  """Summarises the likelihoods of a split's codes.

  Args:
    likelihoods: log p(codes | class) in nats, `[N, C]`.
    labels: int `[N]`, the true classes.
    class_names: the names of the C classes.
    dataset: the name of the dataset of codes.
    num_codes: number of codes of an image, h * w.
    num_values: number of values of an image, H * W * 3.
  """
  number = len(class_names)
  nll = -likelihoods[np.arange(len(labels)), labels]
  uniform = np.full(number, 1 / number)
  predicted = bayes.posterior(likelihoods, uniform).argmax(axis=1)

  def lengths(chosen: np.ndarray) -> dict[str, float | None]:
    nats = _mean(nll[chosen])
    bits = None if nats is None else nats / np.log(2)
    return {
      'num_images': int(chosen.sum()),
      'nll_nats': nats,
      'bits_per_code': None if bits is None else float(bits / num_codes),
      'bits_per_dim': None if bits is None else float(bits / num_values),
    }

  classes = {}
  for label, name in enumerate(class_names):
    chosen = labels == label
    recall = _mean(predicted[chosen] == label)
    classes[name] = results.ClassLikelihood(**lengths(chosen), recall=recall)
  recalls = [c.recall for c in classes.values() if c.recall is not None]
  return results.PriorResult(
    dataset=dataset,
    **lengths(np.ones(len(labels), bool)),
    accuracy=_mean(predicted == labels),
    balanced_accuracy=_mean(recalls),
    classes=classes,
    confusion=_confusion(labels, predicted, number),
  )


def independent_codes(
  codes: np.ndarray, number: int, rng: np.random.Generator
) -> np.ndarray:
  """Samples each code from the training frequencies of its position alone.

  Args:
    codes: int `[N, h, w]`, the codes of the training images.
    number: number of grids to sample, B.
    rng: the source of randomness.

  Returns:
    int `[B, h, w]`; what a prior must beat.
  """
  chosen = rng.integers(len(codes), size=(number, *codes.shape[1:]))
  return np.take_along_axis(codes, chosen, axis=0)


def measure_reconstruction(
  originals: np.ndarray, reconstructions: np.ndarray, train_variance: float
) -> results.ReconstructionResult:
  """Measures the errors and SSIM of reconstructions.

  Args:
    originals: uint8 `[N, H, W, 3]`.
    reconstructions: uint8 `[N, H, W, 3]`.
    train_variance: the variance of the training images, in units of [0, 1].
  """
  mse = np.mean(
    [
      np.square(a / 255.0 - b / 255.0).mean()
      for a, b in zip(originals, reconstructions)
    ]
  )
  ssim = chunks.apply(
    jax.jit(lambda a, b: image_losses.ssim(a / 255.0, b / 255.0)),
    originals,
    reconstructions,
  )
  lpips = None
  if originals.shape[1] >= perceptual.MIN_SIZE:
    of_images = chunks.apply(
      jax.jit(
        lambda a, b: image_losses.lpips(build.to_unit(a), build.to_unit(b))
      ),
      originals,
      reconstructions,
    )
    lpips = float(of_images.mean())
  return results.ReconstructionResult(
    num_images=len(reconstructions),
    mse=float(mse),
    nmse=float(mse / train_variance),
    psnr=float(-10 * np.log10(max(mse, 1e-10))),
    ssim=float(ssim.mean()),
    lpips=lpips,
  )


def measure_texture(
  real: np.ndarray, sets: Mapping[str, np.ndarray]
) -> results.TextureResult:
  """Compares the power of sets of images with that of real ones, by octaves.

  Args:
    real: uint8 `[N, H, W, 3]`.
    sets: name of a set to its images, uint8 `[M, H, W, 3]`.
  """
  measure = jax.jit(lambda x: spectrum.octave_powers(build.to_unit(x)))

  def power(images: np.ndarray) -> np.ndarray:
    return chunks.apply(measure, images).mean(0)

  # Images of one colour have no power.
  of_real = np.maximum(power(real), np.finfo(np.float32).tiny)
  return results.TextureResult(
    octaves=spectrum.octave_names(),
    power={
      name: (power(images) / of_real).tolist() for name, images in sets.items()
    },
  )


def _measure_set(
  classifier: classifier_lib.Classifier, images: np.ndarray, labels: np.ndarray
) -> results.SetLabels:
  number = len(classifier.class_names)
  predicted = classifier.predict(images)
  accuracy, error = generation_metrics.balanced_accuracy(
    predicted, labels, number
  )
  return results.SetLabels(
    num_images=len(images),
    balanced_accuracy=accuracy,
    standard_error=error,
    recalls={
      name: _mean(predicted[labels == label] == label)
      for label, name in enumerate(classifier.class_names)
    },
    confusion=_confusion(labels, predicted, number),
  )


def measure_labels(
  classifier: classifier_lib.Classifier,
  *,
  real: LabelledImages,
  reconstructions: LabelledImages,
  samples: LabelledImages,
) -> results.LabelsResult:
  """Measures how often the classifier sees the class that an image should have.

  Args:
    classifier: trained on real images.
    real: real images and their labels.
    reconstructions: their reconstructions and the same labels.
    samples: samples and the labels that they were asked for.
  """
  of_real = _measure_set(classifier, *real)
  of_samples = _measure_set(classifier, *samples)
  # Only classes that both have, so that both means are over the same classes.
  pairs = [
    (recall, of_samples.recalls[name])
    for name, recall in of_real.recalls.items()
    if None not in (recall, of_samples.recalls[name])
  ]
  return results.LabelsResult(
    real=of_real,
    reconstructions=_measure_set(classifier, *reconstructions),
    samples=of_samples,
    samples_over_real=ratio(
      sum(sample for _, sample in pairs), sum(real for real, _ in pairs)
    ),
  )
