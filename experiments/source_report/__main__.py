"""The command; see the package's docstring."""

import experiments.source_report
from experiments import common
from experiments.source_report import claims, page, protocol

_SEEDS = {'full': 3, 'smoke': 1}


def main(argv: list[str] | None = None):
  """Trains what is missing and writes the page."""
  parser = common.study_parser(
    experiments.source_report.__doc__, 'experiments.source_report'
  )
  common.add_data_flags(parser)
  parser.add_argument(
    '--seeds',
    type=int,
    help='seeds of each VQ-VAE (default: 3; 1 with --size=smoke)',
  )
  parser.add_argument(
    '--page', action='store_true', help='train nothing, write the page'
  )
  args = parser.parse_args(argv)
  num_seeds = args.seeds or _SEEDS[args.size]
  common.setup()
  with common.usage_errors(parser):
    if not args.page:
      images = common.prepare_data(args)
      trials = list(protocol.queue(num_seeds))
      protocol.train_all(trials, args.workdir, args.size, images)
    logs = protocol.read_logs(args.workdir, num_seeds)
    page.write(args.workdir, logs)
  for recipe, found in logs.items():
    print(f'\n{recipe}')
    for claim in claims.CLAIMS:
      print(f'- {claim.text}\n  {claim.decide(found)}')


if __name__ == '__main__':
  main()
