"""Eight virtual CPU devices, set before JAX starts."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

from absl import flags  # noqa: E402

# grain's worker processes read absl flags, which pytest never parses.
flags.FLAGS.mark_as_parsed()
