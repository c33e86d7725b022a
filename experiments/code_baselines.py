"""Bits per code that simple count models need for the codes of a run.

```
python -m experiments.code_baselines --workdir=RUN
```

A prior is worth its training only if it beats both of these on the validation
split:

- unigram: the probability of a code is its share of the training codes;
- neighbours: a mixture of three models: the unigram, the training counts of a
  code given its left neighbour, and those given its upper neighbour (Jelinek
  and Mercer 1980). EM fits the weights of the mixture on a tenth of the
  training images; during the fit only the other images are counted. Codes with
  no neighbour, with one of the two, and with both have separate weights.

The last line is the prior's own bits per code, from its best weights.
"""

import numpy as np

from dermvq_jax import inference, progress
from dermvq_jax.data import prepared
from dermvq_jax.runs import run as run_lib
from experiments import common

_SMOOTHING = 0.5  # added to the count of each code, so that none is impossible
_EM_STEPS = 50
_HELD_OUT_EVERY = 10  # every n-th training image is held out from the counts


def count_tables(codes: np.ndarray, codebook_size: int) -> list[np.ndarray]:
  """Counts codes: unigram `[K]`, given left `[K, K]`, given upper `[K, K]`.

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
  """Returns each model's probability of each code, `[3, N, h, w]`.

  A model that looks at a neighbour gives 0 where there is no such neighbour, or
  where the counts do not contain the neighbour's code.
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
  """Fits the weights of a mixture by EM: `[C, M]` to `[C]`."""
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
  """Bits per code of `val` under the mixture that is fitted to `train`."""
  held_out = np.arange(len(train)) % _HELD_OUT_EVERY == 0
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
  dataset: prepared.Dataset, split: str
) -> tuple[np.ndarray, np.ndarray]:
  """Returns all codes int `[N, h, w]` and labels `[N]` of a split."""
  records = list(progress.bar(dataset.split(split), desc=f'read {split}'))
  return (
    np.stack([r['codes'] for r in records]),
    np.array([r['label'] for r in records], np.int32),
  )


def main():
  """Prints the table."""
  parser = common.parser(__doc__)
  parser.add_argument('--workdir', required=True, help='folder of a run')
  run = run_lib.Run(parser.parse_args().workdir)
  train, _ = read_codes(run.codes, 'train')
  val, labels = read_codes(run.codes, 'val')
  k = run.prior.facts['codebook_size']
  nats = -inference.Model(run).log_likelihood(val, labels).sum() / val.size
  rows = {
    'uniform': np.log2(k),
    'unigram': unigram_bits(train, val, k),
    'neighbours': neighbour_bits(train, val, k),
    run.prior.config.prior.name: nats / np.log(2),
  }
  for name, bits in rows.items():
    print(
      f'{name:16} {bits:.4f} bits per code, '
      f'{1 - bits / rows["unigram"]:+.1%} below the unigram'
    )


if __name__ == '__main__':
  main()
