"""The short form of `make soak`."""

import random
import shutil

import soak


def test_killed_runs_end_as_if_never_killed(smoke_run, tmp_path):
  workdir = tmp_path / 'run'
  images = f'data/{soak.IMAGES}'
  shutil.copytree(smoke_run / images, workdir / images)
  in_save = soak.kill(workdir, (), delay=0.0, save=2)
  assert in_save.in_save and not in_save.finished
  # Somewhere in phase 1, encode or phase 2.
  soak.kill(workdir, (), delay=random.uniform(2, 6))
  soak.kill(workdir, (), delay=random.uniform(0, 0.1), save=1)
  soak.finish(workdir)
  soak.assert_same(workdir, smoke_run)


def test_flipped_bits_of_a_run(smoke_run, tmp_path):
  for phase in soak.PHASES:
    files, flips, noticed = soak.flip_bits(
      smoke_run / phase, tmp_path, random.Random(0), at_least=50
    )
    assert flips >= max(50, 2 * files) and noticed > 10
