"""The process's own memory: what was freed goes back to the system.

Only glibc, the C library of most Linux systems, needs to be told.
"""

import ctypes
import functools
import sys
from typing import Any

# Blocks from this size on are mapped one by one, and unmapped once they are freed.
# Left alone, glibc raises this to 32 MiB, and keeps smaller ones that lie scattered.
MAPPED = 2**22  # bytes
_M_MMAP_THRESHOLD = -3  # glibc's name of the setting


@functools.cache
def _glibc() -> Any:
  """The C library, or None if it is another."""
  library = ctypes.CDLL(None) if sys.platform == 'linux' else None
  return library if hasattr(library, 'malloc_trim') else None


def map_large_blocks() -> None:
  """Lets large blocks go back to the system as soon as they are freed."""
  if library := _glibc():
    library.mallopt(_M_MMAP_THRESHOLD, MAPPED)


def give_back() -> None:
  """Gives free pages back, such as those that a compiler has used."""
  if library := _glibc():
    library.malloc_trim(0)
