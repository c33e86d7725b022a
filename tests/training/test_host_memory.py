import os
import subprocess
import sys

import pytest

# One thread after the other takes 64 MiB, touches all of it and frees it.
_PROGRAM = """
import ctypes, resource, threading
from dermvq_jax.training import host_memory

{call}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
size = 2**26


def use():
  block = libc.malloc(ctypes.c_size_t(size))
  ctypes.memset(block, 1, size)
  libc.free(block)


for count in (2, 10):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(count):
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(call, **env):
  inherited = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('MALLOC_', 'GLIBC_', 'LD_PRELOAD'))
  }
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM.format(call=call)],
    check=True,
    capture_output=True,
    text=True,
    env=inherited | env,
  )
  return int(done.stdout)


@pytest.fixture(scope='module')
def faults_of_glibc():
  try:
    known = os.confstr('CS_GNU_LIBC_VERSION')
  except (AttributeError, OSError, ValueError):
    known = None
  faults = _faults('') if known else 0
  if faults < 10 * 2**26 // 2**21:  # At most one per huge page of 2 MiB.
    pytest.skip('not glibc, or it keeps freed memory anyway')
  return faults


def test_freed_memory_is_used_again(faults_of_glibc):
  assert _faults('host_memory.keep()') < faults_of_glibc / 2


def test_what_the_environment_says_stays(faults_of_glibc):
  faults = _faults('host_memory.keep()', MALLOC_ARENA_TEST='8')
  assert faults > faults_of_glibc / 2
