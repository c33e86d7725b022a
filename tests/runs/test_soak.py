"""The short form of `make soak`."""

import random
import shutil

import soak


def test_killed_runs_end_as_if_never_killed(smoke_run, first_copy, tmp_path):
  workdir = tmp_path / 'run'
  images = f'data/{soak.IMAGES}'
  shutil.copytree(smoke_run / images, workdir / images)
  for _ in range(3):  # A save may be over before it is killed.
    kill = soak.kill(workdir, (), delay=0.0, save=1)
    if kill.in_save:
      break
  assert kill.in_save, kill
  # Somewhere in the VQ-VAE's training, in encode or in the prior's training.
  soak.kill(workdir, (), delay=random.uniform(2, 6))
  soak.finish(workdir)
  soak.assert_same(workdir, first_copy)


def test_flipped_bits_of_a_run(smoke_run, tmp_path):
  files, flips, noticed = soak.flip_bits(
    smoke_run / 'prior', tmp_path, random.Random(0), at_least=0
  )
  assert flips == 2 * files and noticed > 5
