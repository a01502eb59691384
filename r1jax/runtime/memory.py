"""Returns the process's freed memory to the system.

Only glibc, the C library of most Linux systems, needs this.
"""

import ctypes
import functools
import sys
from typing import Any

# Blocks of this size or larger are mapped one by one, and unmapped when freed. By
# default glibc raises this threshold to 32 MiB, and keeps smaller blocks that are free.
MAPPED = 2**22  # bytes
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # glibc's names of the settings
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
