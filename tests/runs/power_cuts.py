"""Cuts the power at random moments, and restarts the command.

The run lives on an ext4 file system in an image file, which is mounted through
a loop device. A cut stops the command and copies the image: what the file
system had not given to the disk yet is lost. The copy is mounted, as after a
restart of the machine. There everything under a final name must be complete,
and the same command must end as if there had been no cut, bit for bit.

`make power-cuts` does this a hundred times; it needs root on Linux.
`test_power_cuts.py` does it a few times.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time

import soak

from dermvq_jax.data import prepared

_SIZE = 2**27  # bytes of the file system
_POLL_SECONDS = 0.001
_KINDS = ('checkpoints', 'best')
# These grow while a command runs. A reader takes their complete lines only.
_GROWING = ('metrics.jsonl', 'events.out.tfevents')
# Parts of names that are not final; and a note of TFDS that nobody reads.
_PARTIAL = (
  *('incomplete', 'unfinished', 'orbax-checkpoint-tmp', 'removed'),
  '.config',
)


def commands(workdir):
  """The commands that are cut, by name, in their order."""
  train, encode, prior = soak.commands(workdir, soak.OFTEN)
  images = f'--dataset={soak.IMAGES}', f'--data_dir={workdir}/data'
  sample = ['sample', f'--workdir={workdir}', f'--out={workdir}/samples']
  return {
    'prepare': ['prepare', *images],
    'train the VQ-VAE': train,
    'encode': encode,
    'train the prior': prior,
    'sample': [*sample, '--counts=2'],
  }


def _do(*command):
  subprocess.run([str(c) for c in command], check=True, capture_output=True)


class Disk:
  """An ext4 file system in an image file, mounted on a folder.

  Attributes:
    folder: where it is mounted.
  """

  def __init__(self, image, folder):
    self.folder = folder
    _do('mount', '-o', 'loop', image, folder)
    found = subprocess.check_output(['losetup', '-j', image], text=True)
    device = pathlib.Path(found.partition(':')[0]).name
    self._image = image
    self._stat = pathlib.Path(f'/sys/block/{device}/stat')

  def requests(self):
    """The numbers of writes and flushes so far, and of those under way."""
    fields = [int(field) for field in self._stat.read_text().split()]
    return fields[4], fields[15], fields[8]

  def copy(self, image):
    """Copies what the disk holds now, when nothing is being written."""
    while True:
      before = self.requests()
      _do('cp', '--sparse=always', self._image, image)
      if before[-1] == 0 and before == self.requests():
        return

  def close(self):
    """Unmounts it, which writes everything."""
    _do('umount', self.folder)


def why_not():
  """Says why no image can be mounted here; '' if one can."""
  for program in ('mkfs.ext4', 'losetup', 'mount', 'umount'):
    if not shutil.which(program):
      return f'there is no {program}'
  with tempfile.TemporaryDirectory(prefix='dermvq_mount_') as name:
    folder = pathlib.Path(name)
    try:
      Disk(_new_image(folder / 'image'), folder).close()
    except (OSError, subprocess.CalledProcessError) as e:
      said = getattr(e, 'stderr', b'') or str(e).encode()
      return f'no image can be mounted: {said.decode().strip()}'
  return ''


def _new_image(path):
  with path.open('wb') as file:
    file.truncate(_SIZE)
  _do('mkfs.ext4', '-q', path)
  return path


def contents(workdir):
  """All that a run holds, to be compared; fails if any of it is damaged."""
  found = {}
  for phase in soak.PHASES:
    folder = workdir / phase
    for kind in _KINDS:
      if (folder / kind).exists():
        for step in soak.steps_of(folder / kind):
          arrays = soak.arrays_of(folder / kind / str(step))
          found[f'{phase}/{kind}/{step}'] = {
            name: (array.dtype, array.tobytes())
            for name, array in arrays.items()
          }
    if (folder / 'config.json').exists():
      json.loads((folder / 'config.json').read_text())
      found[f'{phase}/metrics'] = soak.rows_of(folder)
  for prefix in (soak.IMAGES, 'codes/'):
    for dataset in prepared.names_in(workdir / 'data', prefix):
      found[dataset] = soak.records_of(workdir, dataset)
  for path in sorted((workdir / 'samples').rglob('*.*')):
    found[str(path.relative_to(workdir))] = path.read_bytes()
  return found


def check_names(workdir):
  """Checks that nothing under a final name is empty."""
  for path in workdir.rglob('*'):
    name = str(path.relative_to(workdir))
    if path.name.startswith(_GROWING) or any(p in name for p in _PARTIAL):
      continue
    if path.is_file() and not path.stat().st_size:
      raise AssertionError(f'{name} is empty')


def _differ(after, known):
  """Names of what differs; a checkpoint that was removed may be there again."""
  names = {name for name in after if '/checkpoints/' not in name}
  return [
    k for k in sorted(known.keys() | names) if after.get(k) != known.get(k)
  ]


def _latest(workdir):
  """The latest step of each phase that has its name."""
  return {
    phase: max(soak.steps_of(folder), default=0)
    for phase in soak.PHASES
    if (folder := workdir / phase / 'checkpoints').exists()
  }


@dataclasses.dataclass
class Cut:
  """A cut: the command, when, and what it cost.

  Attributes:
    command: its name.
    moment: how many writes of the disk, or seconds, after the start.
    ended: whether the command had ended before.
    lost: how many saves of a training had their names, but not on the disk.
  """

  command: str
  moment: str
  ended: bool
  lost: int = 0


class Bench:
  """Makes cuts in commands whose results are known.

  The results of each command are made once, without cuts.
  """

  def __init__(self, folder):
    self._folder = folder
    self._workdir = folder / 'run'
    self._workdir.mkdir()
    self._known, self._usual = {}, {}
    soak.start_commands(self._workdir, []).join()  # It starts the fork server.
    _new_image(folder / 'before')
    for i, (name, argv) in enumerate(commands(self._workdir).items()):
      before = folder / ('before' if not i else f'after_{i - 1}')
      shutil.copy(before, folder / f'after_{i}')
      disk = Disk(folder / f'after_{i}', self._workdir)
      start, since = disk.requests()[0], time.monotonic()
      self._finish(argv)
      seconds = time.monotonic() - since
      os.sync()
      self._usual[name] = before, seconds, disk.requests()[0] - start
      self._known[name] = contents(self._workdir)
      disk.close()

  def _finish(self, argv):
    process = soak.start_commands(self._workdir, [argv])
    process.join()
    log = self._folder / 'run.log'
    assert process.exitcode == 0, log.read_text()[-3000:]

  def cut(self, name, rng):
    """Cuts the power once in a command, restarts it and compares."""
    argv = commands(self._workdir)[name]
    before, seconds, writes = self._usual[name]
    image, copy = self._folder / 'cut', self._folder / 'copy'
    shutil.copy(before, image)
    disk = Disk(image, self._workdir)
    start = disk.requests()[0]
    process = soak.start_commands(self._workdir, [argv])
    # Writes come in bursts, in which most cuts shall be.
    if rng.random() < 0.75:
      wanted = rng.randrange(writes)
      moment = f'{wanted} of {writes} writes'
      while process.is_alive() and disk.requests()[0] - start < wanted:
        time.sleep(_POLL_SECONDS)
    else:
      wanted = rng.uniform(0, seconds)
      moment = f'{wanted:.2f} of {seconds:.2f} s'
      process.join(wanted)
    ended = not process.is_alive()
    if not ended:
      os.kill(process.pid, signal.SIGSTOP)
    disk.copy(copy)
    seen = _latest(self._workdir)
    process.kill()
    process.join()
    disk.close()
    disk = Disk(copy, self._workdir)
    try:
      found = Cut(name, moment, ended, self._lost(seen))
      check_names(self._workdir)
      contents(self._workdir)
      if name != 'sample' or not (self._workdir / 'samples').exists():
        self._finish(argv)
      after = contents(self._workdir)
      assert _differ(after, self._known[name]) == [], found
    finally:
      disk.close()
    return found

  def _lost(self, seen):
    """How many saves have lost their names; at most the last one may."""
    latest, every = _latest(self._workdir), soak.SAVE_EVERY
    lost = [
      (step - latest.get(phase, 0)) // every for phase, step in seen.items()
    ]
    assert max(lost, default=0) <= 1, (seen, latest)
    return sum(lost)


def cut_power(cuts, seed):
  """Makes the cuts; prints a line for each, and a table at the end."""
  reason = why_not()
  if reason:
    print(f'Nothing is done: {reason}.')
    return
  rng = random.Random(seed)
  with tempfile.TemporaryDirectory(prefix='dermvq_power_') as name:
    folder = pathlib.Path(name)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{folder}/cache'
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    bench = Bench(folder)
    names = list(commands(folder))
    done = []
    for i in range(cuts):
      done.append(bench.cut(names[i % len(names)], rng))
      print(f'{i + 1:3d} {done[-1]}', flush=True)
  by_name = collections.defaultdict(list)
  for found in done:
    by_name[found.command].append(found)
  print('| command | cuts | after its end | saves lost | identical |')
  print('|---|---|---|---|---|')
  for name, found in by_name.items():
    ended, lost = (sum(getattr(c, k) for c in found) for k in ('ended', 'lost'))
    print(f'| {name} | {len(found)} | {ended} | {lost} | {len(found)} |')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--cuts', type=int, default=100)
  parser.add_argument('--seed', type=int, default=0)
  cut_power(**vars(parser.parse_args()))
