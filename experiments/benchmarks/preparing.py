"""Speed and memory of `dermvq prepare`, by the number of processes and images.

```
python -m experiments.benchmarks.preparing --rounds=3
```

It makes 2,000 JPEG files of 1024x768 pixels and prepares them at 128 px. For
20,000 records each file has ten names. Rounds as in the other benchmarks;
`--cores` limits the cores of all processes.
"""

import pathlib
import resource
import tempfile
import time

import numpy as np
from PIL import Image

from dermvq_jax.data import prepare
from experiments import common
from experiments.benchmarks import harness

_NUM_FILES, _WIDTH, _HEIGHT = 2_000, 1024, 768
_DATASET = 'image_folder/128'
# Images and processes.
_CASES = ((2_000, 1), (2_000, 2), (20_000, 2))


def _make_files(folder: pathlib.Path):
  """Makes smooth images with some noise, in two classes."""
  rng = np.random.default_rng(0)
  for i in range(_NUM_FILES):
    path = folder / 'ab'[i % 2] / f'{i}.jpg'
    if path.exists():
      continue
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = rng.integers(60, 220, (6, 8, 3), np.uint8)
    image = Image.fromarray(corners).resize(
      (_WIDTH, _HEIGHT), Image.Resampling.BICUBIC
    )
    noise = rng.integers(-8, 9, (_HEIGHT, _WIDTH, 1), np.int16)
    pixels = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
    part = path.with_suffix('.part')
    Image.fromarray(pixels).save(part, 'JPEG', quality=90)
    part.rename(path)


def _link_files(folder: pathlib.Path, copies: int) -> pathlib.Path:
  """Returns a folder in which each file has `copies` names."""
  if copies == 1:
    return folder
  linked = folder.with_name(f'{folder.name}_{copies}')
  for file in folder.glob('*/*.jpg'):
    for i in range(copies):
      path = linked / file.parent.name / f'{file.stem}_{i}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      if not path.exists():
        path.hardlink_to(file)
  return linked


def _measure(case: harness.Case, folder: pathlib.Path) -> dict[str, float]:
  count, workers = case
  images = _link_files(folder, count // _NUM_FILES)
  with tempfile.TemporaryDirectory(dir=folder.parent) as data_dir:
    since = time.perf_counter()
    prepare.run(_DATASET, data_dir, images, max_workers=workers)
    seconds = time.perf_counter() - since
  own, children = (
    resource.getrusage(who)
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return {
    'seconds': seconds,
    'cpu_seconds': own.ru_utime + children.ru_utime,
    'worker_bytes': 1024 * children.ru_maxrss,
  }


def _report(results: harness.Results) -> str:
  rows = [
    [
      f'{count:,}',
      workers,
      harness.median(results, (count, workers)),
      harness.median(results, (count, workers), 'cpu_seconds'),
      harness.ratio(results, (count, 1), (count, workers)),
      harness.median(results, (count, workers), 'peak_bytes') / 1e6,
      harness.median(results, (count, workers), 'worker_bytes') / 1e6,
    ]
    for count, workers in results
  ]
  return common.table(
    [
      *('images', 'processes', 'seconds', 'CPU seconds'),
      *('times one process', 'memory peak, MB', 'of a worker, MB'),
    ],
    rows,
  )


def main():
  """Measures all cases and prints a table."""
  parser = harness.parser(__doc__)
  parser.add_argument(
    '--data_dir',
    default='runs/bench_prepare',
    help='folder for generated images (default: runs/bench_prepare)',
  )
  parser.add_argument(
    '--cores', type=int, default=2, help='cores to use (default: 2)'
  )
  args = parser.parse_args()
  harness.limit_cores(args.cores)
  folder = pathlib.Path(args.data_dir).absolute() / 'images'
  harness.run(
    'experiments.benchmarks.preparing',
    args,
    _CASES,
    lambda case: _measure(case, folder),
    _report,
    lambda _: _make_files(folder),
  )


if __name__ == '__main__':
  main()
