"""A trained run as an object: `dermvq_jax.load(workdir)`."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from dermvq_jax import errors, progress
from dermvq_jax.data import conditions as conditions_lib
from dermvq_jax.inference import (
  choosing,
  classification,
  conversion,
  trained_prior,
  vqvae,
)
from dermvq_jax.models import arguments, bayes, chunks
from dermvq_jax.models.priors import randomness, sampler
from dermvq_jax.outliers import reference, scoring
from dermvq_jax.runs import run as run_lib
from dermvq_jax.training import compile_cache

Labels = Sequence[str | int]
Images = conversion.Images
Given = conditions_lib.Given


def load(workdir: epath.PathLike) -> 'Model':
  """Loads the run, or export, in `workdir`; the prior may still be missing.

  An export needs neither TensorFlow nor Orbax: see `dermvq export`. 'demo' and
  hf://OWNER/NAME are exports, see `runs.run.find`. Programs that JAX compiles
  from now on are kept on disk, see `training.compile_cache`.

  Raises:
    UserError: there is no trained VQ-VAE, or the prior was trained on the codes
      of another VQ-VAE.
  """
  compile_cache.enable()
  return Model(run_lib.find(workdir))


class Model(vqvae.Vqvae):
  """VQ-VAE and prior of one run, with their best weights.

  Any number of images may be given: they are processed in chunks.
  """

  def __init__(self, run: run_lib.Run):
    """Loads the weights; raises the errors of `load`."""
    super().__init__(run)
    if run.prior.started:
      self.config.prior = run.prior.config
      run.check_codes()
      found = tuple(run.prior.facts.get('grid', ()))
      if found != self.grid:
        raise errors.UserError(
          f'the prior in {run.prior.folder} has codes of {list(found)}, but '
          f'the VQ-VAE has codes of {list(self.grid)}; restore both from a copy'
        )

  @functools.cached_property
  def _prior(self) -> trained_prior.TrainedPrior:
    return trained_prior.load(self.run)

  def check_prior(self):
    """Raises UserError unless the run has a trained prior."""
    _ = self._prior

  @functools.cached_property
  def conditions(self) -> dict[str, list[str]]:
    """The conditions that the prior knows, and the names of their values.

    The label is not among them: `class_names` has its values.
    """
    self.check_prior()
    values = self.run.prior.facts['conditions']
    return {k: values[k] for k in self.config.prior.conditions if k != 'label'}

  def condition_values(
    self, given: Mapping[str, Given], count: int = 1
  ) -> dict[str, np.ndarray]:
    """Converts values of conditions to numbers, int32 `[count]` each.

    Args:
      given: see `conditions.numbers`; the others are not known.
      count: the number of images.

    Raises:
      UserError: no trained prior, the prior knows no such condition or value,
        or a wrong number of values.
    """
    known = self.conditions
    in_data = self.run.prior.facts['conditions']
    return conditions_lib.numbers(given, known, count, in_data)

  def labels(self, labels: Labels) -> np.ndarray:
    """Converts class names or numbers to numbers, int32 `[B]`.

    Raises:
      UserError: no such class.
    """
    return arguments.check_labels(labels, self.class_names)

  def _labels_of(self, items: np.ndarray, labels: Labels) -> np.ndarray:
    """Returns a label for each item, int32 `[B]`; one label is that of all."""
    labels = self.labels(labels)
    if len(labels) not in (1, len(items)):
      raise errors.UserError(f'{len(items)} images but {len(labels)} labels')
    return np.broadcast_to(labels, (len(items),))

  def log_likelihood(
    self, codes: np.ndarray, labels: Labels, **conditions: Given
  ) -> np.ndarray:
    """Returns log p(codes | label, conditions), nats `[B]`; as `predict`."""
    return self.predict(codes, labels, **conditions)[1]

  def predict(
    self, codes: np.ndarray, labels: Labels, **conditions: Given
  ) -> tuple[np.ndarray, np.ndarray]:
    """Replaces each code by the prior's most likely one given those before it.

    Args:
      codes: int32 `[B, h, w]`.
      labels: class names or numbers, `[B]`.
      **conditions: what else is known, see `condition_values`.

    Returns:
      The predicted codes int32 `[B, h, w]` and the log-likelihood of the given
      ones, nats `[B]`.

    Raises:
      UserError: no trained prior, an unknown class, condition or value, codes
        outside [0, K), or not as many labels as grids.
    """
    predicted, log_probs = self._predict(codes, labels, conditions)
    return predicted, log_probs.sum((1, 2))

  def code_log_probs(
    self, codes: np.ndarray, labels: Labels, **conditions: Given
  ) -> np.ndarray:
    """Returns log p(code | codes before it, label, ...), nats `[B, h, w]`."""
    return self._predict(codes, labels, conditions)[1]

  def _predict(
    self, codes: np.ndarray, labels: Labels, given: Mapping[str, Given]
  ) -> tuple[np.ndarray, np.ndarray]:
    codes = self._check_codes(codes)
    conditions = self.condition_values(given, len(codes))
    conditions['label'] = self._labels_of(codes, labels)
    return chunks.apply(self._prior.score, codes, conditions)

  def class_log_likelihoods(
    self,
    codes: np.ndarray,
    *,
    show_progress: bool = False,
    **conditions: Given,
  ) -> np.ndarray:
    """Returns log p(codes | class, conditions), nats float32 `[B, C]`.

    Args:
      codes: int32 `[B, h, w]`.
      show_progress: whether to show a progress bar.
      **conditions: what else is known, see `condition_values`.

    Raises:
      UserError: no trained prior, codes outside [0, K), or no such condition.
    """
    codes, columns = self._check_codes(codes), []
    with progress.bar(
      total=len(codes) * len(self.class_names),
      desc='likelihood',
      unit='image',
      disable=not show_progress,
    ) as bar:
      for label in range(len(self.class_names)):
        columns.append(self.log_likelihood(codes, [label], **conditions))
        bar.update(len(codes))
    return np.stack(columns, axis=1)

  def classify(
    self,
    images: Images,
    *,
    class_prior: Sequence[float] | None = None,
    **conditions: Given,
  ) -> classification.Classification:
    """Computes probabilities of the classes by Bayes' rule.

    Args:
      images: B images, see `preprocess`.
      class_prior: probability of each class before the image is seen, `[C]`,
        up to a factor (counts, for example); uniform by default. With
        conditions it should be that of such images.
      **conditions: what else is known, see `condition_values`.

    Returns:
      p(class | codes of the image, conditions): a table when printed, with the
      numbers in its attributes.

    Raises:
      UserError: wrong images, no trained prior, a wrong class prior, or an
        unknown condition or value.
    """
    class_prior = self.check_class_prior(class_prior)
    codes = self.encode(images)
    by_class = self.class_log_likelihoods(codes, **conditions)
    log_probs = bayes.posterior(by_class, class_prior)
    return classification.Classification(log_probs, self.class_names)

  def check_class_prior(
    self, class_prior: Sequence[float] | None
  ) -> np.ndarray:
    """Returns probabilities of the classes, float64 `[C]`; None: uniform.

    Raises:
      UserError: not one finite number of at least 0 per class, or all are 0.
    """
    return arguments.check_class_prior(class_prior, len(self.class_names))

  @property
  def knows_null_label(self) -> bool:
    """Whether the prior was trained without its label now and then."""
    return bool(self.config.prior.conditions['label'])

  @functools.cached_property
  def calibration(self) -> reference.Calibration:
    """What the run's own images look like; see `outliers.reference`."""
    self.check_prior()
    return reference.load(self.run, self)

  def score(
    self, images: Images, label: str | int | Labels | None = None
  ) -> scoring.Scores:
    """Says how unlike the run's held-out images other images are, and where.

    The first call measures the run's own images, which takes a minute, and
    stores the result in the workdir; later ones need no data.

    Args:
      images: B images, see `preprocess`.
      label: the class of all images, or of each of them; None: not known.

    Raises:
      UserError: wrong images or labels, no prior, or no data for a first call.
    """
    images = self.preprocess(images)
    labels = None if label is None else self._labels_of(images, label)
    return scoring.score(self, self.calibration, images, labels)

  def sample_codes(
    self,
    labels: Labels | Mapping[str | int, int],
    count: int = 1,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance_scale: float = 1.0,
    guidance_rise: float = 0.0,
    autoguidance_scale: float = 1.0,
    choose: int = 1,
    choose_by: str = 'classifier',
    known_codes: np.ndarray | None = None,
    known_mask: np.ndarray | None = None,
    ids: Sequence[int] | None = None,
    show_progress: bool = False,
    **conditions: Given,
  ) -> np.ndarray:
    """Samples new codes, int32 `[B, h, w]`.

    Args:
      labels: class names or numbers; or the number of images of each, such as
        `{'mel': 4}`.
      count: number of images of each label, one after the other.
      seed: from 0 to 2**32 - 1; an image depends only on seed, label,
        conditions, id and its known codes, not on the other images.
      temperature: divides the log-probabilities; 0 takes the most likely code.
      top_k: samples only from the k most likely codes; 0: from all codes.
      top_p: samples only from the smallest set of codes whose probabilities sum
        to this; 1: off.
      guidance_scale: above 1 exaggerates what distinguishes the class and
        the conditions that are given; 1: off.
      guidance_rise: what the guidance scale gains from the first code to the
        last; 0: off.
      autoguidance_scale: above 1 exaggerates what sets the prior apart from
        its weak prior, so images are more plausible; 1: off.
      choose: number of candidates for each image, of which the best is taken;
        1: off. Those of image n have the ids n * choose, n * choose + 1, ...
      choose_by: 'classifier': the best is what the run's classifier finds most
        of its class; 'likelihood': what has the most likely codes.
      known_codes: int `[B, h, w]`, codes to complete; they stay as they are.
      known_mask: bool `[B, h, w]`, which of them are known. Each other code is
        sampled given all codes before it in raster order, and none after it.
      ids: the number of each image within its label; by default from 0.
      show_progress: whether to show a progress bar.
      **conditions: what else the images show, see `condition_values`; for
        example `age=60, sex='female'`.

    Raises:
      UserError: no trained prior, an unknown class, condition or value, a wrong
        count, seed or id, a control out of its range (`sampler.Controls`) or
        that this prior cannot follow (`TrainedPrior.check`), known codes that
        do not fit, or no classifier to choose by.
    """
    guidance = guidance_scale, guidance_rise, autoguidance_scale
    controls = sampler.Controls(temperature, top_k, top_p, *guidance)
    choosing.check(choose, choose_by)
    labels = arguments.requested(labels, count, self.class_names)
    prior = self._prior
    prior.check(controls)
    given = self.condition_values(conditions, len(labels))

    def draw(ids: Sequence[int] | None) -> np.ndarray:
      return sampler.sample_in_batches(
        prior.model,
        prior.variables,
        {'label': labels, **given},
        randomness.image_keys(seed, labels, ids),
        self.grid,
        controls,
        known_codes=known_codes,
        known_mask=known_mask,
        loss=prior.loss,
        chunk_size=chunks.size_for(len(labels)),
        show_progress=show_progress,
      )

    if choose == 1:
      return draw(ids)
    score = choosing.scorer(self, choose_by, labels, conditions)
    ids = randomness.count_within_labels(labels) if ids is None else ids
    return choosing.best(draw, score, ids, choose)[0]

  def sample(
    self,
    labels: Labels | Mapping[str | int, int],
    count: int = 1,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance_scale: float = 1.0,
    guidance_rise: float = 0.0,
    autoguidance_scale: float = 1.0,
    choose: int = 1,
    choose_by: str = 'classifier',
    known_codes: np.ndarray | None = None,
    known_mask: np.ndarray | None = None,
    ids: Sequence[int] | None = None,
    output: conversion.Output = 'array',
    show_progress: bool = False,
    **conditions: Given,
  ) -> np.ndarray:
    """Samples new images; for the arguments see `sample_codes` and `decode`.

    `sample('mel', 4)`, `sample(['mel', 'nv'], 2)` and `sample({'mel': 2,
    'nv': 2})` all sample four.
    """
    conversion.check_output(output)
    codes = self.sample_codes(
      labels,
      count,
      seed=seed,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      guidance_scale=guidance_scale,
      guidance_rise=guidance_rise,
      autoguidance_scale=autoguidance_scale,
      choose=choose,
      choose_by=choose_by,
      known_codes=known_codes,
      known_mask=known_mask,
      ids=ids,
      show_progress=show_progress,
      **conditions,
    )
    return self.decode(codes, output=output)

  def complete(
    self,
    image: Images,
    mask: Any,
    count: int = 1,
    *,
    label: str | int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance_scale: float = 1.0,
    guidance_rise: float = 0.0,
    autoguidance_scale: float = 1.0,
    output: conversion.Output = 'array',
    show_progress: bool = False,
    **conditions: Given,
  ) -> np.ndarray:
    """Samples what a hidden part of an image may look like.

    Args:
      image: one image.
      mask: the hidden part, see `hide`, as is the image.
      count: number of completions.
      label: the class of the image; None: not known.
      seed: as in `sample_codes`, as are the next six arguments.
      temperature: as there.
      top_k: as there.
      top_p: as there.
      guidance_scale: as there.
      guidance_rise: as there.
      autoguidance_scale: as there.
      output: 'array' or 'pil', see `decode`.
      show_progress: whether to show a progress bar.
      **conditions: as there.

    Raises:
      UserError: the image or the mask is wrong, see `hide`; the label is not
        known, but the prior always was given it; or as in `sample_codes`.
    """
    self.check_prior()
    if label is None and not self.knows_null_label:
      raise errors.UserError(
        'the prior was always told the class; give label=CLASS'
      )
    label = len(self.class_names) if label is None else label
    labels = arguments.requested([label], count, self.class_names)
    return self.sample(
      labels,
      seed=seed,
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      guidance_scale=guidance_scale,
      guidance_rise=guidance_rise,
      autoguidance_scale=autoguidance_scale,
      output=output,
      show_progress=show_progress,
      **self.hide(image, mask).repeat(len(labels)),
      **conditions,
    )
