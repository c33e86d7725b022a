r"""Judges reconstructions and samples by networks that no loss has used.

```
python -m experiments.sharpness --runs BASELINE RUN ... --judge=JUDGE \
  --vgg16=vgg16.npz --out=STUDY
```

Squared error hardly sees whether fine texture is there. This study measures, on
the held-out images (val and test) of each run:

- power: the power of reconstructions and samples over that of real images, in
  the two finest octaves of frequency;
- KID x 1000 in two spaces: the last two stages of VGG16, trained on photographs
  (experiments/lpips_weights.py makes the file), and the classifier in JUDGE, a
  workdir with `dermvq train --config=classifier --config.seed=7` on the same
  images. Reconstructions of val are compared with the real images of test, and
  the other way round. The share is that of the first run's KID. A run that was
  trained with VGG16 (`config.perceptual_weights`) needs another judge: with
  --alexnet the last two stages of AlexNet, which comes with the package, are a
  space too;
- evidence: the balanced accuracy of the classifier in JUDGE on reconstructions
  and on samples, divided by that on the real images. A classifier of another
  size (`--config.dataset=ham10000/256`) sees all of them resized to it.

Results are kept in STUDY; a run that is measured there is not measured again.
Runs without a prior are judged by their reconstructions. Without --judge there
is no evidence, without --vgg16 no KID in VGG16.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from dermvq_jax import errors, inference
from dermvq_jax.data import images as images_lib
from dermvq_jax.evaluation import (
  feature_spaces,
  generation_metrics,
  measures,
)
from dermvq_jax.inference import classifier as classifier_lib
from dermvq_jax.models import build, chunks, perceptual
from dermvq_jax.runs import run as run_lib
from experiments import common

HELD_OUT = ('val', 'test')
_STAGES = 2  # of a network, from the last


class Stages:
  """A network's last stages, averaged over the image: a space of features."""

  def __init__(self, path: epath.PathLike):
    """Reads the weights."""
    network = perceptual.load(path)
    arrays = jax.device_put((network.convs, network.heads))

    @jax.jit
    def apply(arrays, images):
      network_ = perceptual.Network(network.name, *arrays)
      found = perceptual.features(network_, build.to_unit(images))
      pooled = [x.mean((1, 2)) for x in found[-_STAGES:]]
      return jax.numpy.concatenate(pooled, -1)

    self._apply = functools.partial(apply, arrays)

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """Returns features float32 `[B, F]` of uint8 images `[B, H, W, 3]`."""
    return chunks.apply(self._apply, images)


class Judge:
  """A classifier that sees images of any size, resized to its own.

  Calling it returns features.

  Attributes:
    class_names: names of the labels 0, 1, ...
  """

  def __init__(self, run: run_lib.Run):
    """Loads the classifier of a run."""
    self._classifier = classifier_lib.Classifier(run)
    self._size = run.classifier.facts['image_size']
    self.class_names = self._classifier.class_names

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """Returns features float32 `[B, F]` of uint8 images `[B, H, W, 3]`."""
    return self._classifier(self._resize(images))

  def predict(self, images: np.ndarray) -> np.ndarray:
    """Returns the most likely labels, int `[B]`, of such images."""
    return self._classifier.predict(self._resize(images))

  def _resize(self, images: np.ndarray) -> np.ndarray:
    if images.shape[1] == self._size:
      return images
    opened = map(Image.fromarray, images)
    return np.stack([images_lib.crop_and_resize(x, self._size) for x in opened])


def _power(real: np.ndarray, made: np.ndarray) -> list[float]:
  return measures.measure_texture(real, {'made': made}).power['made']


def _evidence(
  judge: Judge | None,
  images: np.ndarray,
  labels: np.ndarray,
) -> dict[str, float]:
  if judge is None:
    return {}
  predicted = judge.predict(images)
  number = len(judge.class_names)
  found = generation_metrics.balanced_accuracy(predicted, labels, number)
  return {'evidence': found[0]}


def measure(
  run: run_lib.Run,
  judge: Judge | None,
  spaces: dict[str, feature_spaces.Features],
  controls: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
  """Measures one run.

  Args:
    run: a run with a trained VQ-VAE, and perhaps a prior.
    judge: a classifier that the run did not use; without one there is no
      evidence.
    spaces: the spaces of the KID, by name.
    controls: how to sample, by name; each makes a set of samples.

  Returns:
    JSON values by name.

  Raises:
    UserError: the judge knows other classes than the run.
  """
  model = inference.Model(run)
  if judge and judge.class_names != model.class_names:
    raise errors.UserError(
      f'the judge knows the classes {", ".join(judge.class_names)}, the run in '
      f'{run.workdir} has {", ".join(model.class_names)}; train a judge on its '
      'classes'
    )
  records = {s: list(run.images.split(s)) for s in HELD_OUT}
  real = {s: np.stack([r['image'] for r in records[s]]) for s in HELD_OUT}
  labels = {s: np.array([r['label'] for r in records[s]]) for s in HELD_OUT}
  every_label = np.concatenate(list(labels.values()))
  every_real = np.concatenate(list(real.values()))
  made = {s: model.reconstruct(real[s]) for s in HELD_OUT}
  every_made = np.concatenate(list(made.values()))
  codes = np.concatenate([model.encode(x) for x in real.values()])
  error = np.mean(np.square(every_made / 255.0 - every_real / 255.0))
  result = {
    'codes': int(np.prod(model.grid)),
    'usage': len(np.unique(codes)) / model.codebook_size,
    'psnr': float(-10 * np.log10(error)),
    'real': _evidence(judge, every_real, every_label),
    'reconstructions': {
      'power': _power(every_real, every_made),
      **_evidence(judge, every_made, every_label),
    },
  }
  features = {
    name: {
      s: feature_spaces.extract(space, real[s], f'{s}: {name}')
      for s in HELD_OUT
    }
    for name, space in spaces.items()
  }
  val, test = HELD_OUT
  for name, space in spaces.items():
    of_real = features[name]
    result['real'][name] = generation_metrics.kid(of_real[val], of_real[test])
    kids = [
      generation_metrics.kid(
        of_real[other], feature_spaces.extract(space, made[s], name)
      )
      for s, other in ((val, test), (test, val))
    ]
    # The standard errors are about equal, and the sets are independent.
    mean, error = np.mean(kids, 0)
    result['reconstructions'][name] = [mean, error / np.sqrt(2)]
  if not run.prior.has_weights:
    return result
  for key, chosen in controls.items():
    samples = model.sample(every_label, seed=1, show_progress=True, **chosen)
    result[key] = {
      'power': _power(every_real, samples),
      **_evidence(judge, samples, every_label),
    }
    for name, space in spaces.items():
      of_real = np.concatenate(list(features[name].values()))
      result[key][name] = generation_metrics.kid(
        of_real, feature_spaces.extract(space, samples, name)
      )
  return result


def table(found: dict[str, dict[str, Any]]) -> str:
  """Returns the results of all runs as a Markdown table.

  Args:
    found: the results of `measure` by the name of the run, the baseline first.
  """
  baseline, *_ = found.values()
  spaces = [k for k in baseline['real'] if k != 'evidence']
  header = ['run', 'images', 'power 1/4-1/2', '1/8-1/4']
  header += [f'KID {s} x 1000 (share)' for s in spaces]
  if 'evidence' in baseline['real']:
    header.append('evidence')
  rows = []
  for run, result in found.items():
    for name, row in result.items():
      if not isinstance(row, dict) or (name == 'real' and result != baseline):
        continue
      cells = [run if name != 'real' else 'real images', name]
      cells += [f'{x:.2f}' for x in row.get('power', (1, 1))[:2]]
      for space in spaces:
        kid, error = row[space]
        share = kid / baseline.get(name, row)[space][0]
        cells.append(f'{1000 * kid:.2f} ± {1000 * error:.2f} ({share:.2f})')
      if 'evidence' in row:
        cells.append(f'{row["evidence"] / result["real"]["evidence"]:.2f}')
      rows.append(cells)
  head = common.table(
    ['run', 'codes', 'usage', 'PSNR'],
    [
      [name, r['codes'], f'{r["usage"]:.2f}', f'{r["psnr"]:.2f}']
      for name, r in found.items()
    ],
  )
  return f'{head}\n\n{common.table(header, rows)}'


def _controls(text: str) -> dict[str, float]:
  """Reads 'guidance_scale=2,temperature=0.9'."""
  return {k: float(v) for k, v in (x.split('=') for x in text.split(','))}


def _name(controls: Mapping[str, float]) -> str:
  return ', '.join(['samples', *(f'{k} {v:g}' for k, v in controls.items())])


def main(argv: list[str] | None = None):
  """Measures runs and prints the tables."""
  parser = common.parser(__doc__, 'python -m experiments.sharpness')
  parser.add_argument('--runs', nargs='+', required=True, metavar='RUN')
  parser.add_argument('--judge', help='workdir of a classifier')
  parser.add_argument('--vgg16', type=epath.Path, help='.npz file of VGG16')
  parser.add_argument(
    '--alexnet', action='store_true', help='measure in AlexNet too'
  )
  parser.add_argument('--out', type=epath.Path, required=True)
  parser.add_argument(
    '--controls',
    type=_controls,
    nargs='*',
    default=[{'guidance_scale': 2.0}],
    metavar='NAME=VALUE,...',
    help='how samples are drawn besides plainly: guidance_scale=2 and others',
  )
  args = parser.parse_args(argv)
  common.setup()
  with common.usage_errors(parser):
    judge, spaces = None, {}
    if args.judge:
      judge = Judge(run_lib.Run(args.judge))
      spaces['judge'] = judge
    if args.vgg16:
      spaces['VGG16'] = Stages(args.vgg16)
    if args.alexnet:
      spaces['AlexNet'] = Stages(perceptual.ALEXNET)
    names = {epath.Path(path).name: path for path in args.runs}
    jobs = {
      f'{name}.json': functools.partial(
        measure,
        run_lib.Run(path),
        judge,
        spaces,
        {_name(chosen): chosen for chosen in ({}, *args.controls)},
      )
      for name, path in names.items()
    }
    common.run_missing(args.out, jobs)
  found = {n: common.read_json(args.out / f'{n}.json') for n in names}
  print(table(found))


if __name__ == '__main__':
  main()
