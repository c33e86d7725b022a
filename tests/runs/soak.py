"""Kills runs and flips bits, and compares with an undisturbed run.

`make soak` does this for a long time, `test_soak.py` briefly. Here a run is one
process that does everything in `commands`; started after a kill, it resumes.
"""

import argparse
import collections
import dataclasses
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import tempfile
import time

import numpy as np

PHASES = ('vqvae', 'prior')
IMAGES = 'synthetic_dermoscopy/smoke'
# Many saves: each phase takes seconds and saves often.
SAVE_EVERY = 4
OFTEN = (
  '--config.num_train_steps=60',
  f'--config.checkpoint_every_steps={SAVE_EVERY}',
  '--config.eval_every_steps=10',
)
_POLL_SECONDS = 0.001
_TMP = '*.orbax-checkpoint-tmp*'
# Imported once; each run is a fork that has not yet started JAX.
_PRELOAD = [
  'dermvq_jax.main',
  'dermvq_jax.training.loop',
  'dermvq_jax.data.prepare',
  'clu.metric_writers',
]
_SPLITS = ('train', 'val', 'test')


def commands(workdir, overrides=()):
  """Both phases and the codes between them."""
  place = f'--workdir={workdir}'
  return [
    ['train', '--config=vqvae:smoke', place, *overrides],
    ['encode', place, '--copies=1'],
    ['train', '--config=prior:smoke', place, *overrides],
  ]


def _work(workdir, argvs):
  with open(f'{workdir}.log', 'a') as log:
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
  from dermvq_jax import main

  for argv in argvs:
    code = main.main(argv)
    if code:
      os._exit(code)


def _context():
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(_PRELOAD)
  return context


def start_commands(workdir, argvs):
  """Starts a process that runs commands; its output goes to WORKDIR.log."""
  process = _context().Process(target=_work, args=(str(workdir), argvs))
  process.start()
  return process


def start(workdir, overrides=()):
  """Starts a run, or resumes it, in a separate process."""
  return start_commands(workdir, commands(workdir, overrides))


def finish(workdir, overrides=()):
  """Runs to the end; returns the time in seconds."""
  since = time.time()
  process = start(workdir, overrides)
  process.join()
  assert process.exitcode == 0, pathlib.Path(f'{workdir}.log').read_text()
  return time.time() - since


def _saves(workdir):
  """The save that is in progress, or was when a run was killed."""
  return {
    (path, path.stat().st_ino)
    for phase in PHASES
    for kind in ('checkpoints', 'best')
    for path in workdir.glob(f'{phase}/{kind}/{_TMP}')
    if path.exists()
  }


@dataclasses.dataclass
class Kill:
  """A kill: whether it was to hit a save, what it hit, and the run's place."""

  wanted: str
  delay: float
  in_save: bool
  finished: bool
  stage: str

  def __str__(self):
    met = 'in a save' if self.in_save else 'not in a save'
    met = 'had finished' if self.finished else met
    return (
      f'{self.wanted:>6} {self.delay * 1000:8.1f} ms  {met:<13}  {self.stage}'
    )


def _stage(workdir):
  """The phase, and the committed steps."""
  phase = PHASES[(workdir / 'prior' / 'config.json').exists()]
  folder = workdir / phase / 'checkpoints'
  steps = [int(p.name) for p in folder.glob('*') if p.name.isdigit()]
  return f'{phase}, checkpoints {sorted(steps)}'


def _listed(workdir):
  try:
    return _saves(workdir)
  except FileNotFoundError:  # It was committed during the look.
    return set()


def kill(workdir, overrides, delay, save=0):
  """Kills a run `delay` seconds after its `save`-th save or after its start."""
  before, seen = _listed(workdir), set()
  process = start(workdir, overrides)
  while save and process.is_alive() and len(seen) < save:
    seen |= _listed(workdir) - before
    time.sleep(_POLL_SECONDS)
  time.sleep(delay)
  process.kill()
  process.join()
  return Kill(
    'save' if save else 'any',
    delay,
    in_save=bool(_saves(workdir) - before),
    finished=process.exitcode != -signal.SIGKILL,
    stage=_stage(workdir),
  )


def arrays_of(folder):
  import jax

  from dermvq_jax.runs import steps

  leaves = jax.tree_util.tree_leaves_with_path(steps.read(folder))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def steps_of(folder):
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def rows_of(folder):
  from dermvq_jax.runs import logs

  times = {'step/steps_per_second'}
  return [
    {k: v for k, v in row.items() if k not in times}
    for row in logs.read(folder)
  ]


def records_of(workdir, dataset):
  from dermvq_jax.data import prepared

  return [
    [{k: np.asarray(v).tobytes() for k, v in source[i].items()} for i in all_]
    for source in (
      prepared.Dataset(dataset, workdir / 'data').split(s) for s in _SPLITS
    )
    for all_ in [range(len(source))]
  ]


def assert_same(workdir, expected):
  """Parameters, everything else that is saved, metrics and codes, exactly."""
  from dermvq_jax.runs import run as run_lib

  for phase in PHASES:
    folder, other = workdir / phase, expected / phase
    for kind in ('checkpoints', 'best'):
      steps = steps_of(other / kind)
      assert steps_of(folder / kind) == steps, f'{phase}/{kind}'
      for step in steps:
        a = arrays_of(folder / kind / str(step))
        b = arrays_of(other / kind / str(step))
        assert a.keys() == b.keys() and len(a) > 10
        for name in a:
          assert a[name].dtype == b[name].dtype, name
          assert a[name].tobytes() == b[name].tobytes(), f'{phase} {name}'
    assert rows_of(folder) == rows_of(other), f'{phase}/metrics.jsonl'
  dataset = run_lib.Run(workdir).prior.facts['dataset']
  assert dataset == run_lib.Run(expected).prior.facts['dataset']
  assert records_of(workdir, dataset) == records_of(expected, dataset)
  for path in workdir.rglob('*'):
    assert not path.match(_TMP) and 'incomplete' not in path.name, path


def flip(path, rng):
  """Flips one bit of a file."""
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)


def flip_bits(folder, scratch, rng, at_least):
  """Flips bits of a phase's latest checkpoint, one at a time.

  Each flip must be noticed, unless the restored state and step are unchanged.

  Returns:
    Number of files, number of flips, and number of noticed flips.
  """
  from dermvq_jax.runs import checkpoints

  step = steps_of(folder / 'checkpoints')[-1]
  expected = arrays_of(folder / 'checkpoints' / str(step))
  files = sorted(
    p for p in (folder / 'checkpoints' / str(step)).rglob('*') if p.is_file()
  )
  flips = max(at_least, 2 * len(files))
  noticed = 0
  for i in range(flips):
    copy = scratch / 'flipped'
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / 'checkpoints', copy / 'checkpoints')
    flip(copy / files[i % len(files)].relative_to(folder), rng)
    [found] = [
      problem
      for _, number, problem in checkpoints.verify(copy)
      if number == step
    ]
    if found:
      noticed += 1
      continue
    arrays = arrays_of(copy / 'checkpoints' / str(step))
    assert arrays.keys() == expected.keys()
    for name in arrays:
      assert arrays[name].tobytes() == expected[name].tobytes(), name
  return len(files), flips, noticed


def soak(kills, in_save, flips, seed):
  """Does everything; prints a line per kill and a table at the end."""
  rng = random.Random(seed)
  with tempfile.TemporaryDirectory(prefix='dermvq_soak_') as name:
    folder = pathlib.Path(name)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{folder}/cache'
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    from dermvq_jax.data import prepare

    prepare.run(IMAGES, folder / 'images')
    reference = folder / 'reference'
    shutil.copytree(folder / 'images', reference / 'data')
    finish(reference, OFTEN)
    again = folder / 'again'
    shutil.copytree(folder / 'images', again / 'data')
    seconds = finish(again, OFTEN)
    assert_same(again, reference)
    print(f'A run takes {seconds:.1f} s; two are identical.', flush=True)
    done, chains, resumed = [], 0, 0
    while len(done) < kills or sum(k.in_save for k in done) < in_save:
      chains += 1
      workdir = folder / f'chain_{chains}'
      shutil.copytree(folder / 'images', workdir / 'data')
      killed = False  # A run may end before its kill.
      for _ in range(rng.randint(3, 6)):
        if rng.random() < 0.5:
          found = kill(
            workdir, OFTEN, rng.uniform(0, 0.1), save=rng.randint(1, 12)
          )
        else:
          found = kill(workdir, OFTEN, rng.uniform(0, seconds))
        if found.finished:
          break
        done.append(found)
        killed = True
        print(f'{len(done):3d} chain {chains}: {found}', flush=True)
      finish(workdir, OFTEN)
      assert_same(workdir, reference)
      resumed += killed
      print(f'    chain {chains}: identical', flush=True)
      shutil.rmtree(workdir)
    by_stage = collections.Counter(k.stage.partition(',')[0] for k in done)
    print(
      f'\n| kills | in a save | in the VQ-VAE or encode | in the prior | '
      f'resumed runs | identical |\n|---|---|---|---|---|---|\n'
      f'| {len(done)} | {sum(k.in_save for k in done)} | {by_stage["vqvae"]} '
      f'| {by_stage["prior"]} | {resumed} | {resumed} |\n'
    )
    print('| bits flipped in | files | flips | noticed | without effect |')
    print('|---|---|---|---|---|')
    for phase in PHASES:
      files, number, noticed = flip_bits(reference / phase, folder, rng, flips)
      print(
        f'| {phase}/checkpoints | {files} | {number} | {noticed} | '
        f'{number - noticed} |',
        flush=True,
      )


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=30)
  parser.add_argument('--in_save', type=int, default=10)
  parser.add_argument('--flips', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  soak(**vars(parser.parse_args()))
