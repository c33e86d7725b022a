"""The command line: commands and exit codes; their flags are in `flags`."""

import argparse
import errno
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

from dermvq_jax import console, errors, flags, sampling_flags
from dermvq_jax.training import compile_cache, host_memory

_MISTAKE = 2  # exit code, the same as argparse's
_DAMAGED = 1  # exit code of dermvq check
_INTERRUPTED = 130  # exit code, the same as the shell's
# Exit code after SIGTERM and SIGHUP, EX_TEMPFAIL of sysexits.h: everything is
# saved, and the same command resumes. 143 would mean that the process died.
_STOPPED = 75
_MAKES_RUNS = ('train', 'encode')
_RESUMED = ('train', 'sample', 'demo')
# Errors of a wrong path, missing permissions, and a full or failing disk.
_SYSTEM_ERRORS = {
  errno.EACCES,
  errno.EDQUOT,
  errno.EEXIST,
  errno.EFBIG,
  errno.EIO,
  errno.EISDIR,
  errno.ELOOP,
  errno.ENAMETOOLONG,
  errno.ENOSPC,
  errno.ENOTDIR,
  errno.EPERM,
  errno.EROFS,
  errno.ESTALE,
}


def _run_of(args: argparse.Namespace):
  """The run that the arguments name; of most commands it is there already."""
  from dermvq_jax.runs import run

  open_run = run.Run if args.command in _MAKES_RUNS else run.find
  return open_run(args.workdir, getattr(args, 'data_dir', None) or '')


def _controls_of(args: argparse.Namespace) -> dict[str, Any]:
  """The controls of sampling, named as in `Model.sample`."""
  names = [number.name for number in sampling_flags.CONTROLS]
  names += ['choose', 'choose_by']
  return {name: getattr(args, name) for name in names}


def _join_hosts(args: argparse.Namespace):
  """Joins the processes of several hosts, if the flags name them."""
  from dermvq_jax.runs import hosts

  hosts.initialize(args.coordinator, args.num_processes, args.process_id)


def _say_next(*words: str):
  """Says which command most people run next."""
  print(f'Next: dermvq {shlex.join(words)}')


def _prepare(args: argparse.Namespace):
  from dermvq_jax.data import prepare

  columns = {
    name: column
    for name in ('image', 'label', 'group')
    if (column := getattr(args, f'{name}_column'))
  }
  if args.condition_columns:
    columns['condition'] = args.condition_columns
  prepared = prepare.run(
    args.dataset,
    args.data_dir,
    args.manual_dir,
    overwrite=args.overwrite,
    columns=columns,
    leave_out=args.leave_out,
    max_workers=args.max_workers,
    beam_options=args.beam_options,
  )
  print(prepare.summary(prepared))
  _say_next(
    'train',
    '--config=vqvae',
    '--workdir=RUN',
    f'--config.dataset={args.dataset}',
    f'--config.data_dir={args.data_dir}',
  )


def _train(args: argparse.Namespace):
  from dermvq_jax import config_files
  from dermvq_jax.runs import hosts
  from dermvq_jax.training import loop

  config = config_files.load(args.config, args.overrides)
  _join_hosts(args)
  run = _run_of(args)
  loop.train(config, run, profile=args.profile, verbose=args.verbose)
  workdir = f'--workdir={args.workdir}'
  if not hosts.is_primary():
    return
  if config.task == 'classifier':
    _say_next('evaluate', workdir)
  elif run.prior.has_weights:  # A VQ-VAE that is trained on has one, too.
    _say_next('sample', workdir, '--out=SAMPLES')
  else:
    _say_next('encode', workdir)


def _encode(args: argparse.Namespace):
  from dermvq_jax.generation import encode
  from dermvq_jax.runs import hosts

  _join_hosts(args)
  encode.encode(_run_of(args), args.copies)
  if hosts.is_primary():
    _say_next('train', '--config=prior', f'--workdir={args.workdir}')


def _sample(args: argparse.Namespace):
  from dermvq_jax.generation import samples
  from dermvq_jax.runs import hosts

  _join_hosts(args)
  samples.sample(
    _run_of(args),
    args.out,
    counts=None if args.balance else args.counts,
    balance=args.balance,
    where=args.where,
    seed=args.seed,
    complete=args.complete,
    mask=args.mask,
    reject_memorised=args.reject_memorised,
    reject_unlike=args.reject_unlike,
    shards=args.shards,
    **_controls_of(args),
  )
  if hosts.is_primary():
    print(f'Wrote {args.out}')


def _reconstruct(args: argparse.Namespace):
  from dermvq_jax.generation import reconstructions

  reconstructions.reconstruct(
    _run_of(args),
    args.out,
    paths=args.images,
    split=args.split,
    num_images=args.num_images,
    through_prior=args.through_prior,
    label=args.label,
  )


def _score(args: argparse.Namespace):
  from dermvq_jax.reporting import score_page

  score_page.score(
    _run_of(args),
    args.out,
    paths=args.images,
    split=args.split,
    label=args.label,
    alpha=args.alpha,
  )


def _evaluate(args: argparse.Namespace):
  from dermvq_jax.evaluation import evaluate, feature_spaces
  from dermvq_jax.runs import run

  evaluate.evaluate(
    _run_of(args),
    args.split,
    space=feature_spaces.Inception(args.inception) if args.inception else None,
    num_samples=args.num_samples,
    seed=args.seed,
    judge=run.find(args.judge) if args.judge else None,
    **_controls_of(args),
  )


def _check(args: argparse.Namespace) -> int:
  from dermvq_jax.runs import check

  return 0 if check.check(_run_of(args)) else _DAMAGED


def _report(args: argparse.Namespace):
  from dermvq_jax.reporting import report

  report.report(_run_of(args), args.seed)


def _export(args: argparse.Namespace):
  from dermvq_jax.reporting import export

  export.export(_run_of(args), args.out, without_search=args.without_search)


def _explore(args: argparse.Namespace):
  from dermvq_jax.explore import server

  runs = [(args.workdir, args.data_dir or '')]
  if args.compare:
    runs.append((args.compare, ''))
  server.explore(runs, args.port)


def _demo(args: argparse.Namespace):
  from dermvq_jax import demo

  demo.demo(args.workdir, args.size)


def _say_error(args: argparse.Namespace, message: str):
  """Says in one line why a command ends, whatever names the message has."""
  line = f'dermvq {args.command}: error: {errors.printable(message)}'
  print(line, file=sys.stderr)


_COMMANDS = {
  'prepare': _prepare,
  'train': _train,
  'encode': _encode,
  'sample': _sample,
  'reconstruct': _reconstruct,
  'score': _score,
  'evaluate': _evaluate,
  'report': _report,
  'export': _export,
  'explore': _explore,
  'check': _check,
  'demo': _demo,
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit code."""
  with console.steady():
    return _run(flags.parse(sys.argv[1:] if argv is None else argv))


def _run(args: argparse.Namespace) -> int:
  """Runs a command; mistakes become one line and an exit code."""
  host_memory.keep()
  compile_cache.enable()
  from dermvq_jax.runs import logs

  logs.setup_console()
  # grain's worker processes read absl flags; ours are argparse's.
  absl_flags.FLAGS.mark_as_parsed()
  try:
    code = _COMMANDS[args.command](args)
  except errors.UserError as e:
    _say_error(args, str(e))
    return _MISTAKE
  except ModuleNotFoundError as e:
    package = (e.name or '').partition('.')[0]
    if package in ('', 'dermvq_jax'):
      raise
    _say_error(
      args,
      f'this needs the package {package}, which is not installed; install '
      'all that dermvq_jax needs, as its README says',
    )
    return _MISTAKE
  except OSError as e:
    if e.errno not in _SYSTEM_ERRORS:
      raise
    _say_error(
      args,
      f'{e.filename or "the disk"}: {e.strerror}; check the path, the '
      'permissions, the space and the disk there',
    )
    return _MISTAKE
  except errors.StoppedError as e:
    print('Saved; the same command resumes from here.', file=sys.stderr)
    return _INTERRUPTED if e.signal == signal.SIGINT else _STOPPED
  except KeyboardInterrupt:
    print(
      f'\nInterrupted; the same dermvq {args.command} command '
      + ('resumes.' if args.command in _RESUMED else 'starts again.'),
      file=sys.stderr,
    )
    return _INTERRUPTED
  return code or 0


if __name__ == '__main__':
  sys.exit(main())
