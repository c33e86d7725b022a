"""Memory and kills of a long `dermvq sample`.

Makes a folder of images twice: at once, and killed at a third and at two thirds
of the work. Compares the folders byte for byte, and prints the resident memory
by the number of images that are there.

  python -m experiments.long_sampling --workdir=demo --images=20000 --out=OUT
"""

import argparse
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

_POLL_SECONDS = 0.2
_PAGE = os.sysconf('SC_PAGE_SIZE')
_FIRST = 1000  # images after which memory has to be flat
_KILLS = (1 / 3, 2 / 3)


def _memory(pid: int) -> int:
  """Resident memory of a process in bytes."""
  return int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1]) * _PAGE


def _num_images(out: pathlib.Path) -> int:
  blocks = out.with_name(f'{out.name}.unfinished').glob('blocks/*.json')
  return sum(len(json.loads(block.read_text())['kept']) for block in blocks)


def make(
  argv: list[str], out: pathlib.Path, kill_at: int = 0
) -> list[tuple[int, int]]:
  """Runs `dermvq sample`; returns pairs of images there and memory in bytes.

  Args:
    argv: the flags.
    out: the folder.
    kill_at: the number of images at which the process is killed; 0: it is not.
  """
  command = [sys.executable, '-m', 'dermvq_jax.main', 'sample', *argv]
  process = subprocess.Popen([*command, f'--out={out}'])
  seen = []
  while process.poll() is None:
    time.sleep(_POLL_SECONDS)
    try:
      seen.append((_num_images(out), _memory(process.pid)))
    except (FileNotFoundError, ProcessLookupError, IndexError):
      continue  # It has just ended.
    if kill_at and seen[-1][0] >= kill_at:
      process.send_signal(signal.SIGKILL)
      process.wait()
      return seen
  assert process.returncode == 0, process.returncode
  return seen


def _digests(folder: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def run(workdir: str, num_images: int, out: pathlib.Path, flags: list[str]):
  """Makes both folders and prints the table."""
  argv = [f'--workdir={workdir}', f'--counts=mel={num_images}', *flags]
  out.mkdir(parents=True)
  start = time.time()
  seen = make(argv, out / 'at_once')
  print(f'At once: {time.time() - start:.0f} s')
  steps = [_FIRST * 2**i for i in range(20) if _FIRST * 2**i < num_images]
  print('| images there | resident memory, MB |\n|---|---|')
  for number in steps:
    memory = next((m for n, m in seen if n >= number), None)
    if memory:
      print(f'| {number:,} | {memory / 1e6:.0f} |')
  print(f'| most | {max(m for _, m in seen) / 1e6:.0f} |')
  for share in _KILLS:
    there = make(argv, out / 'killed', int(share * num_images))[-1][0]
    print(f'Killed at {there:,} images')
  make(argv, out / 'killed')
  whole, killed = (_digests(out / name) for name in ('at_once', 'killed'))
  assert whole and whole == killed
  print(f'{len(whole):,} files are the same')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', default='demo')
  parser.add_argument('--images', type=int, default=20_000)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  args, rest = parser.parse_known_args()
  run(args.workdir, args.images, args.out, rest)
