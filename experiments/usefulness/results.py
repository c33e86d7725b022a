"""The results of all classifiers, and the table of conclusions."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from experiments import common
from experiments.usefulness import statistics

# Differences that the table reports: the first way minus the second.
_PAIRS = (
  ('oversampled', 'real'),
  ('real_and_synthetic', 'real'),
  ('real_and_synthetic', 'oversampled'),
  ('synthetic', 'real'),
  ('oversampled_and_synthetic', 'oversampled'),
)


def file_name(fold: str, way: str, seed: int) -> str:
  """Returns the name of a classifier's result in the folder of all results."""
  return f'{fold}/{way}_{seed}.json'


def result(
  class_names: Sequence[str],
  held_out: dict[str, np.ndarray],
  predicted: np.ndarray,
) -> dict[str, Any]:
  """Returns the content of a classifier's file.

  Args:
    class_names: names of the classes.
    held_out: `label` and `group` of the images, `[N]` each.
    predicted: labels of the classifier, int `[N]`.
  """
  return {
    'class_names': list(class_names),
    'label': held_out['label'].tolist(),
    'group': held_out['group'].tolist(),
    'predicted': predicted.tolist(),
  }


@dataclasses.dataclass(frozen=True)
class Results:
  """Predictions in all folds that are complete.

  Attributes:
    ways: names of the A ways of training.
    correct: whether predictions are right, bool `[A, S, N]`.
    labels: int `[N]`.
    groups: lesion of each image, `[N]`.
    folds: fold of each image, int `[N]`.
    class_names: names of the classes.
  """

  ways: Sequence[str]
  correct: np.ndarray
  labels: np.ndarray
  groups: Sequence[str]
  folds: np.ndarray
  class_names: Sequence[str]


def read(folder: epath.Path, ways: Sequence[str]) -> Results | None:
  """Reads all folds in which these ways were trained; None if there is none.

  Only seeds that all these folds have are read.
  """
  found: dict[str, dict[int, list[dict[str, Any]]]] = {}
  for fold in sorted(folder.iterdir()) if folder.exists() else ():
    for seed in range(len(list(fold.glob(f'{ways[0]}_*.json')))):
      paths = [folder / file_name(fold.name, way, seed) for way in ways]
      if all(path.exists() for path in paths):
        contents = [common.read_json(path) for path in paths]
        found.setdefault(fold.name, {})[seed] = contents
  if not found:
    return None
  seeds = set.intersection(*(set(by_seed) for by_seed in found.values()))
  firsts = [by_seed[min(seeds)][0] for by_seed in found.values()]
  labels = np.concatenate([first['label'] for first in firsts])
  predicted = np.concatenate(
    [
      [
        [by_seed[s][a]['predicted'] for s in sorted(seeds)]
        for a in range(len(ways))
      ]
      for by_seed in found.values()
    ],
    axis=-1,
  )
  return Results(
    ways,
    predicted == labels,
    labels,
    [group for first in firsts for group in first['group']],
    np.repeat(np.arange(len(firsts)), [len(f['label']) for f in firsts]),
    firsts[0]['class_names'],
  )


def table(results: Results) -> str:
  """Returns the results as Markdown, with conclusions."""
  correct, labels, names = results.correct, results.labels, results.class_names
  means = statistics.recalls(correct, labels, len(names))
  draws = statistics.bootstrap_recalls(
    correct, labels, results.groups, results.folds, len(names)
  )
  there = [c for c in range(len(names)) if np.any(labels == c)]
  balanced, balanced_draws = means[:, there].mean(1), draws[..., there].mean(-1)

  def rows() -> Iterator[Sequence[str]]:
    yield (
      'held-out images',
      len(labels),
      *(np.sum(labels == c) for c in there),
    )
    for a, way in enumerate(results.ways):
      yield (
        _in_words(way),
        statistics.estimate(balanced[a], balanced_draws[:, a]),
        *(statistics.estimate(means[a, c], draws[:, a, c]) for c in there),
      )

  header = ('trained on', 'balanced accuracy', *(names[c] for c in there))
  lines = [
    common.table(header, rows()),
    '',
    f'Recall, with 95% bootstrap intervals over {len(set(results.groups))} '
    f'lesions and {correct.shape[1]} seed(s) of the classifier, in '
    f'{len(set(results.folds))} fold(s) with one generator each. If all or '
    'none of the predictions are right, the interval has no width, even for a '
    'few images. Balanced accuracy:',
    '',
  ]
  for name, against in _PAIRS:
    if {name, against} <= set(results.ways):
      a, b = results.ways.index(name), results.ways.index(against)
      difference = statistics.estimate(
        balanced[a] - balanced[b], balanced_draws[:, a] - balanced_draws[:, b]
      )
      conclusion = statistics.conclude(
        _in_words(name), _in_words(against), difference, correct.shape[1]
      )
      lines.append(f'- {conclusion}')
  return '\n'.join(lines)


def _in_words(way: str) -> str:
  return way.replace('_', ' ')
