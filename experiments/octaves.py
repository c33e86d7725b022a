r"""Where a network sees that reconstructions are not real: octaves swapped.

```
python -m experiments.octaves --run=RUN --vgg16=vgg16.npz --out=STUDY
```

The images of test are changed in one way at a time and compared with the real
images of val, by KID in VGG16 (`experiments.sharpness`): noise and blur of
several strengths, and octaves of frequency that are taken from the
reconstructions, or put back from the real images. Results are kept in STUDY;
what is measured there is not measured again.
"""

import functools
from collections.abc import Callable

import numpy as np
import scipy.ndimage
from etils import epath

from dermvq_jax import inference
from dermvq_jax.evaluation import feature_spaces, generation_metrics
from dermvq_jax.runs import run as run_lib
from experiments import common, sharpness

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]
_FINEST, _SECOND, _BOTH = (0.25, 1), (0.125, 0.25), (0.125, 1)


def octaves(images: np.ndarray, low: float, high: float) -> np.ndarray:
  """The part of images within some frequencies.

  Args:
    images: float `[B, H, W, 3]`.
    low: the lowest frequency, in cycles per pixel.
    high: the frequency at which the part ends.

  Returns:
    float64 `[B, H, W, 3]`.
  """
  rows, columns = (np.fft.fftfreq(n) for n in images.shape[1:3])
  radius = np.hypot(rows[:, None], columns)
  inside = ((low <= radius) & (radius < high))[..., None]
  spectrum = np.fft.fft2(images, axes=(1, 2))
  return np.fft.ifft2(spectrum * inside, axes=(1, 2)).real


def swap(images: np.ndarray, others: np.ndarray, band: tuple[float, float]):
  """Images with the frequencies `band` of other images, as in `octaves`."""
  return images + octaves(others - images, *band)


def _noise(real: np.ndarray, made: np.ndarray, deviation: float) -> np.ndarray:
  del made
  return real + np.random.default_rng(0).normal(0, deviation, real.shape)


def _blur(real: np.ndarray, made: np.ndarray, deviation: float) -> np.ndarray:
  del made
  return scipy.ndimage.gaussian_filter(real, (0, deviation, deviation, 0))


def _weaken(real: np.ndarray, made: np.ndarray, factor: float) -> np.ndarray:
  del made
  return swap(real, factor * real, _FINEST)


def _displace(real: np.ndarray, made: np.ndarray) -> np.ndarray:
  """The power at each frequency of the finest octave stays, its place does not.

  The phases become those of noise, the same for all colours.
  """
  del made
  noise = np.random.default_rng(0).normal(size=(*real.shape[:3], 1))
  spectrum, drawn = (np.fft.fft2(x, axes=(1, 2)) for x in (real, noise))
  spectrum = np.abs(spectrum) * np.exp(1j * np.angle(drawn))
  return swap(real, np.fft.ifft2(spectrum, axes=(1, 2)).real, _FINEST)


def _exchange(
  real: np.ndarray, made: np.ndarray, band: tuple[float, float]
) -> np.ndarray:
  """Each image gets a band of the one that has about as much power in it."""
  del made
  power = (octaves(real, *band) ** 2).mean((1, 2, 3))
  order = np.argsort(power)
  others = np.empty_like(real)
  # Each gets that of the next weaker one, the weakest that of the second.
  others[order] = real[order[np.abs(np.arange(len(order)) - 1)]]
  return swap(real, others, band)


# Real images and their reconstructions to changed images, all of them float.
CHANGES: dict[str, Change] = {
  'real images': lambda real, made: real,
  'reconstructions': lambda real, made: made,
  **{
    f'real, noise of {x} of 255': functools.partial(_noise, deviation=x)
    for x in (1, 2, 4)
  },
  **{
    f'real, blur of {x} px': functools.partial(_blur, deviation=x)
    for x in (0.4, 0.6)
  },
  **{
    f'real, finest octave times {x}': functools.partial(_weaken, factor=x)
    for x in (0.8, 0.6)
  },
  'real, finest octave at random places': _displace,
  'real, finest octave of another': functools.partial(_exchange, band=_FINEST),
  'real, both of another': functools.partial(_exchange, band=_BOTH),
  'real, finest octave reconstructed': lambda r, m: swap(r, m, _FINEST),
  'real, second octave reconstructed': lambda r, m: swap(r, m, _SECOND),
  'real, both reconstructed': lambda r, m: swap(r, m, _BOTH),
  'reconstructions, finest octave real': lambda r, m: swap(m, r, _FINEST),
  'reconstructions, second octave real': lambda r, m: swap(m, r, _SECOND),
  'reconstructions, both real': lambda r, m: swap(m, r, _BOTH),
}


def measure(
  change: Change,
  space: feature_spaces.Features,
  reference: Callable[[], np.ndarray],
  images: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> tuple[float, float]:
  """Returns the KID of changed images, and its standard error.

  Args:
    change: one of `CHANGES`.
    space: the space of the KID.
    reference: makes the features that are compared with.
    images: makes the real images and their reconstructions, uint8.
  """
  changed = change(*(np.float64(x) for x in images()))
  changed = np.rint(np.clip(changed, 0, 255)).astype(np.uint8)
  found = feature_spaces.extract(space, changed, 'features')
  return generation_metrics.kid(reference(), found)


def main(argv: list[str] | None = None):
  """Measures all changes and prints the table."""
  parser = common.parser(__doc__, 'python -m experiments.octaves')
  parser.add_argument('--run', required=True, help='workdir of the run')
  parser.add_argument('--data_dir', default='', help="the run's datasets")
  parser.add_argument(
    '--vgg16', type=epath.Path, required=True, help='.npz file of VGG16'
  )
  parser.add_argument('--out', type=epath.Path, required=True)
  args = parser.parse_args(argv)
  common.setup()
  with common.usage_errors(parser):
    run = run_lib.Run(args.run, args.data_dir)
    space = sharpness.Stages(args.vgg16)

    def split(name: str) -> np.ndarray:
      return np.stack([record['image'] for record in run.images.split(name)])

    @functools.cache
    def reference() -> np.ndarray:
      return feature_spaces.extract(space, split('val'), 'val')

    @functools.cache
    def images() -> tuple[np.ndarray, np.ndarray]:
      real = split('test')
      return real, inference.Model(run).reconstruct(real)

    files = {name: f'{name.replace(" ", "_")}.json' for name in CHANGES}
    common.run_missing(
      args.out,
      {
        files[name]: functools.partial(
          measure, change, space, reference, images
        )
        for name, change in CHANGES.items()
      },
    )
  rows = []
  for name, file in files.items():
    kid, error = common.read_json(args.out / file)
    rows.append([name, f'{1000 * kid:.1f} ± {1000 * error:.1f}'])
  print(common.table(['images', 'KID VGG16 x 1000'], rows))


if __name__ == '__main__':
  main()
