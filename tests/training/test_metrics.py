import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dermvq_jax.training import metrics

_CODES = 11


def _values(n, seed=0):
  return np.random.default_rng(seed).uniform(0, 0.2, (n, 3, 4, 2))


def _codes(n, seed=0):
  # Squared, so that codes differ in frequency and some are never used.
  u = np.random.default_rng(seed).random((n, 3, 4))
  return np.int32(u**2 * (_CODES - 3))


def _shares(codes):
  counts = np.bincount(codes.ravel(), minlength=_CODES)
  return counts / counts.sum()


def _perplexity(codes):
  p = _shares(codes)
  return np.exp(-sum(x * np.log(x) for x in p if x > 0))


def _counter(metric):
  return lambda codes, mask=None: metric.of(jnp.asarray(codes), _CODES, mask)


def _averager(metric):
  return lambda values, mask=None: metric.of(jnp.float32(values), mask)


def _by_class(x, mask=None):
  return metrics.ClassMean.of(jnp.float32(x[:, 0]), jnp.int32(x[:, 1]), 4, mask)


def _labelled(n, seed=0):
  """Values and labels `[n, 2]`; class 1 never occurs."""
  rng = np.random.default_rng(seed)
  return np.stack([rng.random(n), rng.choice([0, 2, 3], n)], axis=1)


# Name: the metric of a batch, batches, the value by its definition.
METRICS = {
  'mean': (_averager(metrics.Mean), _values, np.mean),
  'psnr': (
    _averager(metrics.Psnr),
    _values,
    lambda errors: 10 * np.log10(1 / np.mean(errors)),
  ),
  'perplexity': (_counter(metrics.Perplexity), _codes, _perplexity),
  'codebook_usage': (
    _counter(metrics.CodebookUsage),
    _codes,
    lambda codes: np.mean(_shares(codes) > 0),
  ),
  'dead_codes': (
    _counter(metrics.DeadCodes),
    _codes,
    lambda codes: np.sum(_shares(codes) == 0),
  ),
  'class_mean': (
    _by_class,
    _labelled,
    lambda x: np.mean([x[x[:, 1] == c, 0].mean() for c in np.unique(x[:, 1])]),
  ),
}
every_metric = pytest.mark.parametrize(
  'of, make, expected', METRICS.values(), ids=METRICS
)


@every_metric
def test_value(of, make, expected):
  data = make(7)
  np.testing.assert_allclose(of(data).compute(), expected(data), rtol=1e-5)


@every_metric
def test_masked_examples_do_not_count(of, make, expected):
  data, mask = make(7), np.float32([1, 0, 1, 1, 0, 0, 1])
  data[mask == 0] = _CODES - 1  # A code that no other has.
  assert expected(data) != pytest.approx(expected(data[mask > 0]), rel=1e-3)
  actual = jax.jit(of)(data, mask).compute()
  np.testing.assert_allclose(actual, expected(data[mask > 0]), rtol=1e-5)


@every_metric
def test_uneven_parts_add_up_to_the_whole(of, make, expected):
  data = make(9)
  parts = [
    of(data[:2]),
    of(data[2:7]),
    of(np.concatenate([data[7:], data[:3]]), jnp.float32([1, 1, 0, 0, 0])),
  ]
  merged = parts[0].merge(parts[1]).merge(parts[2])
  np.testing.assert_allclose(merged.compute(), expected(data), rtol=1e-5)
  together = {}
  for i, part in enumerate(parts):
    together = metrics.merge(together, {'x': part}) if i else {'x': part}
  computed = metrics.compute(together, 'val/')
  assert computed == {'val/x': pytest.approx(expected(data), rel=1e-5)}
  assert isinstance(computed['val/x'], float)


@every_metric
def test_value_does_not_depend_on_the_batch_size(of, make, expected):
  data = make(12)
  for size in (1, 3, 12):
    parts = [of(data[i : i + size]) for i in range(0, 12, size)]
    total = parts[0]
    for part in parts[1:]:
      total = total.merge(part)
    np.testing.assert_allclose(total.compute(), expected(data), rtol=1e-5)


@every_metric
def test_sum_over_devices_is_the_metric_of_the_global_batch(of, make, expected):
  data, mask = make(16), np.float32(np.arange(16) != 5)
  summed = jax.pmap(
    lambda data, mask: jax.lax.psum(of(data, mask), 'data'), axis_name='data'
  )(data.reshape(8, 2, *data.shape[1:]), mask.reshape(8, 2))
  first = jax.tree.map(lambda x: x[0], summed)
  np.testing.assert_allclose(first.compute(), expected(data[mask > 0]), 1e-5)


def test_mean_of_one_value_an_example():
  mean = metrics.Mean.of(jnp.asarray([True, False, True, True]))
  np.testing.assert_allclose(mean.compute(), 0.75)
  assert mean.total.dtype == mean.count.dtype == jnp.float32


def test_mean_of_many_bfloat16_values():
  # In bfloat16 a sum of ones ends at 256.
  mean = metrics.Mean.of(jnp.full((2, 10_000), 1.0, jnp.bfloat16))
  assert (mean.total, mean.count) == (20_000, 20_000)


def test_psnr_is_not_a_mean_of_psnrs():
  errors = np.float32([1e-4, 1e-2])
  parts = [metrics.Psnr.of(jnp.asarray(e)[None]) for e in errors]
  value = parts[0].merge(parts[1]).compute()
  np.testing.assert_allclose(value, -10 * np.log10(0.00505), rtol=1e-5)
  assert abs(value - np.mean([p.compute() for p in parts])) > 5  # dB


@pytest.mark.parametrize('used', [1, 4, _CODES])
def test_perplexity_and_usage_of_equally_used_codes(used):
  codes = np.tile(np.arange(used), 6)[:, None]
  perplexity = _counter(metrics.Perplexity)(codes).compute()
  np.testing.assert_allclose(perplexity, used, rtol=1e-5)
  usage = _counter(metrics.CodebookUsage)(codes).compute()
  np.testing.assert_allclose(usage, used / _CODES, rtol=1e-6)


def test_usage_is_over_the_whole_epoch():
  # Each batch uses one code, the epoch all but one.
  parts = [_counter(metrics.CodebookUsage)([[k]]) for k in range(_CODES - 1)]
  total = parts[0]
  for part in parts[1:]:
    np.testing.assert_allclose(part.compute(), 1 / _CODES, rtol=1e-6)
    total = total.merge(part)
  np.testing.assert_allclose(total.compute(), 1 - 1 / _CODES, rtol=1e-6)


def test_a_code_used_only_in_padding_is_unused():
  codes, mask = jnp.int32([[0, 1], [2, 2]]), jnp.float32([1, 0])
  usage = metrics.CodebookUsage.of(codes, _CODES, mask)
  assert usage.counts.tolist() == [1, 1] + [0] * (_CODES - 2)


def test_count():
  parts = [{'n': metrics.Count(jnp.int32(n))} for n in (2, 0, 1)]
  total = metrics.merge(metrics.merge(parts[0], parts[1]), parts[2])
  assert metrics.compute(total) == {'n': 3}
  assert parts[0]['n'].merge(parts[2]['n']).compute() == 3
