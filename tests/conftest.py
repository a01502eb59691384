"""What holds for every test; set before anything imports jax, which reads it once."""

import os
import signal

import hypothesis

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Eight devices, so that sharding is tested on a laptop.
flags = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count=8'.strip()
# [B] + [B, T] is a mistake more often than it is meant.
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
os.environ['JAX_DEBUG_KEY_REUSE'] = '1'

# A job in the background ignores Ctrl-C, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on each run, however busy the machine is.
hypothesis.settings.register_profile('r1jax', deadline=None, derandomize=True)
hypothesis.settings.load_profile('r1jax')
