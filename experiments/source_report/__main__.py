"""The command; see the package's docstring."""

import argparse

from absl import logging
from etils import epath

import experiments.source_report
from dermvq_jax import errors
from dermvq_jax.data import prepare
from dermvq_jax.runs import logs, workdirs
from dermvq_jax.training import host_memory
from experiments.source_report import claims, page, protocol

_SEEDS = {'full': 3, 'smoke': 1}


def main(argv: list[str] | None = None):
  """Trains what is missing and writes the page."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.source_report',
    description=experiments.source_report.__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--workdir', type=epath.Path, required=True)
  parser.add_argument(
    '--data_dir', default='', help='prepared datasets (default: WORKDIR/data)'
  )
  parser.add_argument(
    '--manual_dir', help='the source of the dataset, if it is not prepared yet'
  )
  parser.add_argument('--size', choices=protocol.DATASETS, default='full')
  parser.add_argument(
    '--dataset', default='', help='default: ham10000/64; of smoke, a drawn one'
  )
  parser.add_argument(
    '--seeds', type=int, help='of each VQ-VAE (default: 3; of smoke, 1)'
  )
  parser.add_argument('--page', action='store_true', help='train nothing')
  args = parser.parse_args(argv)
  num_seeds = args.seeds or _SEEDS[args.size]
  host_memory.keep()
  logs.setup_console()
  try:
    if not args.page:
      dataset = args.dataset or protocol.DATASETS[args.size]
      data_dir = workdirs.data_dir(args.workdir, args.data_dir)
      prepare.run(dataset, data_dir, args.manual_dir)
      runs = list(protocol.queue(num_seeds))
      for run in protocol.train_all(
        runs, args.workdir, args.size, dataset, data_dir
      ):
        logging.info('%s is done.', run.name)
    page.write(args.workdir, num_seeds)
  except errors.UserError as e:
    parser.error(str(e))
  for recipe, found in protocol.read_logs(args.workdir, num_seeds).items():
    print(f'\n{recipe}')
    for claim in claims.CLAIMS:
      print(f'- {claim.text}\n  {claim.decide(found)}')


if __name__ == '__main__':
  main()
