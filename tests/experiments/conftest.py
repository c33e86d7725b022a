"""A made-up cloud for the tests of the shell scripts."""

import os
import signal

import pytest
import stand_ins


@pytest.fixture
def cloud(tmp_path):
  cloud = stand_ins.Cloud(tmp_path)
  yield cloud
  for worker in cloud.workers:
    if (worker / 'session').exists():
      group = (worker / 'dermvq/run.pid').read_text().split()[0]
      os.killpg(os.getpgid(int(group)), signal.SIGKILL)
