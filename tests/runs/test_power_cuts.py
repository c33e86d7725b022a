"""The short form of `make power-cuts`."""

import random

import power_cuts
import pytest


@pytest.mark.slow
def test_commands_end_as_if_the_power_was_never_cut(tmp_path):
  reason = power_cuts.why_not()
  if reason:
    pytest.skip(reason)
  bench = power_cuts.Bench(tmp_path)
  rng = random.Random(0)
  for name in power_cuts.commands(tmp_path):
    bench.cut(name, rng)
