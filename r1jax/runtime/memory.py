"""The memory of devices, and how the process returns what it has freed.

Only glibc, the C library of most Linux systems, needs the latter.
"""

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

import jax

# Blocks of this size or larger are mapped one by one, and unmapped when freed. By
# default glibc raises this threshold to 32 MiB, and keeps smaller blocks that are free.
MAPPED = 2**22  # bytes
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # glibc's names of the settings
_LIMITS = (  # of a container on Linux, in the second and the first version of cgroups
  Path('/sys/fs/cgroup/memory.max'),
  Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'),
)
_KEPT = 2**30  # bytes; glibc takes an int


@functools.cache
def _glibc() -> Any:
  """Returns the C library if it is glibc, else None."""
  library = ctypes.CDLL(None) if sys.platform == 'linux' else None
  return library if hasattr(library, 'malloc_trim') else None


def map_large_blocks() -> None:
  """Makes large blocks return to the system as soon as they are freed."""
  if library := _glibc():
    library.mallopt(_M_MMAP_THRESHOLD, MAPPED)


def keep_large_blocks() -> None:
  """Makes large blocks stay with the process when they are freed.

  For a program of some milliseconds that is called again and again, as in a chat: the
  system would clear its memory at each call. The logits of 151,936 tokens took three
  times as long.
  """
  if library := _glibc():
    library.mallopt(_M_MMAP_THRESHOLD, _KEPT)
    library.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
  """Returns free pages to the system, such as those that a compiler has used."""
  if library := _glibc():
    library.malloc_trim(0)


def of_device(device: jax.Device) -> int:
  """Returns the bytes that programs can use on a device.

  The CPU's devices share the machine's memory.
  """
  stats = (device.memory_stats() or {}) if device.platform != 'cpu' else {}
  return stats.get('bytes_limit') or of_machine() // jax.local_device_count('cpu')


def of_machine() -> int:
  """Returns the bytes of the machine's memory, or of the container's share of it."""
  found = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  for file in _LIMITS:
    if file.is_file() and (limit := file.read_text().strip()).isdecimal():
      found = min(found, int(limit))
  return found
