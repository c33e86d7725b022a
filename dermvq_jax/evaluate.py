"""How good a trained prior is: its likelihood, and the classifier in it."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dermvq_jax import encode, inference
from dermvq_jax.data import prepared

_CHANNELS = 3


def _mean(values: np.ndarray) -> float | None:
  """None if there are none; JSON knows no nan."""
  return float(np.mean(values)) if len(values) else None


def measure(
  likelihoods: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str],
  num_codes: int,
  num_values: int,
) -> dict[str, Any]:
  """What a split's likelihoods say, as JSON values.

  Args:
    likelihoods: log p(codes | class) in nats, `[N, C]`.
    labels: int `[N]`, the true classes.
    class_names: of the C classes.
    num_codes: of an image, h * w.
    num_values: of an image, H * W * 3.

  Returns:
    Of the split: `num_images`, `nll_nats` of an image given its class (mean),
    `bits_per_code`, `bits_per_dim` (the same bits over the image's values),
    `accuracy` and `balanced_accuracy` (mean recall of the classes that occur)
    of the most probable class with a uniform class prior, `confusion` (images,
    `[true][predicted]`); `classes`: the same of each class, with its `recall`.
  """
  number = len(class_names)
  nll = -likelihoods[np.arange(len(labels)), labels]
  uniform = np.full(number, 1 / number)
  predicted = inference.posterior(likelihoods, uniform).argmax(axis=1)
  confusion = np.zeros((number, number), int)
  np.add.at(confusion, (labels, predicted), 1)

  def likelihood(chosen: np.ndarray) -> dict[str, Any]:
    nats = _mean(nll[chosen])
    bits = None if nats is None else nats / np.log(2)
    return {
      'num_images': int(chosen.sum()),
      'nll_nats': nats,
      'bits_per_code': None if bits is None else bits / num_codes,
      'bits_per_dim': None if bits is None else bits / num_values,
    }

  classes = {}
  for label, name in enumerate(class_names):
    chosen = labels == label
    recall = _mean(predicted[chosen] == label)
    classes[name] = likelihood(chosen) | {'recall': recall}
  recalls = [c['recall'] for c in classes.values() if c['recall'] is not None]
  return likelihood(np.ones(len(labels), bool)) | {
    'accuracy': _mean(predicted == labels),
    'balanced_accuracy': _mean(recalls),
    'classes': classes,
    'confusion': confusion.tolist(),
  }


_COLUMNS = ('images', 'bits/code', 'bits/dim', 'recall')


def _table(result: dict[str, Any]) -> str:
  """The result as lines of text."""
  rows = [*result['classes'].items()]
  rows.append(('all', result | {'recall': result['accuracy']}))
  width = max(len(name) for name, _ in rows)
  lines = [' ' * width + ''.join(f'{name:>11}' for name in _COLUMNS)]
  for name, row in rows:
    numbers = (row['bits_per_code'], row['bits_per_dim'], row['recall'])
    cells = [f'{row["num_images"]:11d}']
    cells += [f'{"-" if n is None else format(n, ".4f"):>11}' for n in numbers]
    lines.append(f'{name:<{width}}' + ''.join(cells))
  return '\n'.join(lines)


def run(
  workdir: epath.PathLike, split: str = 'val', data_dir: str = ''
) -> dict[str, Any]:
  """Evaluates the prior; prints a table and writes it to `workdir/report`.

  Args:
    workdir: with trained VQ-VAE and prior.
    split: 'train', 'val' or 'test' of the codes the prior was trained on.
    data_dir: where they are, if not where the run found them.

  Returns:
    What `measure` gives, with `split` and `dataset`: the content of
    `report/evaluate_<split>.json`.

  Raises:
    UserError: not trained, or the codes are not in `data_dir`.
  """
  workdir = epath.Path(workdir).expanduser()
  model = inference.load(workdir)
  model.check_prior()
  dataset, found_in = encode.resolve_dataset(
    model.config.prior, workdir, data_dir
  )
  source = prepared.open_split(dataset, found_in, split)
  records = [source[i] for i in range(len(source))]
  codes = np.stack([record['codes'] for record in records])
  result = {'split': split, 'dataset': dataset} | measure(
    model.class_log_likelihoods(codes, show_progress=True),
    np.array([record['label'] for record in records]),
    model.class_names,
    num_codes=codes[0].size,
    num_values=model.image_size**2 * _CHANNELS,
  )
  logging.info('%s', _table(result))
  logging.info(
    "Classes by Bayes' rule, each as likely before: accuracy %.4f, balanced "
    '%.4f',
    result['accuracy'],
    result['balanced_accuracy'],
  )
  path = workdir / 'report' / f'evaluate_{split}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=2) + '\n')
  logging.info('Wrote %s', path)
  return result
