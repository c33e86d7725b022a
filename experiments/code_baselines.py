"""What simple count models give for the codes of a run, in bits per code.

```
python -m experiments.code_baselines --workdir=RUN
```

A prior that is worth its training must beat both on the validation split:
- unigram: each code by its share of the training codes;
- neighbours: a mixture of the training counts of a code given its left
  neighbour, given its upper neighbour, and of the unigram (Jelinek and Mercer
  1980). Its weights are fitted by EM on a tenth of the training images, whose
  counts are left out for that, one set for each of the four cases of which
  neighbours exist.

The prior's own bits per code, from its best weights, stand beside them.
"""

import argparse

import numpy as np

from dermvq_jax import inference, progress
from dermvq_jax.data import prepared
from dermvq_jax.generation import encode
from dermvq_jax.runs import workdirs

_SMOOTHING = 0.5  # added to each code's count, so that none is impossible
_EM_STEPS = 50
_HELD_OUT = 10  # every so many-th training image


def count_tables(codes: np.ndarray, codebook_size: int) -> list[np.ndarray]:
  """Training counts: unigram `[K]`, given left `[K, K]`, given upper `[K, K]`.

  Args:
    codes: int `[N, h, w]`.
    codebook_size: K.
  """
  k = codebook_size
  unigram = np.bincount(codes.ravel(), minlength=k)
  pairs = [
    (codes[:, :, :-1], codes[:, :, 1:]),
    (codes[:, :-1], codes[:, 1:]),
  ]
  tables = [
    np.bincount((given * k + code).ravel(), minlength=k * k).reshape(k, k)
    for given, code in pairs
  ]
  return [unigram, *tables]


def component_probabilities(
  codes: np.ndarray, tables: list[np.ndarray]
) -> np.ndarray:
  """Each component's probability of each code, `[3, N, h, w]`.

  The neighbours' components are 0 where there is no such neighbour, or where
  it never came before another code in the counts.
  """
  unigram, left, upper = tables
  smoothed = unigram + _SMOOTHING
  out = np.zeros((3, *codes.shape))
  out[0] = (smoothed / smoothed.sum())[codes]
  for component, table, here, given in (
    (1, left, np.s_[:, :, 1:], np.s_[:, :, :-1]),
    (2, upper, np.s_[:, 1:], np.s_[:, :-1]),
  ):
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    out[component][here] = shares[codes[given], codes[here]]
  return out


def _cases(grid: tuple[int, int]) -> list[np.ndarray]:
  """Masks `[h, w]`: neither neighbour, left only, upper only, both."""
  row, column = np.indices(grid)
  return [
    (row == 0) & (column == 0),
    (row == 0) & (column > 0),
    (row > 0) & (column == 0),
    (row > 0) & (column > 0),
  ]


def fit_weights(probabilities: np.ndarray) -> np.ndarray:
  """EM for the weights of a mixture: `[C, M]` to `[C]`."""
  weights = np.full(len(probabilities), 1 / len(probabilities))
  for _ in range(_EM_STEPS):
    joint = weights[:, None] * probabilities
    weights = (joint / joint.sum(0)).mean(1)
  return weights


def unigram_bits(train: np.ndarray, val: np.ndarray, k: int) -> float:
  """Bits per code of `val` under the unigram counts of `train`."""
  tables = count_tables(train, k)
  return float(-np.log2(component_probabilities(val, tables)[0]).mean())


def neighbour_bits(train: np.ndarray, val: np.ndarray, k: int) -> float:
  """Bits per code of `val` under the interpolated model of `train`."""
  held_out = np.arange(len(train)) % _HELD_OUT == 0
  fit = component_probabilities(
    train[held_out], count_tables(train[~held_out], k)
  )
  test = component_probabilities(val, count_tables(train, k))
  bits = 0.0
  for case in _cases(val.shape[1:]):
    if case.any():
      weights = fit_weights(fit[:, :, case].reshape(3, -1))
      mixed = np.tensordot(weights, test[:, :, case], 1)
      bits -= np.log2(mixed).sum()
  return float(bits / val.size)


def read_codes(
  dataset: str, data_dir: str, split: str
) -> tuple[np.ndarray, np.ndarray]:
  """All codes int `[N, h, w]` and labels `[N]` of a split."""
  source = prepared.open_split(dataset, data_dir, split)
  records = [
    source[i] for i in progress.bar(range(len(source)), desc=f'read {split}')
  ]
  return (
    np.stack([r['codes'] for r in records]),
    np.array([r['label'] for r in records], np.int32),
  )


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', required=True)
  workdir = parser.parse_args().workdir
  config, facts = workdirs.load_config(workdirs.phase_dir(workdir, 'prior'))
  dataset, data_dir = encode.resolve_dataset(config, workdir)
  train, _ = read_codes(dataset, data_dir, 'train')
  val, labels = read_codes(dataset, data_dir, 'val')
  k = facts['codebook_size']
  model = inference.load(workdir)
  nats = -model.log_likelihood(val, labels).sum() / val.size
  rows = {
    'uniform': np.log2(k),
    'unigram': unigram_bits(train, val, k),
    'neighbours': neighbour_bits(train, val, k),
    config.prior.name: nats / np.log(2),
  }
  for name, bits in rows.items():
    print(
      f'{name:16} {bits:.4f} bits per code, '
      f'{1 - bits / rows["unigram"]:+.1%} below the unigram'
    )


if __name__ == '__main__':
  main()
