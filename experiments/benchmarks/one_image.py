"""What one image costs, against 32, from Python and after compilation.

```
python -m experiments.benchmarks.one_image --workdir=demo
```

One image and 32 are processed in turns, and the fastest call of each counts:
what else the machine does only adds to a call.
"""

import time
from collections.abc import Callable

import dermvq_jax
from dermvq_jax import inference
from experiments import common

_MANY = 32
_ONES = 4  # calls with one image for each call with many, which takes longer


def tasks(model: inference.Model) -> dict[str, Callable]:
  """Functions of the number of images."""
  label = model.class_names[0]
  images = model.sample(label, _MANY)
  return {
    'sample': lambda n: model.sample(label, n),
    'encode': lambda n: model.encode(images[:n]),
    'reconstruct': lambda n: model.reconstruct(images[:n]),
  }


def measure(task: Callable, rounds: int) -> tuple[float, float]:
  """Returns the seconds of one image, and of many."""
  seconds = {1: [], _MANY: []}
  for n in seconds:
    task(n)  # compiles
  for _ in range(rounds):
    for n in (*[1] * _ONES, _MANY):
      start = time.perf_counter()
      task(n)
      seconds[n].append(time.perf_counter() - start)
  return min(seconds[1]), min(seconds[_MANY])


def main():
  """Measures all tasks and prints a table."""
  parser = common.parser(__doc__)
  parser.add_argument('--workdir', default='demo', metavar='DIR')
  parser.add_argument('--rounds', type=int, default=20, metavar='N')
  args = parser.parse_args()
  rows = []
  for name, task in tasks(dermvq_jax.load(args.workdir)).items():
    one, many = measure(task, args.rounds)
    rows.append([name, 1e3 * one, 1e3 * many, f'1/{many / one:.0f}'])
  header = ['', 'one image, ms', f'{_MANY} images, ms', 'one against 32']
  print(common.table(header, rows))


if __name__ == '__main__':
  main()
