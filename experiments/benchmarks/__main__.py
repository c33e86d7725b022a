"""Training, codebook search and input against PyTorch and the hardware.

```
make bench
```

or, with the extra `bench` installed, `python -m experiments.benchmarks --help`.

Each contender runs in a separate process; each round runs all of them, one
after the other. Numbers are medians over the rounds, and ratios are medians of
the rounds' ratios. Everything runs on 2 cores (input: 1) in float32. First
calls, which compile, are reported separately. PyTorch runs eagerly, with
contiguous tensors and with channels_last; the faster one counts.
"""

import pathlib

from experiments.benchmarks import cases, harness, measurements, report


def main():
  """Measures all cases and prints tables."""
  parser = harness.parser(__doc__)
  parser.add_argument(
    '--data_dir',
    default='runs/bench_data',
    help='folder for generated images (default: runs/bench_data)',
  )
  parser.add_argument(
    '--plot', metavar='FILE', help='write a plot of the growth here (PNG)'
  )
  args = parser.parse_args()
  data_dir = str(pathlib.Path(args.data_dir).absolute())

  def make_report(results: harness.Results) -> str:
    if args.plot:
      report.plot(results, args.plot)
    return report.make_report(results, args.rounds)

  harness.run(
    'experiments.benchmarks',
    args,
    cases.all_cases(),
    lambda case: measurements.measure(case, data_dir, args.calls),
    make_report,
    lambda chosen: measurements.prepare(chosen, data_dir),
  )


if __name__ == '__main__':
  main()
