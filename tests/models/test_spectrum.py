"""The power by octaves against NumPy, and on waves of known frequency."""

import image_references
import jax
import numpy as np
import pytest

from dermvq_jax.models import spectrum

_SIZES = [(32, 32), (31, 31), (24, 40), (17, 30), (40, 21)]


@pytest.mark.parametrize('size', _SIZES)
def test_against_numpy(size):
  images = np.float32(np.random.default_rng(0).random((3, *size, 3)))
  actual = jax.jit(spectrum.octave_powers)(images)
  assert actual.dtype == np.float32
  assert actual.shape == (3, spectrum.NUM_OCTAVES)
  expected = image_references.octave_powers(images, spectrum.NUM_OCTAVES)
  np.testing.assert_allclose(actual, expected, rtol=1e-4)


_powers = jax.jit(spectrum.octave_powers)


def _wave(frequency, angle, size=96):
  """A grey cosine `[1, H, W, 3]` of a frequency in cycles per pixel."""
  y, x = np.mgrid[:size, :size]
  phase = frequency * (np.cos(angle) * y + np.sin(angle) * x)
  wave = 0.5 + 0.25 * np.cos(2 * np.pi * phase + 1)
  return np.float32(np.repeat(wave[None, ..., None], 3, -1))


@pytest.mark.parametrize('angle', [0, np.pi / 2, 0.6, -0.9])
@pytest.mark.parametrize('octave', range(spectrum.NUM_OCTAVES))
def test_a_wave_is_in_its_octave(octave, angle):
  """All its power: half of its squared amplitude."""
  frequency = 0.35 / 2**octave
  [powers] = _powers(_wave(frequency, angle))
  assert np.argmax(powers) == octave
  assert powers[octave] == pytest.approx(0.25**2 / 2, rel=0.02)
  assert powers.sum() - powers[octave] < 1e-3 * powers[octave]


@pytest.mark.parametrize('size', _SIZES)
def test_the_power_of_white_noise_is_the_share_of_the_frequencies(size):
  """A whole spectrum would sum up to the variance (Parseval)."""
  rng = np.random.default_rng(1)
  images = np.repeat(rng.normal(0, 0.1, (200, *size, 1)), 3, -1)
  powers = np.asarray(_powers(np.float32(images))).mean(0)
  frequencies = np.hypot(
    np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])
  )
  for i, power in enumerate(powers):
    high = 0.5 / 2**i
    share = np.mean((frequencies >= high / 2) & (frequencies < high))
    assert power == pytest.approx(0.01 * share, rel=0.1)


def test_brightness_and_colour_do_not_count():
  images = np.float32(np.random.default_rng(0).random((1, 32, 32, 3)))
  expected = _powers(images)
  np.testing.assert_allclose(_powers(images + 0.3), expected, rtol=1e-4)
  np.testing.assert_allclose(_powers(images[..., ::-1]), expected, rtol=1e-4)
  np.testing.assert_allclose(_powers(2 * images), 4 * expected, rtol=1e-4)
  flat = np.full_like(images, 0.7)
  np.testing.assert_allclose(_powers(flat), 0, atol=1e-9)


def test_images_do_not_see_each_other():
  images = np.float32(np.random.default_rng(0).random((2, 16, 16, 3)))
  both = _powers(images)
  np.testing.assert_allclose(_powers(images[1:]), both[1:], rtol=1e-5)


def test_names():
  assert spectrum.octave_names() == [
    '1/4 to 1/2',
    '1/8 to 1/4',
    '1/16 to 1/8',
  ]
